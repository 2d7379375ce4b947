"""Every loss against a value worked out by hand, and where it must vanish."""

import math

import pytest
import torch

from chimap import losses
from chimap.physics.dipole import DipoleModel

SHAPE = (8, 9, 10)


@pytest.fixture
def scene():
    generator = torch.Generator().manual_seed(0)
    chi = 0.1 * torch.randn(1, *SHAPE, generator=generator)
    dipole = DipoleModel(SHAPE, (1.0, 1.0, 1.0))
    mask = torch.rand(1, *SHAPE, generator=generator) > 0.2
    return chi, dipole, mask, torch.rand(1, *SHAPE, generator=generator)


def test_field_losses_vanish_at_the_truth_and_have_a_gradient_elsewhere(scene):
    chi, dipole, mask, weight = scene
    field = dipole(chi)
    for loss in (losses.nonlinear_field_loss, losses.weighted_field_loss):
        assert float(loss(chi, field, mask, weight, dipole, radians=100.0)) < 1e-9
        moved = (1.1 * chi).requires_grad_()
        value = loss(moved, field, mask, weight, dipole, radians=20.0)
        value.backward()
        assert float(value.detach()) > 0 and float(moved.grad.abs().max()) > 0


def test_the_nonlinear_loss_does_not_see_whole_turns(scene):
    chi, dipole, mask, weight = scene
    radians = 20.0
    wrapped = dipole(chi) + 2 * math.pi / radians
    assert float(losses.nonlinear_field_loss(chi, wrapped, mask, weight, dipole, radians=radians)) < 1e-8
    assert float(losses.weighted_field_loss(chi, wrapped, mask, weight, dipole, radians=radians)) > 0.1


def test_the_nonlinear_loss_is_the_squared_distance_of_phasors(scene):
    chi, dipole, mask, weight = scene
    field = torch.randn_like(chi)
    expected = (torch.polar(weight * mask, 3 * dipole(chi)) - torch.polar(weight * mask, 3 * field)).abs().square()
    value = losses.nonlinear_field_loss(chi, field, mask, weight, dipole, radians=3.0)
    torch.testing.assert_close(value, expected.mean(), atol=1e-5, rtol=1e-4)


def test_total_variation_by_hand():
    volume = torch.zeros(1, 2, 2, 2)
    volume[0, 1] = 3.0  # a step of 3 along x, nothing along y and z
    assert float(losses.total_variation_loss(volume)) == 3.0
    assert float(losses.total_variation_loss(volume, (2.0, 1.0, 1.0))) == 1.5


def test_consistency_is_of_the_change_alone():
    chi = torch.randn(1, 4, 4, 4)
    source, inside = torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    source[0, 1, 1, 1], inside[0, 1, 1, 1] = 1.5, True
    mask = torch.ones_like(inside)
    at, elsewhere = losses.consistency_losses(chi, chi + source, source, inside, mask)
    assert float(at) < 1e-7 and float(elsewhere) < 1e-7
    at, elsewhere = losses.consistency_losses(chi, chi + 0.5 * source + 0.1, source, inside, mask)
    assert float(at) == pytest.approx(abs(0.75 + 0.1 - 1.5) / 64, rel=1e-4)
    assert float(elsewhere) == pytest.approx(0.1 * 63 / 64, rel=1e-4)


def test_supervised_losses_by_hand():
    truth = torch.zeros(1, 2, 2, 2)
    chi = truth.clone()
    chi[0, 0, 0, 0] = 0.8
    mask = torch.ones_like(truth, dtype=torch.bool)
    assert float(losses.masked_l1(chi, truth, mask)) == pytest.approx(0.1)
    # along every axis one of four pairs differs by 0.8
    assert float(losses.gradient_l1(chi, truth, mask)) == pytest.approx(3 * 0.2)
    mask[0, 0, 0, 0] = False
    assert float(losses.masked_l1(chi, truth, mask)) == 0
    assert float(losses.gradient_l1(chi, truth, mask)) == 0
    assert float(losses.masked_l2(chi, truth, mask)) == 0
    assert float(losses.masked_l2(chi + 2, truth, mask)) == pytest.approx(4.0)


def test_the_neighbour_loss_by_hand():
    chi = torch.zeros(1, 3, 3, 3)
    chi[0, 1, 1, 1] = 1.0
    # each of the 26 neighbours rises to the middle: 6 at 1, 12 at sqrt 2, 8 at sqrt 3
    expected = (6 + 12 / math.sqrt(2) + 8 / math.sqrt(3)) / 27
    assert float(losses.neighbour_l1(chi, torch.zeros_like(chi))) == pytest.approx(expected, rel=1e-5)


def test_the_consistency_ramps_up_and_down():
    values = [losses.consistency_weight(progress) for progress in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert values == pytest.approx([0.0, 0.75, 1.5, 0.75, 0.1, 0.1])
