"""The report: one HTML file that needs no other file, for the person who looks at the maps."""

import base64
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from chimap.arrays import Volume
from chimap.io.output import whole_file
from chimap.plan import Plan
from chimap.report import figures
from chimap.report.checklist import checklist
from chimap.report.figures import Window
from chimap.report.methods import bibtex, methods_paragraph, methods_used, references, shown
from chimap.report.provenance import versions, without_folders
from chimap.report.regions import outlined, region_table, through
from chimap.report.template import script, script_hash, template
from chimap.report.view import View, view_of
from chimap.report.viewer import viewer
from chimap.scan import Maps, Scan

CHI_WINDOW: Window = (-0.1, 0.15)
"""The same in every report [ppm], so that maps can be compared by eye."""

BRAIN_COLOUR, VALID_COLOUR = "#ff9d2e", "#35d0ff"
_MARGIN = 6.0  # mm around the brain in pictures of what was computed inside it
_FULL_TURN = {-math.pi: f"{figures.MINUS}π", 0.0: "0", math.pi: "π"}


@dataclass(frozen=True)
class Figure:
    """A picture and what it shows, as the template takes it.

    Attributes:
        name: Anchor, unique in the page.
        title: What it is.
        caption: Window, unit and what to look for.
        picture: Base64 of a PNG.
        legend: Name and colour of each outline.
    """

    name: str
    title: str
    caption: str
    picture: str
    legend: tuple[tuple[str, str], ...] = ()


def write_report(
    path: Path,
    scan: Scan,
    maps: Maps,
    plan: Plan,
    *,
    title: str = "Susceptibility map",
    extras: Mapping[str, str] | None = None,
) -> None:
    """Write the report, whole or not at all.

    Args:
        path: The HTML file.
        scan: The input; its notes and warnings are quoted.
        maps: What was made of it.
        plan: How.
        title: Heading.
        extras: Rows of a table of comparisons, such as errors against a known truth: name and value in words.

    Raises:
        InputError: The affine is singular, or the plan names a method that is not in the table.
    """
    used = methods_used(scan, plan)
    whole = view_of(scan.affine, scan.voxel_size, maps.brain_mask)
    close = view_of(scan.affine, scan.voxel_size, maps.brain_mask, margin=_MARGIN)
    looked_through = viewer(scan, maps, close, CHI_WINDOW)
    sorting = script("sorting.js")
    text = template("page.html.j2").render(
        title=title,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        warnings=[without_folders(warning, scan) for warning in (*scan.warnings, *maps.warnings)],
        viewer=looked_through,
        sorting=sorting,
        script_hashes=[script_hash(looked_through["script"]), script_hash(sorting)],
        chi_figures=list(_chi_figures(maps, close)),
        histograms=list(_histograms(maps)),
        regions=region_table(scan, maps),
        region_figures=list(_region_figures(maps, close)),
        found_regions=scan.segmentation is None,
        summary=_summary(maps),
        volumes=_volumes(scan, maps),
        extras=dict(extras or {}),
        stages=[*_input_figures(scan, maps, whole), *_field_figures(scan, maps, close), *_swi_figures(maps, close)],
        planes=_planes(scan, whole),
        acquisition=_acquisition(scan),
        input_notes=[without_folders(note, scan) for note in scan.notes],
        findings=maps.findings,
        stage_notes=[without_folders(note, scan) for note in maps.notes],
        reference=maps.reference,
        paragraph=methods_paragraph(scan, maps, plan),
        references=references(used),
        bibtex=bibtex(references(used)),
        checklist=checklist(scan, maps, plan, used),
        settings=[
            (row.method.stage, row.method.label, name.replace("_", " "), shown(value), name in row.changed)
            for row in used
            for name, value in row.parameters.items()
        ],
        seconds=_seconds(maps),
        versions=versions(),
    )
    with whole_file(path) as target:
        target.write_text(text, encoding="utf-8")


