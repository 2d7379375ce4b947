import math

import pytest
import torch

from chimap import metrics
from chimap.errors import InputError
from chimap.inversion.direct import tkd
from chimap.inversion.orientations import conditioning, cosmos
from chimap.inversion.total_variation import total_variation
from chimap.physics.dipole import DipoleModel

VOXEL = (0.8, 1.0, 2.0)
SIXTY = math.sin(math.radians(60)), math.cos(math.radians(60))
TILTED = [(0.0, 0.0, 1.0), (SIXTY[0], 0.0, SIXTY[1]), (0.1, SIXTY[0], SIXTY[1])]


def scans(shape=(15, 18, 13), directions=TILTED, seed=0):
    """chi inside a box, its fields for several directions of B0, masks and models."""
    generator = torch.Generator().manual_seed(seed)
    dipoles = [DipoleModel(shape, VOXEL, b0, padding=5) for b0 in directions]
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[2:-2, 3:-2, 2:-3] = True
    chi = torch.randn(shape, generator=generator) * mask
    return chi, torch.stack([dipole(chi) for dipole in dipoles]), mask.expand(len(dipoles), *shape), dipoles


@pytest.mark.parametrize("shape", [(15, 18, 13), (14, 16, 12)])
def test_published_solution_is_exact_where_no_field_is_cut_off(shape):
    dipoles = [DipoleModel(shape, VOXEL, b0, padding=0) for b0 in TILTED]
    chi = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    chi = chi - chi.mean()
    fields = torch.stack([dipole(chi) for dipole in dipoles])
    everywhere = torch.ones(fields.shape, dtype=torch.bool)
    torch.testing.assert_close(cosmos(fields, everywhere, dipoles, iterations=0), chi, rtol=0, atol=2e-4)


def test_fields_cut_off_at_the_mask_still_give_chi():
    chi, fields, masks, dipoles = scans()
    found = cosmos(fields * masks, masks, dipoles, iterations=200, tolerance=1e-6)
    published = cosmos(fields * masks, masks, dipoles, iterations=0)
    assert metrics.nrmse(found, chi, masks[0]) < 0.5
    assert metrics.nrmse(published, chi, masks[0]) > 20


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_of_the_objective_vanishes(weighted):
    generator = torch.Generator().manual_seed(2)
    _, fields, masks, dipoles = scans()
    fields, dipoles = fields.double(), [dipole.double() for dipole in dipoles]
    fields = fields + 0.1 * torch.randn(fields.shape, generator=generator, dtype=torch.float64)
    masks = masks & (torch.rand(masks.shape, generator=generator) > 0.1)  # each scan has holes of its own
    weight = torch.rand(fields.shape, generator=generator, dtype=torch.float64) if weighted else None
    chi = cosmos(fields, masks, dipoles, weight, iterations=500, tolerance=1e-9).requires_grad_()
    inside = masks.any(dim=0)
    trust = masks if weight is None else masks * weight
    misfit = sum(
        (w * (dipole(chi * inside) - field)).square().sum()
        for w, dipole, field in zip(trust, dipoles, fields, strict=True)
    )
    (slope,) = torch.autograd.grad(misfit, chi)
    at_zero = 2 * sum(d(w.double() ** 2 * f) for w, d, f in zip(trust, dipoles, fields, strict=True))
    assert (slope * inside).norm() < 1e-7 * at_zero.norm()
    assert chi[~inside].abs().max() == 0


def test_a_field_that_is_wrong_where_its_weight_is_zero_does_no_harm():
    chi, fields, masks, dipoles = scans()
    weight = torch.ones_like(fields)
    weight[1, 5:9, 6:10] = 0
    wrong = fields.clone()
    wrong[1, 5:9, 6:10] += 3.0
    settings = dict(iterations=200, tolerance=1e-6)
    assert metrics.nrmse(cosmos(wrong, masks, dipoles, weight, **settings), chi, masks[0]) < 1
    assert metrics.nrmse(cosmos(wrong, masks, dipoles, **settings), chi, masks[0]) > 20


