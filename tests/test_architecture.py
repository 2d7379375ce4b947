"""The house: a file imports from its own room or from lower floors; heavy imports stay out of the way."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import chimap

SOURCE = Path(chimap.__file__).parent
FLOORS = {
    "errors": 0, "arrays": 0, "methods": 0.5, "plan": 0.5, "linalg": 1, "scan": 1, "segmentation": 0.9, "physics": 1.5,
    "metrics": 2, "lesion_metrics": 2, "losses": 2, "networks": 2, "io": 2, "regional": 2.5, "fields": 3,
    "inversion": 3, "simulation": 3, "regions": 3, "swi": 3, "parcellation": 3.5, "from_local_field": 3.5,
    "reference": 3.6, "derivatives": 3, "group": 3, "report": 4, "training": 4, "pipeline": 5, "participant": 5.5,
    "cohort": 5.5, "benchmark": 5.5, "commands": 6, "cli": 7,
}  # fmt: skip


def rooms_imported_by(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("chimap.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "chimap":
            found |= {name.name for name in node.names if name.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chimap."):
            found.add(str(node.module).split(".")[1])
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room == "__init__":
        return  # names are imported when they are used: see below
    for other in rooms_imported_by(path) - {room}:
        assert FLOORS[other] < FLOORS[room], f"{room} must not import {other}"


@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["--version"], ["run", "--help"]])
def test_the_command_line_answers_at_once(arguments):
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "chimap.cli", *arguments], check=True, capture_output=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_the_command_line_imports_nothing_heavy():
    code = (
        "import sys, chimap.cli\n"
        "heavy = {'torch', 'numpy', 'scipy', 'nibabel', 'matplotlib', 'nilearn', 'pydicom'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_package_imports_nothing_before_it_is_used():
    code = (
        "import sys, chimap\n"
        "assert {name for name in sys.modules if name.startswith('chimap')} == {'chimap'}\n"
        "assert set(chimap.__all__) == set(chimap._HOME) <= set(dir(chimap))\n"
        "assert all(callable(getattr(chimap, name)) for name in chimap.__all__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_name_that_the_package_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'chimap' has no attribute 'reconstuct'"):
        chimap.reconstuct  # noqa: B018
