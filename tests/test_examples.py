"""The example scripts run as their first lines say, at sizes that take seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

from chimap.io.nifti import read_volume, write_volume
from chimap.simulation.acquisition import acquire
from chimap.simulation.head import built_in_head
from chimap.simulation.labels import write_packed

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(tmp_path):
    """Run a script in an empty folder; gives what it printed."""

    def call(name: str, *words: str) -> str:
        command = [sys.executable, str(EXAMPLES / name), *words]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return call


def test_every_example_is_tried():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "compare_methods.py",
        "simulate_a_cohort.py",
        "train_on_your_data.py",
    }


def test_methods_are_compared_with_the_truth(run, tmp_path):
    printed = run("compare_methods.py", "--voxel-size", "3", "--methods", "tkd", "tv", "--output", "compared")
    errors = {line.split()[0]: float(line.split()[-2]) for line in printed.splitlines() if "NRMSE" in line}
    assert set(errors) == {"tkd", "tv"} and all(20 < error < 90 for error in errors.values())
    assert (tmp_path / "compared" / "compared.png").stat().st_size > 10_000
    chi, _ = read_volume(tmp_path / "compared" / "tv.nii.gz")
    assert 0.01 < float(chi[chi != 0].std()) < 0.2


def test_a_cohort_shows_the_difference_that_was_put_in(run, tmp_path):
    printed = run(
        "simulate_a_cohort.py", "--subjects", "2", "--difference", "0.1", "--voxel-size", "3.5", "--output", "cohort"
    )
    line = next(line for line in printed.splitlines() if line.startswith("difference"))
    assert 0.04 < float(line.split("found: ")[1].split()[0]) < 0.14
    table = (tmp_path / "cohort" / "pallidum.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in table] == ["group", "controls", "controls", "patients", "patients"]
    assert (tmp_path / "cohort" / "pallidum.png").exists()


def test_a_network_goes_on_learning_from_ones_own_scans(run, tmp_path, label_map):
    head = built_in_head((64, 80, 64), (2.75, 2.75, 2.75), seed=1)
    scan, truth = acquire(head, seed=1)
    folder = tmp_path / "scans" / "sub-01"
    folder.mkdir(parents=True)
    write_volume(folder / "local_field.nii.gz", truth.local_field * truth.mask, scan.affine, description="ppm")
    write_volume(folder / "mask.nii.gz", truth.mask, scan.affine, description="mask")
    write_packed(tmp_path / "validation.npz", [label_map])
    words = ("--set", "samples.shape=32,32,32", "--set", "validation_samples=1", "--steps", "2")
    printed = run(
        "train_on_your_data.py", "--scans", "scans", "--validation", "validation.npz", *words, "--output", "own"
    )
    assert "Best weights" in printed
    assert (tmp_path / "own" / "before-and-after.png").exists()
