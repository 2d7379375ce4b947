"""Which of the volumes in a DICOM folder are an acquisition, and what the others are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chimap.errors import InputError
from chimap.io import checks
from chimap.io.dicom_headers import Rest, Stack, check_stack


@dataclass(frozen=True)
class Acquisition:
    """Volumes that make one scan, by echo time.

    Attributes:
        phase: Phase, or the real part where `imaginary` is not empty.
        imaginary: Beside `phase`, or empty.
        magnitude: Beside `phase`, of both echoes for a phase difference; empty where none belongs to it.
        pair: Echo times [s] of a phase difference.
        warnings: What was assumed, one sentence each.
    """

    phase: tuple[Stack, ...]
    imaginary: tuple[Stack, ...] = ()
    magnitude: tuple[Stack, ...] = ()
    pair: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """All volumes."""
        return (*self.phase, *self.imaginary, *self.magnitude)


@dataclass(frozen=True)
class Row:
    """One kind of image of one series, for the table of a folder.

    Attributes:
        series: SeriesNumber, None for files that are no DICOM.
        description: As typed at the scanner.
        kind: Phase, magnitude, real, ….
        echo_times: [s].
        shape: Columns, rows and slices.
        spacing: Along them [mm].
        use: What `chimap run` does with it, or why nothing.
        usable: Whether it takes part in an acquisition.
    """

    series: int | None
    description: str
    kind: str
    echo_times: tuple[float, ...]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    use: str
    usable: bool


def choose(
    stacks: Sequence[Stack],
    folder: Path,
    *,
    series: Sequence[int] = (),
    echo_times: Sequence[float] | None = None,
) -> Acquisition:
    """The one acquisition in a folder, or in some of its series.

    Args:
        stacks: All volumes.
        folder: For messages.
        series: Numbers that hold the phase, or its real and imaginary parts, and, if any of them does, the magnitude.
        echo_times: [s], the user's: decide whether a phase may be a difference.

    Raises:
        InputError: There is none, more than one, or one that cannot be used.
    """
    found = _candidates([stack for stack in stacks if not series or stack.first.series in series])
    for number in series:
        if number not in {stack.first.series for stack in stacks}:
            raise InputError(f"{folder}: there is no series {number} with MR images, but {_listed(stacks)}")
    if not found:
        where = f"{folder}: no phase images were found" + (f" in series {_all(series)}" if series else "")
        raise InputError(f"{where}, but {_listed(stacks)}")
    if len(found) > 1:
        phases = [stack for phase in found for stack in phase]
        how = "choose one of them with --series NUMBER"
        if any(_shares_number(phase, found) for phase in found):
            how = "put the series of one study into a folder of its own, as numbers occur twice"
        repeated = f"; {checks.SEVERAL}" if _alike(phases) else ""
        raise InputError(
            f"{folder}: more than one acquisition with phase images was found ({_listed(phases)}); {how}{repeated}"
        )
    chosen = [stack for stack in stacks if stack.first.series in series]
    narrowed = chosen if any(stack.first.kind == "magnitude" for stack in chosen) else stacks
    return _acquisition(found[0], narrowed, echo_times)


def table(stacks: Sequence[Stack], rest: Sequence[Rest]) -> list[Row]:
    """What a folder holds and what would become of it, by series and kind of image."""
    rows: dict[tuple[str, str], list[Stack]] = {}
    for stack in stacks:
        rows.setdefault((stack.first.uid, stack.first.kind), []).append(stack)
    uses: dict[int, str] = {}  # by identity: records with arrays have no other
    problems: dict[int, str] = {}
    candidates = _candidates(stacks)
    for phase in candidates:
        numbers = " ".join(map(str, _series(phase)))
        hint = f", --series {numbers}" if len(candidates) > 1 else ""
        if _shares_number(phase, candidates):
            hint = ", in a folder of its own"
        try:
            acquisition = _acquisition(phase, stacks, None)
        except InputError as problem:
            problems |= {id(stack): _without_name(str(problem), phase) for stack in phase}
            continue
        name = "phase"
        if acquisition.pair is not None:
            name = f"phase difference, {1000 * (acquisition.pair[1] - acquisition.pair[0]):.4g} ms"
        uses |= {id(stack): f"{name}{hint}" for stack in (*acquisition.phase, *acquisition.imaginary)}
        beside = f"magnitude of {numbers}" if len(candidates) > 1 else "magnitude"
        for stack in acquisition.magnitude:
            uses[id(stack)] = f"{uses[id(stack)]}, {beside}" if id(stack) in uses else beside
    phases = [stack for phase in candidates for stack in phase]
    made = []
    for members in rows.values():
        own = dict.fromkeys(uses[id(stack)] for stack in members if id(stack) in uses)
        known = dict.fromkeys(problems[id(stack)] for stack in members if id(stack) in problems)
        use = "; ".join(own) or "; ".join(f"cannot be used: {problem}" for problem in known)
        made.append(_row(members, use or f"not used: {_why_not(members, phases)}", usable=bool(own)))
    others = [
        Row(
            some.series,
            some.description,
            "",
            (),
            (0, 0, 0),
            (0.0, 0.0, 0.0),
            f"not used: {some.files} file{'s' * (some.files > 1)}, {some.why}",
            False,
        )
        for some in rest
    ]
    return sorted([*made, *others], key=lambda row: (row.series is None, row.series or 0))


def same_place(a: Stack, b: Stack) -> bool:
    """Whether two volumes have the same voxels."""
    if (a.first.rows, a.first.columns, len(a.frames)) != (b.first.rows, b.first.columns, len(b.frames)):
        return False
    return bool(np.allclose(a.corners(), b.corners(), atol=0.01 * float(np.linalg.norm(b.first.along_row))))


def _candidates(stacks: Sequence[Stack]) -> list[list[Stack]]:
    """Phase (or, where there is none, real) volumes of each acquisition: of one series, or of one series per echo."""
    for kind in ("phase", "real"):
        series: dict[str, list[Stack]] = {}
        for stack in stacks:
            if stack.first.kind == kind:
                series.setdefault(stack.first.uid, []).append(stack)
        if series:
            break
    else:
        return []
    groups: list[list[list[Stack]]] = []
    for members in series.values():
        beside = next((group for group in groups if _alike([*group[0], *members])), None)
        if beside is None:
            groups.append([members])
        else:
            beside.append(members)
    found = []
    for group in groups:
        together = [stack for members in group for stack in members]
        # series with different echo times are the echoes of one acquisition, with the same ones they are repetitions
        found += [together] if len(group) == 1 or not _repeated(together) else group
    return [sorted(phase, key=lambda stack: stack.first.echo_time) for phase in found]


def _shares_number(phase: Sequence[Stack], candidates: Sequence[Sequence[Stack]]) -> bool:
    others = [stack for other in candidates if other is not phase for stack in other]
    return bool(set(_series(phase)) & set(_series(others)))


def _alike(stacks: Sequence[Stack]) -> bool:
    first = stacks[0]
    return all(_same_protocol(stack, first) and same_place(stack, first) for stack in stacks)


def _same_protocol(a: Stack, b: Stack) -> bool:
    return (a.first.study, a.first.protocol) == (b.first.study, b.first.protocol)


def _repeated(stacks: Sequence[Stack]) -> bool:
    times = sorted(stack.first.echo_time for stack in stacks)
    return any(checks.same_time(a, b) for a, b in zip(times, times[1:], strict=False))


def _acquisition(phase: Sequence[Stack], stacks: Sequence[Stack], echo_times: Sequence[float] | None) -> Acquisition:
    for stack in phase:
        check_stack(stack)
        if not same_place(stack, phase[0]):
            raise InputError(
                f"{stack.name} has other voxels than {phase[0].name}: {_size(stack)} and {_size(phase[0])}, "
                "or elsewhere; needed echoes of one grid"
            )
    if phase[0].first.kind == "real":
        return Acquisition(tuple(phase), tuple(_imaginary(stack, stacks) for stack in phase))
    pair, warnings = _echo_pair(phase, stacks)
    if echo_times is not None and pair is not None and not _says_difference(echo_times, pair):
        pair, warnings = None, []
    return Acquisition(tuple(phase), (), tuple(_magnitude(phase, pair, stacks)), pair, tuple(warnings))


def _imaginary(real: Stack, stacks: Sequence[Stack]) -> Stack:
    def fits(stack: Stack) -> bool:
        same = checks.same_time(stack.first.echo_time, real.first.echo_time) and _same_protocol(stack, real)
        return stack.first.kind == "imaginary" and same and same_place(stack, real)

    found = [stack for stack in stacks if fits(stack)]
    if not found:
        raise InputError(f"{real.name}: no imaginary part with the same voxels was found")
    nearest = min(found, key=lambda stack: abs(stack.first.series - real.first.series))
    check_stack(nearest)
    return nearest


def _magnitude(phase: Sequence[Stack], pair: tuple[float, float] | None, stacks: Sequence[Stack]) -> list[Stack]:
    """Magnitude of each phase volume, of both echoes for a phase difference; empty where one is missing."""
    times = [stack.first.echo_time for stack in phase] if pair is None else sorted(pair)
    chosen = []
    for echo, time in enumerate(times):
        own = phase[min(echo, len(phase) - 1)]
        found = [stack for stack in _magnitudes_on(own, stacks) if checks.same_time(stack.first.echo_time, time)]
        if not found:
            return []
        # scanners store the magnitude right before or after its phase
        chosen.append(min(found, key=lambda stack: abs(stack.first.series - own.first.series)))
    for stack in chosen:
        check_stack(stack)
    return chosen


def _magnitudes_on(phase: Stack, stacks: Sequence[Stack]) -> list[Stack]:
    """Magnitude volumes of a phase volume's study and grid, those of its protocol where there are any."""

    def fits(stack: Stack) -> bool:
        of_study = stack.first.study == phase.first.study
        return stack.first.kind == "magnitude" and of_study and same_place(stack, phase)

    found = [stack for stack in stacks if fits(stack)]
    return [stack for stack in found if _same_protocol(stack, phase)] or found


