"""Which number of a segmentation is which region, and which regions a measure takes together.

Names are those of `simulation.tissues`, so that one vocabulary serves every scheme; a table of the user's keeps its
own names, and `canonical` translates them for the groups.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from chimap.arrays import Mask
from chimap.errors import InputError


@dataclass(frozen=True)
class Segmentation:
    """A number for every voxel and what the numbers mean. 0 is background, whatever a table says.

    Attributes:
        labels: Integers, shape (x, y, z).
        names: {number: region}; several numbers may share a name and are one region then.
        scheme: Where the names are from: "challenge", "freesurfer", "table" or, found by `parcellation`, "network".
    """

    labels: Tensor
    names: dict[int, str]
    scheme: str


CHALLENGE: dict[int, str] = {
    1: "caudate",
    2: "pallidum",
    3: "putamen",
    4: "red nucleus",
    5: "dentate nucleus",
    6: "substantia nigra",
    7: "thalamus",
    8: "white matter",
    9: "grey matter",
    10: "csf",
    11: "blood",
    12: "fat",
    13: "bone",
    14: "air",
    15: "muscle",
    16: "calcification",
}
"""The 2019 reconstruction challenge (Marques et al. 2021, doi:10.1002/mrm.28716). 6 holds the subthalamic nucleus."""

_PAIRS = {
    "white matter": (2, 41),
    "grey matter": (3, 42),
    "lateral ventricle": (4, 43),
    "inferior lateral ventricle": (5, 44),
    "cerebellar white matter": (7, 46),
    "cerebellar cortex": (8, 47),
    "thalamus": (10, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "hippocampus": (17, 53),
    "amygdala": (18, 54),
    "accumbens": (26, 58),
    "substantia nigra": (27, 59),
    "ventral diencephalon": (28, 60),
    "vessel": (30, 62),
    "choroid plexus": (31, 63),
    "white matter hypointensities": (78, 79),
    "grey matter hypointensities": (81, 82),
}
_SINGLE = {
    14: "third ventricle",
    15: "fourth ventricle",
    16: "brain stem",
    24: "csf",
    72: "fifth ventricle",
    77: "white matter hypointensities",
    80: "grey matter hypointensities",
    85: "optic chiasm",
    192: "corpus callosum",
}
# Parcels of the cortex and of the white matter below it, left and right: Desikan-Killiany, then Destrieux.
_PARCELS = (
    ("grey matter", range(1000, 1036), range(2000, 2036)),
    ("white matter", range(3000, 3036), range(4000, 4036)),
    ("white matter", range(5001, 5002), range(5002, 5003)),
    ("grey matter", range(11100, 11176), range(12100, 12176)),
    ("white matter", range(13100, 13176), range(14100, 14176)),
)


# Beyond FreeSurfer: label maps of SynthSeg (Billot et al. 2023, doi:10.1016/j.media.2023.102789) hold lesions
# and the walls of the ventricles in the brain; head around it, whose classes have no published names.
_SYNTHSEG = {25: "left lesion", 57: "right lesion", 512: "spinal cord"}
_SYNTHSEG |= dict.fromkeys((136, 137), "left ventricle wall") | dict.fromkeys((163, 164), "right ventricle wall")
_SYNTHSEG |= {number: f"outside the brain ({number})" for number in range(501, 531) if number != 512}


def _freesurfer() -> dict[int, str]:
    names = _SINGLE | _SYNTHSEG | dict.fromkeys(range(251, 256), "corpus callosum")
    for name, numbers in _PAIRS.items():
        names |= {number: f"{side} {name}" for number, side in zip(numbers, ("left", "right"), strict=True)}
    for name, left, right in _PARCELS:
        names |= dict.fromkeys(left, f"left {name}") | dict.fromkeys(right, f"right {name}")
    return dict(sorted(names.items()))


FREESURFER: dict[int, str] = _freesurfer()
"""Numbers that FreeSurfer writes into aseg, aparc+aseg and wmparc (Fischl 2012, doi:10.1016/j.neuroimage.2012.01.021).

