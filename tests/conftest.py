"""Shapes in signatures are checked while testing; real data are used where they lie beside the checkout."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch is imported, as the command line does

install_import_hook("chimap", "beartype.beartype").__enter__()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real acquisitions and label maps; the test is skipped where it is missing."""
    folder = Path(os.environ.get("CHIMAP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set CHIMAP_DATA")
    return folder


@pytest.fixture(scope="session")
def label_map():
    """A head as simple as can be: a ball of white matter around one of thalamus, in fluid, bone and muscle."""
    import torch

    from chimap.simulation.labels import LabelMap
    from chimap.simulation.tissues import TISSUES

    x, y, z = (torch.arange(80) - 39.5,) * 3
    radius = (x[:, None, None] ** 2 + y[:, None] ** 2 + z**2).sqrt() * 2.5
    classes = torch.full((80, 80, 80), TISSUES["air"].label, dtype=torch.uint8)
    for limit, tissue in (
        (95, "muscle"), (85, "bone"), (76, "outer fluid"), (72, "grey matter"), (60, "white matter"), (30, "thalamus"),
    ):  # fmt: skip
        classes[radius < limit] = TISSUES[tissue].label
    return LabelMap(classes, (2.5, 2.5, 2.5), (98.75, 98.75, 98.75), (72.0, 72.0, 72.0), "ball")