def _input_figures(scan: Scan, maps: Maps, view: View) -> Iterator[Figure]:
    """Magnitude with and without outlines, and wrapped phase, over the whole grid."""
    head = None
    if scan.magnitude is not None:
        for echo, name in _first_and_last(scan):
            volume = scan.magnitude[echo]
            window = 0.0, figures.round_window(volume[maps.brain_mask], (1.0, 99.8))[1]
            head = (volume, window, "a.u.") if head is None else head
            yield Figure(
                f"magnitude-{echo + 1}",
                f"Magnitude, {name}",
                f"As measured, {_window(window)} in arbitrary units.",
                _encoded(figures.three_planes(volume, view, window=window, unit="a.u.")),
            )
    window = -math.pi, math.pi
    for echo, name in _first_and_last(scan):
        picture = figures.three_planes(scan.phase[echo], view, window=window, unit="rad", ticks=_FULL_TURN)
        yield Figure(
            f"phase-{echo + 1}",
            f"Wrapped phase, {name}",
            "As measured, −π to π rad; brighter where the field is stronger, up to whole turns.",
            _encoded(picture),
        )
    volume, window, unit = (scan.phase[0], window, "rad") if head is None else head
    legend = (("brain mask", BRAIN_COLOUR), ("valid mask, after background removal", VALID_COLOUR))
    outlines = (maps.brain_mask, BRAIN_COLOUR), (maps.mask, VALID_COLOUR)
    yield Figure(
        "masks",
        "Masks",
        f"Outlines on the {'first wrapped phase' if head is None else 'first magnitude'}. "
        "Local field and susceptibility exist inside the inner outline only.",
        _encoded(figures.three_planes(volume, view, window=window, unit=unit, outlines=outlines)),
        legend,
    )


def _field_figures(scan: Scan, maps: Maps, view: View) -> Iterator[Figure]:
    """Unwrapped phase, total field, its noise, R2* and local field, close around the brain."""
    brain = maps.brain_mask
    if maps.unwrapped_phase is not None:
        for echo, name in _first_and_last(scan):
            volume = maps.unwrapped_phase[echo]
            window = figures.round_window(volume[brain])
            yield Figure(
                f"unwrapped-{echo + 1}",
                f"Unwrapped phase, {name}",
                f"{_window(window)} rad. It should be free of sharp steps; a step of 2π is an error.",
                _encoded(figures.three_planes(volume, view, window=window, unit="rad", inside=brain)),
            )
    window = figures.symmetric_window(maps.total_field[brain])
    yield Figure(
        "total-field",
        "Total field",
        f"{_window(window)} ppm of B0. Field of all sources, air and shim included.",
        _encoded(figures.three_planes(maps.total_field, view, window=window, unit="ppm", inside=brain)),
    )
    noise, scale = _relative_noise(maps)
    window = 0.0, figures.round_window(noise[brain], (0.0, 99.0))[1]
    noise = noise.nan_to_num(posinf=window[1])  # no information at all: the brightest, where a gap would be black
    yield Figure(
        "field-noise",
        "Field noise",
        f"{_window(window)} times its median in the brain mask. Noise is known up to one common factor "
        f"(median as computed: {scale:.3g} ppm). Where it is bright, field and map are less certain.",
        _encoded(figures.three_planes(noise, view, window=window, unit="× median", inside=brain)),
    )
    if maps.r2star is not None:
        window = 0.0, figures.round_window(maps.r2star[brain], (0.0, 99.0))[1]
        yield Figure(
            "r2star",
            "R2*",
            f"{_window(window)} 1/s; median {float(maps.r2star[brain].median()):.1f} 1/s. How fast the magnitude "
            "decays: fast in iron and blood, also beside a calcification. Above the sinuses and ear canals the field "
            "varies within a voxel, and that adds to it. The susceptibility does not depend on this map.",
            _encoded(figures.three_planes(maps.r2star, view, window=window, unit="1/s", inside=brain)),
        )
    window = figures.symmetric_window(maps.local_field[maps.mask])
    yield Figure(
        "local-field",
        "Local field",
        f"{_window(window)} ppm of B0. What sources inside the mask add to the field; no broad gradients "
        "should be left.",
        _encoded(figures.three_planes(maps.local_field, view, window=window, unit="ppm", inside=maps.mask)),
    )