def test_three_scans_are_far_better_than_any_one():
    generator = torch.Generator().manual_seed(3)
    shape = (32, 30, 28)
    dipoles = [DipoleModel(shape, (1.0, 1.0, 1.2), b0, padding=8) for b0 in TILTED]
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[4:-4, 4:-4, 4:-4] = True
    chi = torch.zeros(shape)
    chi[8:15, 9:20, 8:16], chi[17:24, 8:15, 10:20] = 0.1, -0.06
    fields = torch.stack([dipole(chi) for dipole in dipoles]) * mask
    for noise, methods in ((0.0, (tkd, total_variation)), (0.002, (tkd,))):  # these boxes are what TV denoises best
        noisy = (fields + noise * torch.randn(fields.shape, generator=generator)) * mask
        error = metrics.nrmse(cosmos(noisy, mask.expand(3, *shape), dipoles), chi, mask, demean=True)
        maps = [one(noisy[i], mask, dipoles[i]) for one in methods for i in range(3)]
        assert error < 0.6 * min(metrics.nrmse(single, chi, mask, demean=True) for single in maps)


def test_it_refuses_what_is_no_set_of_scans():
    _, fields, masks, dipoles = scans()
    with pytest.raises(InputError, match="got 2 fields and 3 directions"):
        cosmos(fields[:2], masks[:2], dipoles)
    with pytest.raises(InputError, match="needed two or more"):
        cosmos(fields[:1], masks[:1], dipoles[:1])


def test_conditioning_of_known_sets():
    """Three directions 60 degrees apart in one plane: k across the plane has D = 1/3 for all, and least is 1/27."""
    best = conditioning([(0.0, math.sin(a), math.cos(a)) for a in (0.0, math.pi / 3, 2 * math.pi / 3)])
    assert best.angles == pytest.approx((60, 60, 60))
    assert best.smallest == pytest.approx(1 / 27, rel=1e-3)
    assert best.doubt is None
    # the cones of three axes meet along (1, 1, 1)
    axes = conditioning([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
    assert axes.angles == pytest.approx((90, 90, 90))
    assert axes.smallest < 1e-4 and "90, 90, 90 degrees" in axes.doubt
    two = conditioning([(0.0, 0.0, 1.0), (0.0, *SIXTY)])
    assert "cones of two directions always meet" in two.doubt
    assert two.noise_gain > best.noise_gain > 1


def test_conditioning_is_that_of_the_models():
    squared = torch.stack([DipoleModel((41, 37, 35), VOXEL, b0, padding=0).spectrum for b0 in TILTED]).square()
    values = squared.mean(dim=0).flatten()[1:]
    found = conditioning(TILTED)
    assert found.smallest <= float(values.min()) < 1.3 * found.smallest
    assert found.condition_number == pytest.approx(float(values.max() / values.min()) ** 0.5, rel=0.15)


def test_noise_gain_is_what_noise_becomes():
    shape = (25, 27, 23)
    dipoles = [DipoleModel(shape, (1.0, 1.0, 1.0), b0, padding=0) for b0 in TILTED]
    noise = torch.randn((3, *shape), generator=torch.Generator().manual_seed(4))
    chi = cosmos(noise, torch.ones(noise.shape, dtype=torch.bool), dipoles, iterations=0)
    assert float(chi.std()) == pytest.approx(conditioning(TILTED).noise_gain, rel=0.05)


@pytest.mark.parametrize("directions", [[(0.0, 0.0, 1.0)], [(0.0, 0.0, 1.0), (0.0, 0.02, 1.0), (0.03, 0.0, -1.0)]])
def test_orientations_that_are_as_good_as_one_are_refused(directions):
    with pytest.raises(InputError, match="the head, not the slab, turned between scans, by 5 degrees"):
        conditioning(directions)
