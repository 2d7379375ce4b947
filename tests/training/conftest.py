"""A head as simple as can be, for samples and trainings without anybody's data."""

import pytest
import torch

from chimap.simulation.labels import LabelMap
from chimap.simulation.tissues import TISSUES


@pytest.fixture(scope="session")
def label_map():
    """A ball of white matter around one of thalamus, in fluid, bone and muscle."""
    x, y, z = (torch.arange(80) - 39.5,) * 3
    radius = (x[:, None, None] ** 2 + y[:, None] ** 2 + z**2).sqrt() * 2.5
    classes = torch.full((80, 80, 80), TISSUES["air"].label, dtype=torch.uint8)
    for limit, tissue in (
        (95, "muscle"), (85, "bone"), (76, "outer fluid"), (72, "grey matter"), (60, "white matter"), (30, "thalamus"),
    ):  # fmt: skip
        classes[radius < limit] = TISSUES[tissue].label
    return LabelMap(classes, (2.5, 2.5, 2.5), (98.75, 98.75, 98.75), (72.0, 72.0, 72.0), "ball")
