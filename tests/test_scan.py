from dataclasses import replace

import pytest
import torch

from chimap.errors import InputError
from chimap.scan import Scan


@pytest.fixture
def scan():
    return Scan(
        phase=torch.randn(2, 6, 7, 8),
        magnitude=torch.rand(2, 6, 7, 8),
        echo_times=(0.004, 0.010),
        field_strength=3.0,
        voxel_size=(1.0, 1.0, 2.0),
    )


def test_a_sound_scan_has_no_problems(scan):
    assert scan.problems() == []
    scan.check()
    assert scan.shape == (6, 7, 8)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"phase": torch.randn(6, 7, 8)}, r"needed \(echo, x, y, z\)"),
        ({"phase": torch.zeros(2, 6, 7, 8)}, "phase is zero everywhere"),
        ({"phase": torch.full((2, 6, 7, 8), torch.nan)}, "phase holds values that are not finite"),
        ({"magnitude": torch.rand(1, 6, 7, 8)}, "they must be equal"),
        ({"magnitude": -torch.rand(2, 6, 7, 8)}, "are phase and magnitude exchanged"),
        ({"mask": torch.zeros(6, 7, 8, dtype=torch.bool)}, "the mask is empty"),
        ({"mask": torch.ones(6, 7, 7, dtype=torch.bool)}, "the mask has shape"),
        ({"echo_times": (4.0, 10.0)}, "those are milliseconds"),
        ({"echo_times": (0.010, 0.004)}, "they must ascend"),
        ({"echo_times": (0.0, 0.004)}, "must be above 0"),
        ({"echo_times": (0.004,)}, r"1 echo times \(0.004\) came with 2 echoes"),
        ({"field_strength": 123.2}, "needed tesla"),
        ({"voxel_size": (0.001, 0.001, 0.002)}, "lengths in mm"),
        ({"b0_direction": (0.0, 0.0, 2.0)}, "needed a unit vector"),
    ],
)
def test_a_problem_is_named(scan, change, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(scan, **change).check()


def test_all_problems_are_named_at_once(scan):
    broken = replace(scan, echo_times=(4.0, 10.0), field_strength=0.0, voxel_size=(0.0, 1.0, 1.0))
    with pytest.raises(InputError, match="milliseconds.*tesla.*mm"):
        broken.check()
    assert len(broken.problems()) == 3
