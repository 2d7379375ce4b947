"""Every check speaks when its error is there, and is silent when it is not."""

import math
from dataclasses import replace

import pytest
import torch

from chimap.fields import evidence
from chimap.fields.cone import b0_from_field
from chimap.physics.dipole import DipoleModel
from chimap.pipeline import findings_of
from chimap.simulation.acquisition import acquire
from chimap.simulation.head import built_in_head


@pytest.fixture(scope="module")
def simulated():
    """An oblique slab of a head, with air around it, and its true total field."""
    head = built_in_head((85, 101, 57), (2.2, 2.2, 2.6), grid_rotation=(0.35, -0.2, 0.0), seed=2)
    return acquire(head, snr=60.0, field_error=0.3, seed=2)


def doubted(findings):
    return {one.name for one in findings if one.doubtful}


def test_a_sound_scan_is_not_doubted(simulated):
    scan, truth = simulated
    findings = findings_of(scan, truth.total_field, truth.mask)
    assert {one.name for one in findings} == {
        *("phase scale", "magnitude and phase", "slices", "ghosts"),
        *("strength of the field", "direction of B0", "sign of the phase"),
    }
    assert doubted(findings) == set()


@pytest.mark.parametrize("factor", [0.4, 1.5])
def test_phase_in_other_units(simulated, factor):
    scan, _ = simulated
    assert evidence.phase_scale(scan.phase * factor).doubtful


def test_magnitude_and_phase_exchanged(simulated):
    scan, _ = simulated
    as_phase = (scan.magnitude / scan.magnitude.max() * 2 - 1) * math.pi
    assert evidence.exchanged(as_phase, scan.phase + math.pi).doubtful
    assert not evidence.exchanged(scan.phase, scan.magnitude).doubtful


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_slices_that_are_dark_copied_or_missing(simulated, axis):
    magnitude = simulated[0].magnitude
    middle = magnitude.shape[axis] // 2
    dark, copied = magnitude.clone(), magnitude.clone()
    dark.select(axis, middle).mul_(0.6)
    copied.select(axis, middle).copy_(magnitude.select(axis, middle - 1))
    kept = [index for index in range(magnitude.shape[axis]) if index != middle]
    for damaged in (dark, copied, magnitude.index_select(axis, torch.tensor(kept))):
        found = evidence.missing_slices(damaged)
        assert found.doubtful
        assert f"{'xyz'[axis - 1]} = {middle}" in found.sentence or damaged.shape != magnitude.shape


def test_ghosts_along_one_axis(simulated):
    scan, _ = simulated
    first = scan.magnitude[0]
    ghosted = first + 0.1 * first.roll(first.shape[1] // 2, 1)
    found = evidence.ghosts(ghosted, scan.voxel_size)
    assert found.doubtful
    assert "ghosts along y" in found.sentence
    assert evidence.ghosts(first * (first > 0.2 * first.max()), scan.voxel_size) is None  # air was set to zero


def test_the_sign_of_the_phase(simulated):
    scan, truth = simulated
    assert doubted(findings_of(scan, -truth.total_field, truth.mask)) == {"sign of the phase"}


@pytest.mark.parametrize("angle", [20, 50, 90])
def test_another_direction_of_b0(simulated, angle):
    scan, truth = simulated
    b0 = torch.tensor(scan.b0_direction)
    aside = torch.linalg.cross(b0, torch.tensor([1.0, 0.0, 0.0]))
    turn = math.radians(angle)
    x, y, z = (math.cos(turn) * b0 + math.sin(turn) * aside / aside.norm()).tolist()
    findings = findings_of(replace(scan, b0_direction=(x, y, z)), truth.total_field, truth.mask)
    assert "direction of B0" in doubted(findings)


def test_echo_times_a_thousand_times_too_short(simulated):
    scan, truth = simulated
    assert "strength of the field" in doubted(findings_of(scan, 1000 * truth.total_field, truth.mask))


def test_a_small_block_is_not_judged_by_its_field(simulated):
    scan, truth = simulated
    small = truth.mask.clone()
    small[:, :, 20:] = False
    assert evidence.coarse_local_field(truth.total_field, small, scan.voxel_size, scan.b0_direction) is None
    with_none = findings_of(scan, truth.total_field, small)
    assert "direction of B0" not in {one.name for one in with_none}


@pytest.mark.parametrize("b0", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (-0.48, 0.6, 0.64), (1.0, 0.0, 0.0)])
def test_the_direction_of_random_sources(b0):
    """Sources without any preferred direction, on voxels that are not cubes."""
    generator = torch.Generator().manual_seed(3)
    shape, size = (60, 64, 44), (2.0, 2.0, 3.0)
    axes = [torch.linspace(-1, 1, n) for n in shape]
    mask = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(dim=0) < 0.8
    chi = torch.randn(shape, generator=generator) * mask
    field = DipoleModel(shape, size, b0)(chi) * mask
    found, worse = b0_from_field(field, mask, size, b0)
    angle = math.degrees(math.acos(min(abs(sum(a * b for a, b in zip(found, b0, strict=True))), 1.0)))
    assert angle < 4
    assert worse < 0.02
    _, worse = b0_from_field(field, mask, size, (b0[1], b0[2], b0[0]))
    assert worse > 0.1