Parcels of the cortex and of white matter are joined, left and right kept apart. Numbers of its colour table that
those files do not hold are left out: the fewer there are, the less often is another scheme taken for this one.
SynthSeg's label maps, which go on to the skin, count as FreeSurfer's too.
"""

DEEP_GREY: dict[str, frozenset[str]] = {
    "caudate": frozenset({"caudate"}),
    "pallidum": frozenset({"pallidum"}),
    "putamen": frozenset({"putamen"}),
    "red nucleus": frozenset({"red nucleus"}),
    "dentate nucleus": frozenset({"dentate nucleus"}),
    "substantia nigra": frozenset({"substantia nigra", "subthalamic nucleus"}),
}
"""The nuclei of the challenge, each with the regions that make it up."""

TISSUE = frozenset(
    {
        "thalamus",
        "white matter",
        "grey matter",
        "internal capsule",
        "corpus callosum",
        "white matter hypointensities",
        "brain stem",
        "cerebellar white matter",
        "cerebellar cortex",
        "hippocampus",
        "amygdala",
        "accumbens",
    }
)
"""Thalamus, white and grey matter of the challenge, with what finer segmentations cut out of these.

The ventral diencephalon belongs to no group: FreeSurfer's holds the red nucleus and the substantia nigra.
"""

BLOOD = frozenset({"blood", "venous sinus"})
"""Veins. FreeSurfer's "vessel" marks spots in the putamen, mostly fluid, and is none."""

VENTRICLES = frozenset({"lateral ventricle"})
"""Fluid that is used as chi's zero: in the other ventricles and the sulci it shares its voxels with other tissues."""

CALCIFICATION = frozenset({"calcification"})
HAEMORRHAGE = frozenset({"haemorrhage", "microbleed"})

_BRITISH = {"gray": "grey", "hemorrhage": "haemorrhage", "hemorrhages": "haemorrhage"}
_SIDES = {"left", "right", "l", "r", "lh", "rh"}
_SYNONYMS = {
    "globus pallidus": "pallidum",
    "caudate nucleus": "caudate",
    "red nuclei": "red nucleus",
    "dentate": "dentate nucleus",
    "substancia nigra": "substantia nigra",
    "substantia nigra and subthalamic nucleus": "substantia nigra",
    "thalamus proper": "thalamus",
    "cerebral white matter": "white matter",
    "wm": "white matter",
    "wm hypointensities": "white matter hypointensities",
    "cerebral cortex": "grey matter",
    "cortical grey matter": "grey matter",
    "cortex": "grey matter",
    "gm": "grey matter",
    "brainstem": "brain stem",
    "cerebellum white matter": "cerebellar white matter",
    "cerebellum cortex": "cerebellar cortex",
    "cerebellar grey matter": "cerebellar cortex",
    "accumbens area": "accumbens",
    "nucleus accumbens": "accumbens",
    "ventraldc": "ventral diencephalon",
    "vein": "blood",
    "veins": "blood",
    "venous blood": "blood",
    "sinus": "venous sinus",
    "calcifications": "calcification",
    "calcium": "calcification",
    "haemorrhages": "haemorrhage",
    "microbleeds": "microbleed",
}


def canonical(name: str) -> str:
    """A region's name as the groups know it: lower case, British, without a side, words apart by spaces."""
    words = [word for word in re.split(r"[\s_\-.]+", name.casefold()) if word and word not in _SIDES]
    text = " ".join(_BRITISH.get(word, word) for word in words)
    return _SYNONYMS.get(text, text)


def region(segmentation: Segmentation, names: Collection[str]) -> Mask:
    """Voxels of all regions whose canonical name is among `names`, shape (x, y, z)."""
    numbers = [number for number, name in segmentation.names.items() if number and canonical(name) in names]
    labels = segmentation.labels
    return torch.isin(labels, torch.tensor(numbers, dtype=labels.dtype, device=labels.device))


