"""Label maps of people (FreeSurfer's numbers) as classes of our own, packed into one small file.

What happens to a map on the way in: its numbers become tissues; the nuclei that no map has are placed; sulcal
fluid, which a brain mask holds, is told from the fluid outside; thick parts of the dura become venous sinuses;
a map without skull and scalp gets them; below the field of view the neck goes on.
"""

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from skimage.measure import label
from torch import Tensor

from chimap.arrays import Triple
from chimap.errors import InputError
from chimap.simulation.nuclei import DENTATE, SMALL_NUCLEI, dentate
from chimap.simulation.tissues import TISSUES

# Numbers of FreeSurfer's colour table. From 502 on: classes outside the brain in the training maps of SynthSeg
# (Billot et al. 2023, doi:10.1016/j.media.2023.102789), which have no published names; told by their place.
FREESURFER: dict[str, tuple[int, ...]] = {
    "air": (0,),
    "white matter": (2, 41, 77, 78, 79, 80, 81, 82, 85, 86, 250, 251, 252, 253, 254, 255, 5001, 5002, 25, 57, 192, 219),
    "grey matter": (3, 42, 19, 20, 55, 56, 32, 33, 64, 65, 136, 137, 163, 164, 190, 191, 220),
    "csf": (4, 5, 14, 15, 22, 30, 31, 43, 44, 62, 63, 72, 213, 221),  # 30 and 62 mark fluid around vessels
    "cerebellar white matter": (7, 46),
    "cerebellar cortex": (6, 8, 45, 47, 172),
    "thalamus": (9, 10, 48, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "brain stem": (16, 170, 171, 173, 174, 175, 178),
    "hippocampus": (17, 53),
    "amygdala": (18, 54, 96, 97),
    "accumbens": (26, 58),
    "substantia nigra": (27, 59),
    "ventral diencephalon": (28, 60),
    "outer fluid": (24, 122, 257),
    "spinal cord": (512,),
    "artery": (502,),
    "eye": (259, 260, 506),
    "muscle": (258, 507, 508, 530),
    "mucosa": (509,),
    "skin": (511,),  # with the fat below it
    "dura": (514,),  # with the venous sinuses that it holds
    "bone": (165, 515),
    "diploe": (516,),
}
_PARCELS = {"grey matter": range(1000, 3000), "white matter": range(3000, 5000)}
_LEFT = {"caudate": 11, "putamen": 12, "pallidum": 13, "thalamus": 10, "hippocampus": 17, "amygdala": 18}
_LEFT |= {"accumbens": 26, "ventral diencephalon": 28}
_RIGHT = {11: 50, 12: 51, 13: 52, 10: 49, 17: 53, 18: 54, 26: 58, 28: 60, 7: 46}

# About where the middles of the left structures lie [mm of MNI space]; compare the Harvard-Oxford atlas (Desikan et
# al. 2006, doi:10.1016/j.neuroimage.2006.01.021).
_MIDDLES: dict[str, Triple] = {
    "caudate": (-13.0, 9.0, 10.0),
    "putamen": (-25.0, 0.5, 0.5),
    "pallidum": (-19.0, -5.0, -1.0),
    "thalamus": (-10.5, -19.0, 6.5),
    "hippocampus": (-25.5, -23.0, -14.0),
    "amygdala": (-23.0, -5.0, -18.0),
    "accumbens": (-9.5, 11.5, -7.0),
    "ventral diencephalon": (-10.0, -14.5, -9.5),
}
REACH = 5.0
"""Gaps up to twice as wide [mm] between folds belong to the brain mask."""


@dataclass(frozen=True)
class LabelMap:
    """The head of one person.

    Attributes:
        classes: Labels of `tissues.TISSUES`, uint8, shape (x, y, z), axes to the right, the front and up. The
            lowest slice goes on below; around everything is air.
        voxel_size: [mm].
        middle: Of the brain's bounding box [mm] from the first voxel.
        half_size: Of the brain's bounding box [mm].
        name: Where it comes from.
    """

    classes: Tensor
    voxel_size: Triple
    middle: Triple
    half_size: Triple
    name: str


def from_freesurfer(numbers: np.ndarray, voxel_size: Triple, *, name: str) -> LabelMap:
    """Make a label map of FreeSurfer's numbers.

    Args:
        numbers: Integers (x, y, z), axes to the right, the front and up: an aseg, with or without cortical
            parcels, or one that goes on to the skin.
        voxel_size: [mm].
        name: Of the file, for messages.

    Raises:
        InputError: Numbers that are not FreeSurfer's, or no brain.
    """
    classes = _classes(numbers, name)
    inside = np.argwhere(classes != TISSUES["air"].label)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    numbers, classes = np.asarray(numbers)[box].astype(np.int32), classes[box]
    whole_head = (classes == TISSUES["bone"].label).sum() > 1000
    margin = np.round((4 if whole_head else 20) / np.asarray(voxel_size)).astype(int)
    below = 0 if whole_head else int(10 / voxel_size[2])
    around = [(int(margin[0]),) * 2, (int(margin[1]),) * 2, (below, int(margin[2]))]
    numbers, classes = np.pad(numbers, around), np.pad(classes, around)

    size = np.asarray(voxel_size)
    _place_nuclei(numbers, classes, size)
    brain = _is(classes, *[tissue for tissue, row in TISSUES.items() if row.brain])
    if not brain.any():
        raise InputError(f"{name} holds no number of a brain structure")
    parts = np.asarray(label(brain, connectivity=1))
    largest = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    classes[brain & ~largest] = TISSUES["outer fluid"].label  # specks in the neck and the face
    closed = _closed(largest, REACH, size)
    fluid = _is(classes, "outer fluid")
    classes[fluid & closed] = TISSUES["csf"].label
    if whole_head:
        _fill_gaps(classes, closed, size)
        _detail_the_outside(classes, size)
    else:
        _add_the_outside(classes, closed, size)
    inside = np.argwhere(_is(classes, "white matter", "grey matter", "cerebellar cortex"))
    low, high = (np.quantile(inside, share, axis=0) * size for share in (0.0005, 0.9995))
    triples = ((float(x), float(y), float(z)) for x, y, z in (size, (low + high) / 2, (high - low) / 2))
    return LabelMap(torch.from_numpy(classes), *triples, name=name)


def write_packed(path: Path, maps: Sequence[LabelMap]) -> None:
    """Write label maps into one compressed file (NumPy's npz), the same bytes for the same maps."""
    arrays = {f"{index:03d}": label_map.classes.numpy() for index, label_map in enumerate(maps)}
    about = [
        {"name": one.name, "voxel_size": one.voxel_size, "middle": one.middle, "half_size": one.half_size}
        for one in maps
    ]
    text = np.frombuffer(json.dumps({"format": FORMAT, "maps": about}).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez_compressed(file, about=text, **arrays)  # pyright: ignore[reportArgumentType]


FORMAT = "chimap label maps 1"


def read_packed(path: Path, *, device: torch.device | None = None) -> list[LabelMap]:
    """Read what `write_packed` wrote.

    Raises:
        InputError: No such file, or not of that format.
    """
    return list(_read_packed(path, device))


def _read_packed(path: Path, device: torch.device | None) -> Iterator[LabelMap]:
    try:
        with np.load(path, allow_pickle=False) as packed:
            about = json.loads(packed["about"].tobytes())
            if about.get("format") != FORMAT:
                raise InputError(f"{path} is of the format {about.get('format')!r}, needed {FORMAT!r}")
            for index, one in enumerate(about["maps"]):
                classes = torch.from_numpy(packed[f"{index:03d}"]).to(device or "cpu")
                size, middle, half = ((x, y, z) for x, y, z in (one["voxel_size"], one["middle"], one["half_size"]))
                yield LabelMap(classes, size, middle, half, one["name"])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no file of packed label maps (see `chimap pack`): {error}") from None


def _is(classes: np.ndarray, *tissues: str) -> np.ndarray:
    return np.isin(classes, [TISSUES[tissue].label for tissue in tissues])


def _classes(numbers: np.ndarray, name: str) -> np.ndarray:
    numbers = np.asarray(numbers)
    if numbers.ndim != 3:
        raise InputError(f"{name} has the shape {numbers.shape}, needed one volume of labels")
    present = np.unique(numbers)
    if not np.array_equal(present, np.round(present)):
        raise InputError(f"{name} holds values that are no whole numbers: it is no label map")
    table: dict[int, int] = {number: TISSUES[tissue].label for tissue, group in FREESURFER.items() for number in group}
    for tissue, numbers_of in _PARCELS.items():
        table |= {number: TISSUES[tissue].label for number in numbers_of}
    unknown = [int(number) for number in present if int(number) not in table]
    if unknown:
        listed = ", ".join(str(number) for number in unknown[:8])
        raise InputError(f"{name} holds numbers that FreeSurfer's table does not give to a tissue: {listed}")
    if len(present) < 3:
        raise InputError(f"{name} holds {len(present)} labels: needed a map of many structures, such as an aseg")
    order = np.searchsorted(present, numbers)
    return np.array([table[int(number)] for number in present], np.uint8)[order]


def _place_nuclei(numbers: np.ndarray, classes: np.ndarray, size: np.ndarray) -> None:
    """Red nucleus, substantia nigra and subthalamic nucleus into the ventral diencephalon, the dentate nucleus
    into the cerebellum's white matter; left out where the map lacks what they lie in."""
    places = {number: np.argwhere(numbers == number) * size for pair in _RIGHT.items() for number in pair}
    atlas, subject = [], []
    for tissue, left in _LEFT.items():
        for number, mirror in ((left, 1), (_RIGHT[left], -1)):
            if len(places[number]) > 20:
                atlas.append(np.asarray(_MIDDLES[tissue]) * (mirror, 1, 1))
                subject.append(places[number].mean(axis=0))
    if len(atlas) < 8:
        return
    # affine map subject -> atlas that fits the middles best
    columns = np.column_stack([np.asarray(subject), np.ones(len(subject))])
    to_atlas = np.linalg.lstsq(columns, np.asarray(atlas), rcond=None)[0]
    host = np.isin(numbers, (28, 60, 16)) & (classes != TISSUES["substantia nigra"].label)
    _paint(classes, host, to_atlas, size, [nucleus for nucleus in SMALL_NUCLEI if nucleus.distance is not dentate])
    for number, side in ((7, -1.0), (46, 1.0)):
        white = numbers == number
        if white.sum() * size.prod() < 2000:
            continue
        # the middle of the thickest part, a little towards the midline, in atlas coordinates
        depth = ndimage.gaussian_filter(np.asarray(ndimage.distance_transform_edt(white, sampling=size)), 2 / size)
        middle = np.array(np.unravel_index(int(depth.argmax()), depth.shape)) * size
        shift = np.asarray(DENTATE) * (side, 1, 1) - np.append(middle, 1) @ to_atlas
        moved = to_atlas.copy()
        moved[3] += shift
        _paint(classes, white, moved, size, [nucleus for nucleus in SMALL_NUCLEI if nucleus.distance is dentate])


def _paint(classes: np.ndarray, host: np.ndarray, to_atlas: np.ndarray, size: np.ndarray, nuclei: Sequence) -> None:
    where = np.argwhere(host)
    points = torch.from_numpy((np.column_stack([where * size, np.ones(len(where))]) @ to_atlas).T).float()
    points[0] = points[0].abs()
    for nucleus in nuclei:
        inside = (nucleus.distance(points) < 0).numpy()
        classes[tuple(where[inside].T)] = TISSUES[nucleus.name].label


def _closed(mask: np.ndarray, radius: float, size: np.ndarray) -> np.ndarray:
    """Closing by a ball of `radius` mm, and holes filled."""
    margin = [int(radius / length) + 2 for length in size]
    padded = np.pad(mask, [(n, n) for n in margin])
    grown = np.asarray(ndimage.distance_transform_edt(~padded, sampling=size)) <= radius
    closed = padded | (np.asarray(ndimage.distance_transform_edt(grown, sampling=size)) > radius)
    closed = closed[tuple(slice(n, -n) for n in margin)]
    return np.asarray(ndimage.binary_fill_holes(closed))


def _fill_gaps(classes: np.ndarray, closed: np.ndarray, size: np.ndarray) -> None:
    """What a map leaves as 0 inside the head but is no air: dark bone of the vault, slits along the brain.

    Air is what is open to the outside, and what is enclosed, larger than small cells of bone and lies below the middle
    of the brain or in its front quarter, where sinuses are.
    """
    air = _is(classes, "air")
    around = np.pad(air, [(1, 1), (1, 1), (0, 1)], constant_values=True)
    parts = np.asarray(label(around, connectivity=1))[1:-1, 1:-1, :-1]
    outside = parts[0, 0, -1]
    inside = np.argwhere(closed)
    (_, back, low), (_, front, high) = inside.min(axis=0), inside.max(axis=0)
    for index, box in enumerate(ndimage.find_objects(parts), start=1):
        if index == outside or box is None:
            continue
        here = parts[box] == index
        place = [(part.start + part.stop) / 2 for part in box]
        sinus = place[2] < (low + high) / 2 or place[1] > back + 0.75 * (front - back)
        if here.sum() * size.prod() < 60 or not sinus:
            classes[box][here] = TISSUES["bone"].label
    cranium = closed | _is(classes, "outer fluid", "dura")
    slits = air & _closed(cranium, 4.0, size) & ~cranium
    classes[slits] = TISSUES["dura"].label


def _detail_the_outside(classes: np.ndarray, size: np.ndarray) -> None:
    """Sinuses in the dura, fat below the skin and between muscles, the neck below the map."""
    dura = _is(classes, "dura")
    ball = np.asarray(ndimage.distance_transform_edt(dura, sampling=size)) > 1.8
    sinus = dura & (np.asarray(ndimage.distance_transform_edt(~ball, sampling=size)) < 2.2)
    classes[sinus] = TISSUES["venous sinus"].label
    air = _is(classes, "air")
    around = np.pad(air, [(1, 1), (1, 1), (0, 1)], constant_values=True)
    outside = np.asarray(label(around, connectivity=1))[1:-1, 1:-1, :-1]
    depth = np.asarray(ndimage.distance_transform_edt(outside != outside[0, 0, -1], sampling=size))
    skin = _is(classes, "skin")
    classes[skin & (depth > 2)] = TISSUES["fat"].label
    patches = ndimage.zoom(np.random.default_rng(0).standard_normal([n // 6 + 2 for n in classes.shape]), 6, order=1)
    x, y, z = classes.shape
    classes[_is(classes, "muscle") & (patches[:x, :y, :z] > 0.45)] = TISSUES["fat"].label
    # the lowest slice goes on below: of muscle, so that no sinus becomes a tube of air
    neck = np.asarray(ndimage.binary_fill_holes(~_is(classes[:, :, 0], "air")))
    floor = np.where(neck, TISSUES["muscle"].label, TISSUES["air"].label).astype(np.uint8)
    classes[:, :, 0] = np.where(_is(classes[:, :, 0], "air"), floor, classes[:, :, 0])
    rest = ~_is(classes[:, :, 0], "brain stem", "spinal cord", "outer fluid", "muscle", "fat", "skin", "air")
    classes[:, :, 0][rest] = TISSUES["muscle"].label


def _add_the_outside(classes: np.ndarray, closed: np.ndarray, size: np.ndarray) -> None:
    """Fluid, skull, scalp, sinuses and air cells around a brain that came without them."""
    smooth = _closed(closed, 12.0, size)
    distance = np.asarray(ndimage.distance_transform_edt(~smooth, sampling=size))
    distance = ndimage.gaussian_filter(distance, 1.5 / size)
    free = _is(classes, "air", "outer fluid")
    for tissue, upper in (("muscle", 15.0), ("bone", 9.0), ("outer fluid", 2.5)):
        classes[free & (distance < upper)] = TISSUES[tissue].label
    classes[free & (distance >= 13.0) & (distance < 15.0)] = TISSUES["skin"].label
    classes[free & closed] = TISSUES["csf"].label
    # face and neck: what has head above it
    head = distance < 15.0
    below = np.logical_or.accumulate(head[:, :, ::-1], axis=2)[:, :, ::-1] & ~head
    classes[below] = TISSUES["muscle"].label
    low, high = (f(np.argwhere(closed), axis=0) * size for f in (np.min, np.max))
    middle = (low + high) / 2
    # [mm] from the middle of the brain's sides: sinuses of forehead and nose, air cells behind the ears
    hollows = [((0, high[1] + 3, low[2] + 48), (22, 5, 12)), ((0, high[1] - 22, low[2] + 28), (11, 22, 9))]
    hollows += [
        ((side * 0.9, middle[1] - 12, low[2] + 18), (9, 10, 13)) for side in (low[0] - middle[0], high[0] - middle[0])
    ]
    x, y, z = (np.arange(n) * length for n, length in zip(classes.shape, size, strict=True))
    for (cx, cy, cz), (rx, ry, rz) in hollows:
        inside = (
            ((x[:, None, None] - middle[0] - cx) / rx) ** 2 + ((y[:, None] - cy) / ry) ** 2 + ((z - cz) / rz) ** 2
        ) < 1
        classes[inside & ~closed & (distance > 3.5) & (below | (distance < 13))] = TISSUES["air"].label