def _chi_figures(maps: Maps, view: View) -> Iterator[Figure]:
    values = maps.chi[maps.mask]
    low, high = CHI_WINDOW
    beyond = float(((values < low) | (values > high)).float().mean()) if values.numel() else 0.0
    yield Figure(
        "chi",
        "Susceptibility, three planes",
        f"{_window(CHI_WINDOW)} ppm in every report; {100 * beyond:.2g} % of the voxels lie beyond.",
        _encoded(figures.three_planes(maps.chi, view, window=CHI_WINDOW, unit="ppm", inside=maps.mask)),
    )
    yield Figure(
        "chi-axial",
        "Susceptibility, axial levels",
        f"{_window(CHI_WINDOW)} ppm. Distances are along the slice normal from the axial slice above.",
        _encoded(figures.axial_levels(maps.chi, view, window=CHI_WINDOW, unit="ppm", inside=maps.mask)),
    )


def _region_figures(maps: Maps, view: View) -> Iterator[Figure]:
    regions = [] if maps.segmentation is None else outlined(maps.segmentation, maps.mask)
    if regions:
        picture = figures.three_planes(
            maps.chi,
            through(view, regions),
            window=CHI_WINDOW,
            unit="ppm",
            inside=maps.mask,
            outlines=[(inside, colour) for _, inside, colour in regions],
        )
        yield Figure(
            "regions-outlined",
            "Regions",
            f"Outlines on the susceptibility, {_window(CHI_WINDOW)} ppm. An outline that misses its nucleus makes its "
            "value worthless.",
            _encoded(picture),
            tuple((name, colour) for name, _, colour in regions),
        )


def _swi_figures(maps: Maps, view: View) -> Iterator[Figure]:
    titles = {
        "swi_mip": ("Susceptibility-weighted image", "Magnitude darkened by the high-passed phase"),
        "true_swi_mip": ("True susceptibility-weighted image", "Magnitude darkened by chi"),
    }
    for name, (title, how) in titles.items():
        if name in maps.swi:
            volume = maps.swi[name]
            window = figures.round_window(volume[maps.brain_mask], (1.0, 99.8))
            yield Figure(
                name.replace("_", "-"),
                title,
                f"{how}; the least of a slab of 10 mm, so that veins are seen in one piece. {_window(window)} in "
                "arbitrary units: a picture, not a measurement.",
                _encoded(
                    figures.axial_levels(volume, view, window=window, unit="a.u.", inside=maps.brain_mask, count=8)
                ),
            )


def _histograms(maps: Maps) -> Iterator[Figure]:
    for name, title, volume, symbol in (
        ("chi-histogram", "Susceptibility", maps.chi, "chi"),
        ("local-field-histogram", "Local field", maps.local_field, "local field"),
    ):
        values = volume[maps.mask]
        window = figures.round_window(values, (0.1, 99.9))
        picture = figures.histogram(values, window=window, name=symbol, unit="ppm")
        yield Figure(name, f"{title}, histogram", "Voxels of the valid mask.", _encoded(picture))


def _first_and_last(scan: Scan) -> list[tuple[int, str]]:
    last = len(scan.echo_times) - 1
    return [
        (echo, f"echo {echo + 1} of {last + 1} at {1000 * scan.echo_times[echo]:.4g} ms") for echo in sorted({0, last})
    ]


def _relative_noise(maps: Maps) -> tuple[Volume, float]:
    """Field noise over its median, and the median [ppm]."""
    finite = maps.field_noise[maps.brain_mask & torch.isfinite(maps.field_noise)]
    median = float(finite.median()) if finite.numel() else 0.0
    relative = maps.field_noise / median if median > 0 else maps.field_noise
    return relative, median