def names_within(segmentation: Segmentation, mask: Mask) -> dict[int, str]:
    """The names whose numbers are found in a mask, in the order of the segmentation's names."""
    there = set(torch.unique(segmentation.labels[mask]).tolist()) - {0}
    return {number: name for number, name in segmentation.names.items() if number in there}


def names_from_table(text: str, source: str) -> dict[int, str]:
    """{number: region} of a look-up table as BIDS lays it down: tab-separated, columns index and name among others.

    Args:
        text: Content of the file.
        source: Its name, for messages.

    Raises:
        InputError: A column is missing, an index is no whole number or appears twice, or no row is there.

    References:
        BIDS 1.10, derivatives, imaging data types, "Segmentations".
    """
    rows = [line.rstrip("\r").split("\t") for line in text.removeprefix("\ufeff").split("\n") if line.strip()]
    header = [cell.strip() for cell in rows[0]] if rows else []
    if "index" not in header or "name" not in header:
        columns = ", ".join(header) or "none"
        raise InputError(f"{source} has the columns {columns}, needed index and name, separated by tabs")
    index, name = header.index("index"), header.index("name")
    names: dict[int, str] = {}
    for row in rows[1:]:
        if len(row) <= max(index, name) or not re.fullmatch(r"\s*\d+\s*", row[index]) or not row[name].strip():
            raise InputError(f"{source}: the row '{' '.join(row)}' needs a whole number as index, and a name")
        number = int(row[index])
        if number in names:
            raise InputError(f"{source} names the index {number} twice")
        names[number] = row[name].strip()
    if not names:
        raise InputError(f"{source} has no row below its header")
    return names


def table_of_names(names: Mapping[int, str]) -> str:
    """The look-up table that `names_from_table` reads, to stand beside a segmentation's file."""
    return "index\tname\n" + "".join(f"{number}\t{name}\n" for number, name in sorted(names.items()))


def identify(values: Tensor, *, table: Mapping[int, str] | None = None, source: str) -> tuple[Segmentation, str]:
    """Find out what the numbers of a segmentation mean.

    A table wins; without one, numbers up to 16 are taken as the challenge's, others as FreeSurfer's if every one
    of them is.

    Args:
        values: Whole numbers, of any type, shape (x, y, z).
        table: {number: region} where the user has one.
        source: Name of the file, for messages.

    Returns:
        The segmentation, and a sentence that says what was assumed.

    Raises:
        InputError: A value is not whole, nothing is marked, or a number is not known.
    """
    labels = values.to(torch.int64)
    broken = values[values != labels] if values.is_floating_point() else values[:0]
    if broken.numel():
        raise InputError(
            f"{source} holds {float(broken.flatten()[0]):g}, needed whole numbers: resample a segmentation to the "
            "nearest neighbour"
        )
    numbers = [int(number) for number in torch.unique(labels).tolist() if number]
    if not numbers:
        raise InputError(f"{source} is 0 everywhere: it marks no region")
    if table is not None:
        names, scheme = dict(table), "table"
        note = "The names of regions are from the table beside the segmentation."
        whose = "the table beside it does not name"
    elif 0 < numbers[0] and numbers[-1] <= max(CHALLENGE):
        names, scheme = dict(CHALLENGE), "challenge"
        note = (
            "No table lies beside the segmentation: its numbers, none above 16, were taken as those of the 2019 "
            "reconstruction challenge."
        )
        whose = ""
    else:
        names, scheme = dict(FREESURFER), "freesurfer"
        note = "No table lies beside the segmentation: its numbers were taken as FreeSurfer's."
        whose = (
            "neither the 2019 challenge (1 to 16) nor FreeSurfer (aseg, aparc+aseg, wmparc) has: put a table of the "
            "same name, ending in .tsv and with the columns index and name, beside it"
        )
    unknown = [str(number) for number in numbers if number not in names]
    if unknown:
        listed = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        raise InputError(f"{source} holds {listed}, which {whose}")
    return Segmentation(labels, names, scheme), note