def _echo_pair(phase: Sequence[Stack], stacks: Sequence[Stack]) -> tuple[tuple[float, float] | None, list[str]]:
    """Echo times of a phase difference: one phase, headed as the later of exactly two echoes of magnitude."""
    if len(phase) != 1:
        return None, []
    own = phase[0].first
    found = _magnitudes_on(phase[0], stacks)
    nearest = min((abs(stack.first.series - own.series) for stack in found), default=0)
    times = sorted({stack.first.echo_time for stack in found if abs(stack.first.series - own.series) == nearest})
    if len(times) != 2 or not checks.same_time(times[1], own.echo_time):
        return None, []
    if own.sequence.startswith("*fm"):  # Siemens' field mapping stores nothing but the difference
        return (times[0], times[1]), []
    return (times[0], times[1]), [
        f"Assumed: {phase[0].name} is a phase difference, as it is the only phase image beside two echoes of "
        "magnitude; where it is the phase of the later echo, give --echo-times."
    ]


def _says_difference(echo_times: Sequence[float], pair: tuple[float, float]) -> bool:
    return len(echo_times) == 1 and not checks.same_time(echo_times[0], pair[1])


def _why_not(members: Sequence[Stack], phases: Sequence[Stack]) -> str:
    """Why the volumes of one series and kind belong to no acquisition."""
    kind = members[0].first.kind

    def some(fits: Callable[[Stack, Stack], bool]) -> bool:
        return any(fits(stack, phase) for stack in members for phase in phases)

    if kind == "derived":
        return "computed on the scanner (mosaic, projection, SWI, field map)"
    if kind == "other":
        return "its header calls it neither phase nor magnitude"
    if not phases:
        return "there is no phase beside it"
    if kind in ("real", "imaginary"):
        return "phase images are there" if phases[0].first.kind == "phase" else "there is no real part beside it"
    if phases[0].first.kind == "real":
        return "magnitude comes from the real and imaginary parts"
    if not some(lambda stack, phase: stack.first.study == phase.first.study):
        return "another study than the phase"
    if not some(same_place):
        return "other voxels than the phase"
    if not some(lambda stack, phase: checks.same_time(stack.first.echo_time, phase.first.echo_time)):
        return "other echo times than the phase"
    return "another series lies nearer to the phase, or an echo is missing"