def _summary(maps: Maps) -> list[tuple[str, str]]:
    """Numbers of chi in the valid mask."""
    values = maps.chi[maps.mask]
    if not values.numel():
        return [("Valid mask", "empty: there is no susceptibility to summarise")]
    spread = float(values.double().std(correction=0))
    rows = [("Mean ± SD", f"{_signed(float(values.double().mean()))} ± {spread:.4f} ppm")]
    shares = (1.0, 5.0, 50.0, 95.0, 99.0)
    found = zip(shares, figures.percentiles(values, shares), strict=True)
    return rows + [("Median" if p == 50 else f"Percentile {p:.0f}", f"{_signed(value)} ppm") for p, value in found]


def _volumes(scan: Scan, maps: Maps) -> list[tuple[str, str]]:
    """Sizes of the masks, and the range of the local field in the valid one."""
    voxel = math.prod(scan.voxel_size) / 1000
    brain, valid = int(maps.brain_mask.sum()), int(maps.mask.sum())
    low, high = figures.percentiles(maps.local_field[maps.mask], (1.0, 99.0))
    return [
        ("Brain mask", f"{brain * voxel:.0f} mL ({brain} voxels)"),
        ("Valid mask", f"{valid * voxel:.0f} mL ({valid} voxels)"),
        ("Share of the brain mask kept", f"{100 * valid / max(brain, 1):.1f} %"),
        ("Local field, 98 % within", f"{_signed(low)} to {_signed(high)} ppm"),
    ]


def _acquisition(scan: Scan) -> list[tuple[str, str]]:
    times = ", ".join(f"{1000 * time:.4g}" for time in scan.echo_times)
    echoes = "1 echo" if len(scan.echo_times) == 1 else f"{len(scan.echo_times)} echoes"
    names = [Path(file).name for file in scan.files]
    if len(names) > 12:
        names = [*names[:4], f"… {len(names) - 5} more …", names[-1]]
    return [
        ("Files", ", ".join(names) or "none (made in memory)"),
        ("Grid", f"{' × '.join(str(n) for n in scan.shape)} voxels, {echoes}"),
        ("Voxel size", f"{' × '.join(f'{size:.4g}' for size in scan.voxel_size)} mm"),
        ("Echo times" if len(scan.echo_times) > 1 else "Echo time", f"{times} ms"),
        ("Field strength", f"{scan.field_strength:.4g} T"),
        ("B0 direction", f"({', '.join(_signed(b, 3) for b in scan.b0_direction)}) in the file's voxel axes"),
        ("Magnitude", "yes" if scan.magnitude is not None else "none"),
        ("Brain mask", "given by the user" if scan.mask is not None else "made by chimap"),
    ]


def _planes(scan: Scan, view: View) -> str:
    """How the pictures lie in the patient, in a sentence or two."""
    along = min(abs(view.turned_vector(scan.b0_direction)[2]), 1.0)
    angle = math.degrees(math.acos(along))
    voxel = ", ".join(str(index) for index in view.centre)
    where = f"The three planes meet in voxel ({voxel}), counted from 0: the centre of the brain mask."
    if angle < 1:
        return f"{where} Axial slices are perpendicular to B0."
    return (
        f"{where} The acquisition is oblique and is shown in its own planes: the normal of the slices called "
        f"axial is tilted by {angle:.1f}° against B0."
    )


def _seconds(maps: Maps) -> list[tuple[str, str, float]]:
    """Stage, time in words and share of the longest, for bars."""
    longest = max(maps.seconds.values(), default=0.0) or 1.0
    rows = [(stage, f"{value:.1f} s", 100 * value / longest) for stage, value in maps.seconds.items()]
    return [*rows, ("total", f"{sum(maps.seconds.values()):.1f} s", 0.0)] if rows else []


def _window(window: Window) -> str:
    return " to ".join(figures.signed(end) for end in window)


def _signed(value: float, digits: int = 4) -> str:
    text = f"{value:.{digits}f}"
    return text.replace("-", figures.MINUS) if float(text) else f"{0:.{digits}f}"


def _encoded(picture: bytes) -> str:
    return base64.b64encode(picture).decode("ascii")
