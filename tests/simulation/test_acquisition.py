import math

import numpy as np
import pytest
import torch

from chimap.errors import InputError
from chimap.physics.dipole import DipoleModel
from chimap.physics.sources import sphere, sphere_field
from chimap.physics.units import radians_per_ppm
from chimap.simulation.acquisition import acquire, fields_of
from chimap.simulation.head import Head, built_in_head
from chimap.simulation.tissues import AIR_CHI


@pytest.fixture(scope="module")
def head():
    return built_in_head((42, 47, 40), (4.0, 4.0, 4.5), grid_rotation=(0.4, 0.0, 0.1))


@pytest.fixture(scope="module")
def simulated(head):
    return acquire(head)


@pytest.fixture(scope="module")
def clean(head):
    return acquire(head, snr=math.inf)[0]


def ball_in_air(shape=(30, 33, 28), size=(2.0, 2.0, 2.5)):
    """A ball of water with a smaller ball of 0.5 ppm in it, as a head."""
    centre = tuple((n - 1) / 2 * d for n, d in zip(shape, size, strict=True))
    core = sphere(shape, size, centre=centre, radius=12.0)
    affine = np.diag([*size, 1.0])
    step, margin = (3, 3, 2), (7, 7, 7)
    coarse = [-(-n // k) + 2 * m for n, k, m in zip(shape, step, margin, strict=True)]
    # water up to a radius of 55 mm, which reaches beyond the grid
    coarse_size = tuple(k * d for k, d in zip(step, size, strict=True))
    away = [c + k * m * d - (k - 1) / 2 * d for c, k, m, d in zip(centre, step, margin, size, strict=True)]
    return Head(
        chi=AIR_CHI * (1 - sphere(shape, size, centre=centre, radius=55.0)) + 0.5 * core,
        m0=torch.ones(shape),
        r2star=torch.zeros(shape),
        labels=torch.zeros(shape, dtype=torch.uint8),
        mask=core > 0,
        voxel_size=size,
        affine=affine,
        surroundings=AIR_CHI * (1 - sphere(tuple(coarse), coarse_size, centre=tuple(away), radius=55.0)),
        brain_around=torch.zeros(coarse),
        step=step,
        margin=margin,
        label_names={},
    ), centre


def test_a_ball_that_the_grid_cuts_has_no_field_inside_but_that_of_its_core():
    ball, centre = ball_in_air()
    total, local = fields_of(ball)
    exact = sphere_field(ball.shape, ball.voxel_size, ball.b0_direction, centre=centre, radius=12.0, chi=0.5)
    near = sphere(ball.shape, ball.voxel_size, centre=centre, radius=20.0) == 1
    shell = sphere(ball.shape, ball.voxel_size, centre=centre, radius=15.0) > 0
    shell &= sphere(ball.shape, ball.voxel_size, centre=centre, radius=9.0) < 1
    clear = near & ~shell  # the core's partial volumes left out
    middle = total[near].mean()
    # the field of 9 ppm around must cancel; a cut at the grid's face would leave about 1 ppm
    assert float((total - middle - exact)[clear].abs().max()) < 0.06
    difference = (local - exact)[clear]
    difference -= difference.mean()  # D(0) = 0 leaves a constant
    assert float(difference.norm() / exact[clear].norm()) < 0.06


def test_the_scan_is_sound_and_has_the_axes_of_the_head(head, simulated):
    scan, truth = simulated
    assert scan.problems() == []
    assert scan.phase.shape == (5, *head.shape)
    np.testing.assert_allclose(scan.b0_direction, (0, math.sin(0.4), math.cos(0.4)), atol=1e-6)
    assert scan.phase.abs().max() <= math.pi + 1e-6
    assert torch.equal(truth.mask, head.mask)
    assert not truth.chi[~truth.mask].any()


def test_fields_have_the_range_of_a_head(simulated):
    _, truth = simulated
    inside = truth.total_field[truth.mask]
    assert abs(float(inside.mean())) < 1e-4
    assert 0.05 < float(inside.std()) < 0.4
    assert float(inside.abs().max()) > 0.7
    assert 0.003 < float(truth.local_field[truth.mask].std()) < 0.03


def test_local_field_is_the_dipole_field_of_the_truth(simulated):
    scan, truth = simulated
    other = DipoleModel(scan.shape, scan.voxel_size, scan.b0_direction)(truth.chi)
    difference = (other - truth.local_field)[truth.mask]
    # another kernel, so near and not equal: they differ where chi changes from voxel to voxel
    assert 0 < float(difference.std() / truth.local_field[truth.mask].std()) < 0.35


def test_phase_is_that_of_the_total_field_and_a_smooth_offset(head, clean):
    plain, truth = acquire(head, snr=math.inf, phase_offset=False, echo_times=(0.001,))
    expected = truth.total_field * radians_per_ppm(0.001, 3.0)
    torch.testing.assert_close(plain.phase[0][head.mask], expected[head.mask], atol=1e-4, rtol=1e-4)
    between = torch.polar(torch.ones(head.shape), clean.phase[1] - clean.phase[0]).angle()
    wrapped = torch.polar(torch.ones(head.shape), truth.total_field * radians_per_ppm(0.006, 3.0)).angle()
    turn = torch.polar(torch.ones(head.shape), between - wrapped).angle()
    assert float(turn[head.mask].abs().max()) < 1e-3
    offset = clean.phase[0] - truth.total_field * radians_per_ppm(0.004, 3.0)
    assert float(torch.polar(torch.ones(head.shape), offset).angle()[head.mask].abs().mean()) > 0.1


def test_noise_is_as_strong_as_the_snr_says(head, simulated, clean):
    noisy, _ = simulated
    assert noisy.magnitude is not None and clean.magnitude is not None
    measured = torch.polar(noisy.magnitude, noisy.phase) - torch.polar(clean.magnitude, clean.phase)
    level = float(clean.magnitude[0][head.mask].mean()) / 50
    assert float(measured.real.std()) == pytest.approx(level, rel=0.02)
    assert float(measured.imag.std()) == pytest.approx(level, rel=0.02)


def test_the_same_seed_gives_the_same_scan(head, simulated):
    again, _ = acquire(head)
    other, _ = acquire(head, seed=1)
    assert torch.equal(again.phase, simulated[0].phase)
    assert not torch.equal(other.phase, simulated[0].phase)


def test_bad_input_is_refused_in_a_sentence(head):
    with pytest.raises(InputError, match="echo times"):
        acquire(head, echo_times=(0.0,))
    with pytest.raises(InputError, match="SNR"):
        acquire(head, snr=0.0)
