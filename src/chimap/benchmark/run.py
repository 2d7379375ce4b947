"""Methods x cases: make each case, run every method on it, compare with the truth."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from chimap import lesion_metrics, metrics, pipeline, regional
from chimap.arrays import Mask, Shape, Triple, Volume
from chimap.benchmark import figures
from chimap.benchmark.cases import TEST_LESION, Case, Person, Simulator, Subject, in_order_of_heads, spot_region
from chimap.benchmark.inputs import ENTRIES, TRACKS, Inputs, Track, of_scan
from chimap.benchmark.memory import peak_memory
from chimap.errors import InputError
from chimap.methods import Method
from chimap.physics.units import radians_per_ppm
from chimap.plan import Plan
from chimap.scan import Maps
from chimap.segmentation import CALCIFICATION, HAEMORRHAGE, Segmentation, region
from chimap.simulation.head import Head

ROUNDS = 3
"""How often every method is timed, in turns, after a run that does not count."""
TIMED = "axial"
"""Case on which seconds and memory are measured; the first one where it is not chosen."""

Begin = Callable[[str, int], None]


@dataclass(frozen=True)
class Row:
    """One method on one case of one head in one track.

    Attributes:
        case: Its name.
        head: Of the person.
        track: What the method was given.
        method: Its name.
        values: {measure with its unit: value}; what cannot be measured is NaN.
        seconds: Of the inversion alone; of one run, or the median on the case that is timed. None after a failure.
        spots: (true, found) mean chi [ppm] of each lesion of the case "linearity".
        failure: Why there is no map, one sentence.
    """

    case: str
    head: str
    track: Track
    method: str
    values: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    spots: tuple[tuple[float, float], ...] = ()
    failure: str | None = None


@dataclass(frozen=True)
class Stages:
    """What the field stages, the same for all inversions, made of one case of one head.

    Attributes:
        case: Its name.
        head: Of the person.
        shape: Grid.
        voxel_size: [mm].
        seconds: {stage: seconds}.
        values: Shares of the true mask and of the lesions that are kept, error of the local field [%].
        picture: Name of the file that shows the maps, without suffix; None where the case could not be made.
        failure: Why there are no fields, one sentence.
    """

    case: str
    head: str
    shape: Shape
    voxel_size: Triple
    seconds: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    picture: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Speed:
    """One method on the case that is timed.

    Attributes:
        method: Its name.
        seconds: Of every round; empty after a failure.
        memory: Peak on top of the inputs [MiB], None after a failure.
        failure: Why one of them is missing, one sentence.
    """

    method: str
    seconds: tuple[float, ...] = ()
    memory: float | None = None
    failure: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


@dataclass(frozen=True)
class Study:
    """Everything that was measured; `timed` is the case and the track on which `speed` was."""

    rows: tuple[Row, ...]
    stages: tuple[Stages, ...]
    speed: tuple[Speed, ...]
    timed: str


def run(
    cases: Sequence[Case],
    methods: Sequence[Method],
    persons: Sequence[Person],
    *,
    shape: Shape,
    pictures: Path,
    device: torch.device | None = None,
    begin: Begin | None = None,
) -> Study:
    """Run every method on every case of every person, one case at a time.

    A method that fails, and a case that cannot be made of a head, cost their own rows only.

    Args:
        cases: From `cases.chosen`.
        methods: From `inputs.chosen`.
        persons: From `cases.people`.
        shape: Grid of the cases of 1 mm.
        pictures: Folder for one picture for each case, with "-head2" and so on for further persons.
        device: Of the methods; heads, field stages and measures stay on the CPU.
        begin: Called with the name of each step and the number of steps.
    """
    device = device or torch.device("cpu")
    order = in_order_of_heads(cases)
    timed = next((case for case in order if case.name == TIMED), cases[0])
    steps = len(persons) * len(order) * (2 + len(TRACKS)) + len(methods) + 1

    def step(name: str) -> None:
        if begin is not None:
            begin(name, steps)

    rows: list[Row] = []
    stages: list[Stages] = []
    speed: list[Speed] = []
    with torch.no_grad():
        for number, person in enumerate(persons, start=1):
            simulator = Simulator(person, shape)
            for case in order:
                step(f"{case.name}: simulating")
                grid, size = case.grid(shape)
                try:
                    subject = simulator(case)
                except InputError as problem:
                    why = f"the case could not be made of this head: {_one_line(problem)}"
                    stages.append(Stages(case.name, person.name, grid, size, failure=why))
                    rows += [
                        Row(case.name, person.name, track, method.name, failure=why)
                        for track in TRACKS
                        for method in methods
                    ]
                    continue
                step(f"{case.name}: fields")
                name = case.name if number == 1 else f"{case.name}-head{number}"
                maps, made = _field_stages(subject, Stages(case.name, person.name, grid, size, picture=name))
                stages.append(made)
                picture = figures.Picture(subject, name, upright=case.head_follows)
                given: dict[Track, Inputs | None] = {
                    "inversion": _of_truth(subject, person.seed),
                    "full chain": None
                    if maps is None
                    else of_scan(subject.scan, maps.local_field, maps.mask, maps.total_field, maps.brain_mask),
                }
                for track in TRACKS:
                    step(f"{case.name}: {track}")
                    for method in methods:
                        if track not in ENTRIES[method.stage].tracks:
                            continue
                        row = Row(case.name, person.name, track, method.name, failure=made.failure)
                        inputs = given[track]
                        if inputs is not None:
                            row = _measured(row, method, inputs, subject, device, picture)
                        if row.failure is not None:
                            picture.fail(track, method.name)
                        rows.append(row)
                (pictures / f"{name}.png").write_bytes(picture.draw([method.name for method in methods]))
                if case is timed and number == 1:
                    speed += _speed(methods, given, device, step)
                del subject, maps, given, picture
    medians = {one.method: one.median for one in speed}
    rows = [_with_median(row, timed.name, persons[0].name, medians) for row in rows]
    places = {name: number for number, name in enumerate(case.name for case in cases)}
    rows.sort(key=lambda row: places[row.case])
    stages.sort(key=lambda one: places[one.case])
    return Study(tuple(rows), tuple(stages), tuple(speed), timed.name)


def _field_stages(subject: Subject, empty: Stages) -> tuple[Maps | None, Stages]:
    """Maps of everything before the inversion, with our own mask, and what they are worth."""
    try:
        maps = pipeline.reconstruct(subject.scan, Plan(inversion="tkd"))  # the fastest; its chi is not used
    except Exception as problem:
        return None, replace(empty, failure=f"the field stages failed: {_sentence(problem)}")
    truth, inside = subject.truth, maps.mask & subject.truth.mask
    values = {"true mask kept [%]": float(100 * inside.sum() / truth.mask.sum())}
    marked = _lesions(subject) & truth.mask
    if marked.any():
        values["lesions kept [%]"] = float(100 * (marked & inside).sum() / marked.sum())
    if inside.any():
        values["local field, NRMSE [%]"] = metrics.nrmse(maps.local_field, truth.local_field, inside, demean=True)
    seconds = {name: value for name, value in maps.seconds.items() if name != "inversion"}
    return maps, replace(empty, seconds=seconds, values=values)


def _of_truth(subject: Subject, seed: int) -> Inputs:
    """True local field, field error and noise: what perfect field stages would give."""
    scan, truth = subject.scan, subject.truth
    # a phase without signal is evenly distributed, so that no field is noisier than this
    most = math.pi / math.sqrt(3) / radians_per_ppm(scan.echo_times[0], scan.field_strength)
    noise = torch.randn(truth.chi.shape, generator=torch.Generator().manual_seed(seed))
    measured = truth.local_field + truth.field_error + noise * truth.field_noise.clamp_max(most)
    return Inputs(
        measured * truth.mask,
        truth.mask,
        scan.voxel_size,
        scan.b0_direction,
        magnitude=scan.magnitude,
        echo_times=scan.echo_times,
        field_strength=scan.field_strength,
    )


def _measured(
    row: Row,
    method: Method,
    inputs: Inputs,
    subject: Subject,
    device: torch.device,
    picture: figures.Picture,
) -> Row:
    """The row of one method; the map goes into the picture."""
    truth = subject.truth
    inside = inputs.mask & truth.mask
    try:
        given = inputs.to(device)
        start = _now(device)
        chi, _ = ENTRIES[method.stage].call(given, method.name)
        seconds = _now(device) - start
        chi = chi.float().cpu()
        if not torch.isfinite(chi[inside]).all():
            return replace(row, failure="chi is not finite everywhere in the mask")
    except Exception as problem:
        return replace(row, failure=_sentence(problem))
    if not inside.any():
        return replace(row, failure="no voxel of the mask lies in the true one")
    found, true = (torch.where(inside, volume - volume[inside].mean(), 0) for volume in (chi, truth.chi))
    picture.add(row.track, method.name, found, true, inside)
    values, spots = _scores(found, true, inside, subject)
    return replace(row, values=values, seconds=seconds, spots=spots)


def _scores(
    found: Volume, true: Volume, inside: Mask, subject: Subject
) -> tuple[dict[str, float], tuple[tuple[float, float], ...]]:
    """Measures of two maps whose means in the mask are 0, and the means of the lesions of the case "linearity"."""
    values = {
        "NRMSE [%]": metrics.nrmse(found, true, inside),
        "dNRMSE [%]": metrics.dnrmse(found, true, inside),
        "slope": metrics.slope(found, true, inside),
        "correlation": metrics.correlation(found, true, inside),
        "XSIM": metrics.xsim(found, true, inside),
        "HFEN [%]": metrics.hfen(found, true, inside),
    }
    head = subject.head
    values |= regional.summary(found, true, inside, _segmentation(head), head.voxel_size)
    for kind in ("calcification", "haemorrhage"):
        wanted = abs(values.get(f"{kind}: true moment [ppm voxel]", 0.0))
        if wanted > 0:
            off = values[f"{kind}: deviation of the moment [ppm voxel]"]
            values[f"{kind}: deviation of the moment [%]"] = 100 * off / wanted
    spots = []
    for spot in subject.spots:
        where = spot_region(head, spot) & inside
        if where.any():
            spots.append((lesion_metrics.lesion_mean(true, where), lesion_metrics.lesion_mean(found, where)))
    if len(spots) > 1:
        line = lesion_metrics.lesion_linearity([one for one, _ in spots], [other for _, other in spots])
        values |= {f"lesions: {name}": value for name, value in line.items()}
    return values, tuple(spots)


def _segmentation(head: Head) -> Segmentation:
    return Segmentation(head.labels, head.label_names, "table")


def _lesions(subject: Subject) -> Mask:
    return region(_segmentation(subject.head), CALCIFICATION | HAEMORRHAGE | {TEST_LESION})


def _speed(
    methods: Sequence[Method],
    given: dict[Track, Inputs | None],
    device: torch.device,
    step: Callable[[str], None],
) -> list[Speed]:
    """Seconds of all methods in turns, then the peak memory of each."""
    usable = {method.name: given[ENTRIES[method.stage].tracks[0]] for method in methods}
    on_device = {name: None if inputs is None else inputs.to(device) for name, inputs in usable.items()}
    seconds: dict[str, list[float]] = {method.name: [] for method in methods}
    failures: dict[str, str] = {name: "it had no input" for name, inputs in usable.items() if inputs is None}
    step("seconds")
    for number in range(ROUNDS + 1):
        for method in methods:
            inputs = on_device[method.name]
            if inputs is None or method.name in failures:
                continue
            try:
                start = _now(device)
                ENTRIES[method.stage].call(inputs, method.name)
                if number > 0:
                    seconds[method.name].append(_now(device) - start)
            except Exception as problem:
                failures[method.name] = _sentence(problem)
    del on_device
    found = []
    for method in methods:
        step(f"memory: {method.name}")
        inputs, memory = usable[method.name], None
        if inputs is not None and method.name not in failures:
            try:
                memory = peak_memory(inputs, method, device)
            except Exception as problem:
                failures[method.name] = _sentence(problem)
        found.append(Speed(method.name, tuple(seconds[method.name]), memory, failures.get(method.name)))
    return found


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _with_median(row: Row, case: str, head: str, medians: dict[str, float | None]) -> Row:
    """Seconds of one run give way to the median where the method was timed on the same input."""
    first = ENTRIES["inversion"].tracks[0]
    median = medians.get(row.method)
    if row.seconds is None or median is None or (row.case, row.head, row.track) != (case, head, first):
        return row
    return replace(row, seconds=median)


def _sentence(problem: Exception) -> str:
    """What went wrong: an `InputError` speaks for itself, others are named."""
    text = _one_line(problem)
    return text if isinstance(problem, InputError) else f"{type(problem).__name__}: {text}"


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__