def _row(members: Sequence[Stack], use: str, *, usable: bool) -> Row:
    first = members[0].first
    normal = [float(frame.position @ first.normal) for frame in members[0].frames]
    gap = float(np.median(np.diff(normal))) if len(normal) > 1 else 0.0
    return Row(
        first.series,
        first.description,
        first.kind,
        tuple(stack.first.echo_time for stack in members),
        (first.columns, first.rows, len(members[0].frames)),
        (float(np.linalg.norm(first.along_row)), float(np.linalg.norm(first.along_column)), gap),
        use,
        usable,
    )


def _without_name(sentence: str, phase: Sequence[Stack]) -> str:
    for stack in phase:
        sentence = sentence.removeprefix(f"{stack.name}: ")
    return sentence


def _size(stack: Stack) -> str:
    return f"{stack.first.columns} x {stack.first.rows} x {len(stack.frames)}"


def _series(stacks: Sequence[Stack]) -> list[int]:
    return sorted({stack.first.series for stack in stacks})


def _all(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _listed(stacks: Sequence[Stack]) -> str:
    """What was found, for a user who has to choose."""
    series: dict[tuple[int, str, str], int] = {}
    for stack in stacks:
        key = (stack.first.series, stack.first.description, stack.first.kind)
        series[key] = series.get(key, 0) + 1
    parts = [
        f"series {number} {description!r} ({kind}, {echoes} echo{'es' if echoes > 1 else ''})"
        for (number, description, kind), echoes in series.items()
    ]
    return ", ".join(parts)
