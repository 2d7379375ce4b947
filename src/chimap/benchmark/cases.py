"""The cases of the benchmark: which head, which lesions, which acquisition."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TypeAlias

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from chimap.arrays import Shape, Triple
from chimap.errors import InputError
from chimap.lesion_metrics import LESION_CHI
from chimap.scan import Scan
from chimap.simulation.acquisition import ECHO_TIMES, Truth, acquire, local_field_of
from chimap.simulation.anatomy import label_head
from chimap.simulation.head import Head, angles_for_b0, built_in_head, check_grid, rotation_matrix
from chimap.simulation.labels import LabelMap
from chimap.simulation.lesions import GAP, PLACES, Lesion, add_lesions
from chimap.simulation.tissues import TISSUES

FIELD_OF_VIEW: Triple = (160.0, 192.0, 160.0)
"""What every grid covers [mm]."""
SCALES: dict[str, Shape] = {"full": (160, 192, 160), "quick": (80, 96, 80)}
"""Grids of the cases of 1 mm: at "quick" every voxel is twice as long."""
SEED = 2001
"""Of heads, lesions, noise and field errors; the second head takes the next one, and so on."""
FIELD_ERROR = 0.5
"""Of the cases whose name ends in "-real", as a share of the SD of the local field without lesions."""
TEST_RADIUS = 5.0
"""Of the lesions of the case "linearity" [mm]."""
TEST_LESION = "test lesion"
"""Their name in the head's labels."""


@dataclass(frozen=True)
class Case:
    """One head in one acquisition.

    Attributes:
        name: As given on the command line.
        summary: One line for the table.
        voxel_size: At full scale [mm].
        b0: Direction of B0 in voxel axes.
        head_follows: The head is turned with the grid, so that it stays upright there; otherwise the grid alone is
            turned, over a head that lies straight in the scanner.
        lesions: Put into the head at places that the seed draws.
        linearity: Lesions of all values of `lesion_metrics.LESION_CHI`, far apart.
        echo_times: [s].
        field_strength: [T].
        snr: Of the first echo, see `simulation.acquisition.acquire`.
        field_error: Share of the SD of the local field that the head has without lesions.
    """

    name: str
    summary: str
    voxel_size: Triple = (1.0, 1.0, 1.0)
    b0: Triple = (0.0, 0.0, 1.0)
    head_follows: bool = False
    lesions: tuple[Lesion, ...] = ()
    linearity: bool = False
    echo_times: tuple[float, ...] = ECHO_TIMES
    field_strength: float = 3.0
    snr: float = 50.0
    field_error: float = 0.0

    @property
    def angle(self) -> float:
        """Between B0 and the grid's z [degrees]."""
        return math.degrees(math.acos(max(-1.0, min(1.0, self.b0[2]))))

    def grid(self, shape: Shape) -> tuple[Shape, Triple]:
        """Shape and voxel size [mm] of this case where those of 1 mm have a grid of `shape`."""
        x, y, z = (size * length / n for size, length, n in zip(self.voxel_size, FIELD_OF_VIEW, shape, strict=True))
        a, b, c = (round(n / size) for n, size in zip(shape, self.voxel_size, strict=True))
        return (a, b, c), (x, y, z)


def _tilted(degrees: int) -> Triple:
    """B0 turned from the grid's z towards its y."""
    angle = math.radians(degrees)
    return 0.0, math.sin(angle), math.cos(angle)


_HAEMORRHAGE = (Lesion("haemorrhage", 1.0, 8.0), Lesion("haemorrhage", 0.5, 5.0))
_CALCIFICATION = (
    Lesion("calcification", -2.0, 5.0),
    Lesion("calcification", -2.6, 3.0),
    Lesion("calcification", -3.3, 4.0),
)

_CLEAN: tuple[Case, ...] = (
    Case(
        "axial",
        "1 mm, B0 along z, 3 T, five echoes from 4 to 28 ms, SNR 50",
    ),
    Case(
        "oblique",
        "a slab at 45 degrees to B0, turned about two axes, over a straight head",
        b0=(0.5, 0.5, math.sqrt(0.5)),
    ),
    Case("anisotropic", "voxels of 0.8 x 0.8 x 2 mm", voxel_size=(0.8, 0.8, 2.0)),
    Case("low-snr", "SNR 10", snr=10.0),
    Case("haemorrhage", "haemorrhages of 1.0 ppm (8 mm radius) and 0.5 ppm (5 mm)", lesions=_HAEMORRHAGE),
    Case(
        "calcification",
        "calcifications of -2.0 ppm (5 mm radius), -2.6 ppm (3 mm) and -3.3 ppm (4 mm), SNR 100",
        lesions=_CALCIFICATION,
        snr=100.0,
    ),
    Case("calcification-low-snr", "the same calcifications, SNR 20", lesions=_CALCIFICATION, snr=20.0),
    Case(
        "7t",
        "7 T, echoes from 5 to 29 ms: many wraps",
        field_strength=7.0,
        echo_times=(0.005, 0.011, 0.017, 0.023, 0.029),
    ),
    Case("single-echo", "one echo at 20 ms", echo_times=(0.020,)),
    Case(
        "linearity",
        f"spots of {TEST_RADIUS:g} mm radius, {LESION_CHI[0]:g} to {LESION_CHI[-1]:g} ppm in steps of 0.2, far apart",
        linearity=True,
    ),
    *(
        Case(
            f"orientation-{degrees:02d}",
            f"B0 at {degrees} degrees to the grid's z; the head turns with the grid",
            b0=_tilted(degrees),
            head_follows=True,
        )
        for degrees in range(0, 91, 10)
    ),
)
_WITH_FIELD_ERROR = ("axial", "oblique", "anisotropic", "haemorrhage", "calcification")

