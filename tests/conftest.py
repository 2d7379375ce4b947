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
