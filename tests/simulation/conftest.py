"""A label map as FreeSurfer numbers it, made of the built-in head, for tests without anybody's data."""

import numpy as np
import pytest

from chimap.simulation.head import built_in_head
from chimap.simulation.labels import from_freesurfer
from chimap.simulation.tissues import TISSUES

SIZE = (3.0, 3.0, 3.0)
NUMBERS = {
    "white matter": (2, 41),
    "internal capsule": (2, 41),
    "grey matter": (3, 42),
    "csf": (24, 24),
    "thalamus": (10, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "brain stem": (16, 16),
    "red nucleus": (28, 60),
    "substantia nigra": (28, 60),
    "subthalamic nucleus": (28, 60),
    "dentate nucleus": (7, 46),
    "blood": (2, 41),
    "muscle": (507, 507),
    "fat": (507, 507),
    "skin": (511, 511),
    "bone": (515, 515),
    "diploe": (516, 516),
    "eye": (506, 506),
}


@pytest.fixture(scope="session")
def numbers():
    """FreeSurfer's numbers of a head, 3 mm, axes to the right, the front and up; left is at low x."""
    head = built_in_head((60, 72, 62), SIZE)
    labels = head.labels.numpy()
    found = np.zeros(labels.shape, np.int32)
    left = np.arange(labels.shape[0])[:, None, None] < labels.shape[0] / 2
    for tissue, (on_left, on_right) in NUMBERS.items():
        number = np.where(left, on_left, on_right)
        found = np.where(labels == TISSUES[tissue].label, number, found)
    x, y, z = np.indices(found.shape)
    # white matter of the cerebellum, and a ventral diencephalon with room for its nuclei
    middle = [(n - 1) / 2 for n in found.shape]
    for side, cerebellum, diencephalon in ((-1, 7, 28), (1, 46, 60)):
        place = (x - middle[0] - side * 5) ** 2 / 25 + (y - middle[1] + 14) ** 2 / 16 + (z - middle[2] + 13) ** 2 / 9
        found[(place < 1) & (found > 0)] = cerebellum
        place = (x - middle[0] - side * 3) ** 2 / 10 + (y - middle[1] - 0) ** 2 / 9 + (z - middle[2] + 5) ** 2 / 6
        found[(place < 1) & (found > 0)] = diencephalon
    # beyond the folds: fluid only counts to the brain between them
    return found


@pytest.fixture(scope="session")
def label_map(numbers):
    return from_freesurfer(numbers, SIZE, name="made")