CASES: tuple[Case, ...] = (
    *(
        replace(
            case,
            name=f"{case.name}-real",
            summary=f"{case.summary}; field error of {100 * FIELD_ERROR:g} %",
            field_error=FIELD_ERROR,
        )
        for case in _CLEAN
        if case.name in _WITH_FIELD_ERROR
    ),
    *_CLEAN,
)
"""Those with field error first: on them methods are chosen.

After the 2019 challenge's phantom (calcification at two noise levels; Marques et al. 2021, doi:10.1002/mrm.28716), the
orientations of iQSM+ (Gao et al. 2024, doi:10.1016/j.media.2024.103160) and the lesions of QSMnet+ (Jung et al. 2020,
doi:10.1016/j.neuroimage.2020.116619)."""


def chosen(patterns: Sequence[str] | None) -> list[Case]:
    """Cases by name, by a pattern such as "*-real", or by the beginning of the name; all if None.

    Raises:
        InputError: A pattern that fits no case.
    """
    if patterns is None:
        return list(CASES)
    wanted: set[str] = set()
    for pattern in patterns:
        exact = {case.name for case in CASES if case.name == pattern}
        globbed = {case.name for case in CASES if fnmatchcase(case.name, pattern)}
        begun = {case.name for case in CASES if pattern and case.name.startswith(pattern)}
        found = exact or globbed or begun
        if not found:
            raise InputError(f"no case is called {pattern!r}; there are {', '.join(case.name for case in CASES)}")
        wanted |= found
    return [case for case in CASES if case.name in wanted]


Maker: TypeAlias = Callable[[Shape, Triple, Triple], Head]
"""From a grid, a voxel size [mm] and the grid's rotation [rad] to a head."""


@dataclass(frozen=True)
class Person:
    """Whose head it is.

    Attributes:
        name: For the table.
        make: The head on a grid.
        seed: Of everything that is drawn for this person.
    """

    name: str
    make: Maker
    seed: int


def people(label_maps: Sequence[LabelMap]) -> list[Person]:
    """One person for each label map, or the built-in head where there is none."""
    if not label_maps:

        def built_in(shape: Shape, voxel_size: Triple, grid_rotation: Triple) -> Head:
            return built_in_head(shape, voxel_size, grid_rotation=grid_rotation, seed=SEED)

        return [Person("built-in head", built_in, SEED)]
    return [_person(label_map, SEED + index) for index, label_map in enumerate(label_maps)]


def _person(label_map: LabelMap, seed: int) -> Person:
    def make(shape: Shape, voxel_size: Triple, grid_rotation: Triple) -> Head:
        return label_head(label_map, shape, voxel_size, grid_rotation=grid_rotation, seed=seed)

    return Person(label_map.name, make, seed)


def check_shape(shape: Shape) -> None:
    """Refuse a grid on which no head can be made.

    Raises:
        InputError: Says what is wrong with it.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"the grid is {tuple(shape)}, needed three sizes above 0")
    for case in CASES:
        check_grid(*case.grid(shape), 1.0)


@dataclass(frozen=True)
class Spot:
    """A lesion of the case "linearity": its value [ppm] and its middle in voxels."""

    chi: float
    centre: tuple[float, float, float]


@dataclass(frozen=True)
class Subject:
    """A case made of a person's head."""

    head: Head
    scan: Scan
    truth: Truth
    spots: tuple[Spot, ...]


