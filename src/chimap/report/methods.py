"""What was done, in words: methods with their parameters, a paragraph for a paper, its references."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chimap import __version__
from chimap.methods import TO_CHI, TO_LOCAL_FIELD, Method, Stage, find
from chimap.plan import Plan
from chimap.scan import Maps, Scan

STAGES: dict[Stage, tuple[Stage, ...]] = {
    "mask": ("mask",),
    "unwrap": ("unwrap",),
    "combination": ("combination",),
    "background": TO_LOCAL_FIELD,
    "inversion": TO_CHI,
}
"""Fields of a plan, and the stages that a method named there may be of."""

# Names as papers write them, where that is not the name on the command line.
_NAMES = {
    "brain": "a surface grown from inside the brain",
    "laplacian": "the Laplacian method",
    "quality-guided": "quality-guided region growing",
    "nonlinear": "a nonlinear fit of the complex signal",
    "weighted": "a weighted line through the phases",
    "r2star": "a fit of its square above the noise floor",
    "vsharp": "V-SHARP",
    "sharp": "SHARP",
    "resharp": "RESHARP",
    "ismv": "iSMV",
    "lbv": "LBV",
    "pdf-tv": "PDF and TV in turns",
    "pdf": "PDF",
    "tkd": "thresholded k-space division (TKD)",
    "tsvd": "truncated singular value decomposition (TSVD)",
    "tikhonov": "closed-form Tikhonov regularisation",
    "l2": "closed-form regularisation of the gradient (L2)",
    "tv": "total variation regularisation (TV)",
    "fansi": "nonlinear inversion with variational regularisation (FANSI)",
    "rts": "rapid two-step inversion (RTS)",
    "lsqr": "weighted least squares stopped early (LSQR)",
    "ilsqr": "weighted least squares with removal of streaking artefacts (iLSQR)",
    "star": "total variation regularisation in two levels (STAR-QSM)",
    "ndi": "nonlinear dipole inversion (NDI)",
    "medi": "morphology-enabled dipole inversion (MEDI)",
    "medi+0": "morphology-enabled dipole inversion with automatic zero reference (MEDI+0)",
    "tgv": "total generalised variation (TGV-QSM)",
    "dip": "a deep image prior (DIP)",
    "zs-uqsm+": "zero-shot uQSM+",
    "uqsm+": "the network uQSM+",
    "xqsm": "the network xQSM",
    "xqsm+": "the network xQSM+",
    "qsmnet": "the network QSMnet",
    "qsmnet+": "the network QSMnet+",
    "iqsm": "the network iQSM",
    "iqsm+": "the network iQSM+",
    "nextqsm": "the networks of NeXtQSM",
    "fine": "QSMnet+ fine-tuned to the field (FINE)",
}


@dataclass(frozen=True)
class UsedMethod:
    """A method that a plan runs.

    Attributes:
        method: Its row in the table.
        parameters: Every parameter's value, defaults included.
        changed: Those that differ from the default, with the default.
    """

    method: Method
    parameters: dict[str, Any]
    changed: dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """A paper: "Authors year", and its DOI."""

    authors: str
    doi: str


def methods_used(scan: Scan, plan: Plan) -> list[UsedMethod]:
    """The methods of a plan in the order they run; no mask method where the scan brings a mask.

    Raises:
        InputError: The plan names a method that is not in the table.
    """
    used = []
    for stage, kinds in STAGES.items():
        if stage == "mask" and scan.mask is not None:
            continue
        if stage == "combination" and len(scan.echo_times) == 1:
            continue
        if stage == "background" and find(plan.inversion, *TO_CHI).stage == "from total field":
            continue
        used.append(_used(find(getattr(plan, stage), *kinds), plan))
        if stage == "combination" and scan.magnitude is not None:
            used.append(_used(find("r2star", "relaxation"), plan))
    return used


def _used(method: Method, plan: Plan) -> UsedMethod:
    defaults, wanted = method.parameters(), plan.settings.get(method.name, {})
    parameters = {**defaults, **wanted}
    changed = {name: default for name, default in defaults.items() if parameters[name] != default}
    if "radians_per_ppm" in defaults and "radians_per_ppm" not in wanted:
        parameters["radians_per_ppm"] = "that of the scan"  # a note of the run says how many
    return UsedMethod(method, parameters, changed)


def references(used: Sequence[UsedMethod]) -> list[Reference]:
    """Papers of the methods, each once, in the order of the methods."""
    found: list[Reference] = []
    for row in used:
        found += [reference for reference in _papers(row.method) if reference not in found]
    return found


def bibtex(papers: Sequence[Reference]) -> str:
    """Entries to paste into a list of references; a reference manager finds the title by the DOI."""
    entries, taken = [], set()
    for paper in papers:
        names, _, year = paper.authors.rpartition(" ")
        first, *others = names.replace(" et al.", " and others").split(" and ")
        stem = re.sub(r"\W", "", first.split()[-1]).lower() + year
        key = next(stem + letter for letter in ("", *"abcdefgh") if stem + letter not in taken)
        taken.add(key)
        authors = " and ".join([first, *others])
        entries.append(
            f"@article{{{key},\n  author = {{{authors}}},\n  year = {{{year}}},\n  doi = {{{paper.doi}}}\n}}"
        )
    return "\n".join(entries)


def methods_paragraph(scan: Scan, maps: Maps, plan: Plan) -> str:
    """A paragraph for a paper's methods section; numbers in brackets count `references`.

    It states the acquisition, each stage with its parameters, and the reference of chi. Parameters that the
    user changed come with the default.
    """
    used = methods_used(scan, plan)
    numbers = {reference: number for number, reference in enumerate(references(used), 1)}
    by_stage: dict[Stage, UsedMethod] = {row.method.stage: row for row in used}
    last = used[-1].method.stage
    removal: Stage = "background from phase" if "background from phase" in by_stage else "background"

    def named(stage: Stage) -> str:
        row = by_stage[stage]
        cited = "".join(f" [{numbers[paper]}]" for paper in _papers(row.method))
        return f"{_name(row.method)}{cited}{_in_brackets(row)}"

    echoes = len(scan.echo_times)
    b0 = ", ".join(f"{component:.3f}" for component in scan.b0_direction)
    sentences = [
        f"Susceptibility was mapped with chimap {__version__} from the phase of {_acquisition(scan)}, "
        f"with B0 along ({b0}) in voxel axes."
    ]
    if "mask" in by_stage:
        source = "magnitude and phase" if scan.magnitude is not None else "phase"
        sentences.append(f"The brain was masked from {source} with {named('mask')}.")
    else:
        sentences.append("The brain mask was supplied by the user.")
    limit = plan.noise_limit_for(own_mask=scan.mask is None)
    if limit is not None:
        sentences.append(f"Voxels whose field was more than {limit:g} times as noisy as the median were left out.")
    if plan.erosion > 0:
        sentences.append(f"The mask was eroded by {plan.erosion:g} mm.")
    if echoes > 1:
        sentences.append(
            "A smooth phase offset common to all echoes was estimated and removed. The phase was unwrapped "
            f"with {named('unwrap')}, and the {echoes} echoes were combined to a total field by "
            f"{named('combination')}."
        )
    else:
        sentences.append(f"The phase was unwrapped with {named('unwrap')} and scaled to a total field.")
    if "relaxation" in by_stage:
        sentences.append(f"R2* was computed from the magnitude of the echoes by {named('relaxation')}.")
    kept = int(maps.mask.sum()) / max(int(maps.brain_mask.sum()), 1)
    if last == "from phase":
        sentences.append(
            f"Susceptibility was computed from the wrapped phase in one step with {named(last)}, for "
            f"{100 * kept:.1f} % of the brain mask; for comparison, the background field was removed from the total "
            f"field with {named(removal)}."
        )
    elif last == "from total field":
        sentences.append(
            f"Local field and susceptibility were computed from the total field in one step with {named(last)}."
        )
    else:
        removed = "The local field was found in the wrapped phase"
        if removal == "background":
            removed = "The background field was removed"
        sentences.append(
            f"{removed} with {named(removal)}, after which {100 * kept:.1f} % of the brain mask remained valid."
        )
        sentences.append(f"Susceptibility was computed from the local field with {named('inversion')}.")
    if plan.choose_regularisation == "discrepancy":
        sentences.append(
            "The regularisation was chosen by the discrepancy principle (Morozov 1966, "
            "doi:10.1016/0041-5553(66)90046-2): the misfit of the field equals its error, "
            "which was estimated where the dipole kernel is zero."
        )
    elif plan.choose_regularisation == "l-curve":
        sentences.append(
            "The regularisation was chosen at the corner of the L-curve (Hansen and O'Leary 1993, doi:10.1137/0914086)."
        )
    if plan.two_pass:
        sentences.append(
            "Background removal and inversion were done twice, first without the voxels of unreliable field; there, "
            "and nowhere else, the result of the second pass was used (Stewart et al. 2022, doi:10.1002/mrm.29048)."
        )
    reference = maps.reference
    if reference is None:
        sentences.append("It is given as the inversion yields it, without a reference region.")
    else:
        sentences.append(
            f"It is given relative to its mean in {reference.region} ({reference.voxels} voxels, "
            f"{reference.volume:.1f} ml; SD {reference.sd:.4f} ppm, mean before {reference.mean:+.4f} ppm)."
        )
    return " ".join(sentences)


def _name(method: Method) -> str:
    if method.weights == method.name and method.name not in _NAMES:
        return f"a network of the authors' own training ({method.label})"
    return _NAMES.get(method.name, method.name)


def _acquisition(scan: Scan) -> str:
    size = " x ".join(f"{length:.3g}" for length in scan.voxel_size)
    times = [f"{1000 * time:.4g}" for time in scan.echo_times]
    if len(times) == 1:
        kind, listed = "a single-echo", f"echo time {times[0]}"
    else:
        kind, listed = f"a {len(times)}-echo", f"echo times {', '.join(times[:-1])} and {times[-1]}"
    return f"{kind} gradient-echo acquisition ({listed} ms, {scan.field_strength:.3g} T, voxels of {size} mm)"


def _in_brackets(row: UsedMethod) -> str:
    parts = []
    for name, value in row.parameters.items():
        part = f"{name.replace('_', ' ')} {shown(value)}"
        if name in row.changed:
            part += f", default {shown(row.changed[name])}"
        parts.append(part)
    return f" ({'; '.join(parts)})" if parts else ""


def shown(value: Any) -> str:
    """A parameter's value for readers."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (tuple, list)):
        return ", ".join(shown(part) for part in value)
    return "automatic" if value is None else str(value)


def _papers(method: Method) -> list[Reference]:
    found = []
    for part in method.reference.split(";"):
        match = re.fullmatch(r"\s*(.+?),\s*doi:(\S+)\s*", part)
        if match:
            found.append(Reference(match[1], match[2]))
    return found