class Simulator:
    """Makes the cases of one person, and keeps the last head without lesions: most cases share it."""

    def __init__(self, person: Person, shape: Shape) -> None:
        self.person, self.shape = person, shape
        self._key: tuple[Shape, Triple, Triple] | None = None
        self._head: Head | None = None

    def __call__(self, case: Case) -> Subject:
        """The case's head, scan and truth.

        Raises:
            InputError: The brain has no room for the case's lesions.
        """
        bare = self._bare(case)
        seed = self.person.seed
        generator = torch.Generator().manual_seed(seed)
        head = add_lesions(bare, case.lesions, generator)
        spots: tuple[Spot, ...] = ()
        if case.linearity:
            head, spots = _with_spots(head, generator)
        if case.head_follows:
            head = turned(head, case.b0)
        scan, truth = acquire(
            head,
            echo_times=case.echo_times,
            field_strength=case.field_strength,
            snr=case.snr,
            field_error=_field_error(case, bare, head),
            seed=seed,
        )
        return Subject(head, scan, truth, spots)

    def _bare(self, case: Case) -> Head:
        grid, size = case.grid(self.shape)
        rotation = (0.0, 0.0, 0.0) if case.head_follows else angles_for_b0(case.b0)
        key = (grid, size, rotation)
        if self._head is None or key != self._key:
            self._head = None  # before the next is made: two heads need twice the memory
            self._head, self._key = self.person.make(grid, size, rotation), key
        return self._head


def _field_error(case: Case, bare: Head, head: Head) -> float:
    """The case's share of the SD of the bare head's local field, as a share of that of the head with lesions.

    A lesion makes the local field several times stronger, but the tissues' misfit to the dipole model no worse.
    """
    if not case.field_error > 0 or not case.lesions:
        return case.field_error
    without, with_lesions = (float(local_field_of(one)[one.mask].std()) for one in (bare, head))
    return case.field_error * without / with_lesions


def in_order_of_heads(cases: Sequence[Case]) -> list[Case]:
    """Cases that share a head one after the other."""
    return sorted(cases, key=lambda case: (case.voxel_size, (0.0, 0.0, 1.0) if case.head_follows else case.b0))


def turned(head: Head, b0: Triple) -> Head:
    """The head with its grid around it turned so that B0 has this direction in voxel axes: only the affine changes."""
    turn = np.eye(4)
    turn[:3, :3] = rotation_matrix(angles_for_b0(b0)).numpy()
    return replace(head, affine=turn @ head.affine)


def _with_spots(head: Head, generator: torch.Generator) -> tuple[Head, tuple[Spot, ...]]:
    """The head with one lesion of each value of `LESION_CHI`."""
    places = _far_apart(head, len(LESION_CHI), 1.4 * TEST_RADIUS)
    order = torch.randperm(len(LESION_CHI), generator=generator).tolist()  # no value has its place by size
    lesions, spots = [], []
    for chi, number in zip(LESION_CHI, order, strict=True):
        voxel = places[number]
        x, y, z = (float(value) for value in head.affine[:3, :3] @ voxel + head.affine[:3, 3])
        lesions.append(Lesion("microbleed", chi, TEST_RADIUS, (x, y, z)))  # all but a sphere
        spots.append(Spot(chi, (float(voxel[0]), float(voxel[1]), float(voxel[2]))))
    head = add_lesions(head, lesions, generator)
    names = {**head.label_names, TISSUES["microbleed"].label: TEST_LESION}
    return replace(head, label_names=names), tuple(spots)


def _far_apart(head: Head, count: int, radius: float) -> np.ndarray:
    """Voxels (count, 3) in white or deep grey matter, each as far from those before it as can be.

    Raises:
        InputError: There is no room for `count` spheres of this radius [mm].
    """
    depth = np.asarray(distance_transform_edt(np.pad(head.mask.numpy(), 1), sampling=head.voxel_size))[1:-1, 1:-1, 1:-1]
    numbers = [label for label, name in head.label_names.items() if name in PLACES]
    free = np.isin(head.labels.numpy(), numbers) & (depth > radius + max(max(head.voxel_size), GAP))
    voxels = np.argwhere(free)
    size = np.asarray(head.voxel_size)
    if len(voxels) >= count:
        middle = np.argwhere(head.mask.numpy()).mean(axis=0)
        away = np.linalg.norm((voxels - middle) * size, axis=1)
        found = [int(away.argmax())]
        away = np.linalg.norm((voxels - voxels[found[0]]) * size, axis=1)
        while len(found) < count and away.max() > 2 * radius:
            found.append(int(away.argmax()))
            away = np.minimum(away, np.linalg.norm((voxels - voxels[found[-1]]) * size, axis=1))
        if len(found) == count:
            return voxels[found]
    raise InputError(f"the brain has no room for {count} lesions of {TEST_RADIUS:g} mm radius that keep apart")


def spot_region(head: Head, spot: Spot) -> Tensor:
    """Voxels that a lesion of the case "linearity" fills by more than half, shape (x, y, z)."""
    axes = [
        (torch.arange(n) - middle) * size
        for n, middle, size in zip(head.shape, spot.centre, head.voxel_size, strict=True)
    ]
    near = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2 < (2 * TEST_RADIUS) ** 2
    return near & (head.labels == TISSUES["microbleed"].label)
