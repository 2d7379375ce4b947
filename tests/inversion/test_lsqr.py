import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator
from scipy.sparse.linalg import lsqr as scipy_lsqr

from chimap.inversion.direct import tkd
from chimap.inversion.lsqr import (
    FLAT,
    data_weight,
    edge_weights,
    falling,
    fast_qsm,
    ilsqr,
    lsqr,
    neighbours,
    star,
    streaks,
)
from chimap.inversion.total_variation import total_variation
from chimap.linalg import SPACE, ahead, crop, irfft, rfft
from chimap.physics.dipole import DipoleModel

VOXEL = (0.8, 1.0, 2.0)
OBLIQUE = (0.2, 0.3, 0.9)
SHAPES = [(18, 15, 16), (19, 14, 17)]


def box_field(shape=(18, 15, 16), padding=0):
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[2:-2, 1:-2, 2:-3] = True
    dipole = DipoleModel(shape, VOXEL, OBLIQUE, padding=padding)
    chi = torch.zeros(shape)
    chi[5:10, 5:9, 6:10] = 0.1
    return (dipole(chi) + 0.002 * torch.randn(shape, generator=generator)) * mask, mask, dipole


def phantom(strong, radius, *, error=0.0):
    """Weak blocks and one strong source [ppm, mm] in a ball, and their exact field with white noise of that share."""
    generator = torch.Generator().manual_seed(1)
    shape, size, b0 = (40, 36, 38), (1.0, 1.0, 2.0), (0.0, 0.3, 0.95)
    exact = DipoleModel(shape, size, b0, kernel="green")
    axes = torch.meshgrid(*((torch.arange(n) - n / 2) * s for n, s in zip(shape, size, strict=True)), indexing="ij")
    mask = axes[0] ** 2 + axes[1] ** 2 + axes[2] ** 2 < 15**2
    weak = 0.03 * torch.randn(6, 6, 6, generator=generator)
    chi = crop(weak.repeat_interleave(8, 0).repeat_interleave(8, 1).repeat_interleave(8, 2), shape)
    source = (axes[0] - 5) ** 2 + (axes[1] + 4) ** 2 + axes[2] ** 2 < radius**2
    chi = torch.where(source, strong, chi) * mask
    field = exact(chi)
    field = field + error * field[mask].std() * torch.randn(shape, generator=generator)
    return field * mask, mask, DipoleModel(shape, size, b0, padding=8), chi


def rms_error(chi, truth, where):
    error = (chi - truth)[where]
    return float((error - error.mean()).square().mean().sqrt())


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_those_of_lsqr(shape):
    field, mask, dipole = box_field(shape, padding=3)
    weight = 0.5 + torch.rand(shape)
    padded = dipole.padded_shape
    scale, d = data_weight(field, mask, dipole, weight, FLAT).double(), dipole.spectrum.double()

    def there(chi):
        return (scale * irfft(rfft(torch.from_numpy(chi).reshape(padded)) * d, padded, shape)).numpy().ravel()

    def back(residual):
        return irfft(rfft(scale * torch.from_numpy(residual).reshape(shape), padded) * d, padded).numpy().ravel()

    matrix = LinearOperator((field.numel(), int(np.prod(padded))), there, back, dtype=np.float64)
    start = torch.zeros(padded, dtype=torch.float64)
    crop(start, shape).copy_(tkd(field, mask, dipole))
    data = (scale * field).numpy().ravel()
    found = scipy_lsqr(matrix, data, atol=0, btol=0, conlim=0, iter_lim=6, x0=start.numpy().ravel())[0]
    expected = crop(torch.from_numpy(found).reshape(padded), shape).float() * mask
    chi = lsqr(field, mask, dipole, weight, iterations=6, tolerance=0.0)
    torch.testing.assert_close(chi, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_the_weighted_residual_vanishes_after_many_steps(shape):
    field, _, dipole = box_field(shape)
    field, dipole = field.double(), dipole.double()
    everywhere = torch.ones(shape, dtype=torch.bool)
    weight = data_weight(field, everywhere, dipole, None, FLAT)

    def slope_at(chi):
        chi = chi.detach().requires_grad_()
        objective = (weight * (dipole(chi) - field)).square().sum()
        return torch.autograd.grad(objective, chi)[0].norm()

    chi = lsqr(field, everywhere, dipole, iterations=1000, tolerance=0.0)
    assert slope_at(chi) < 1e-3 * slope_at(torch.zeros_like(field))


@pytest.mark.parametrize("shape", SHAPES)
def test_ilsqr_changes_nothing_away_from_the_cone(shape):
    field, _, dipole = box_field(shape)
    everywhere = torch.ones(shape, dtype=torch.bool)
    change = rfft(ilsqr(field, everywhere, dipole, threshold=0.12) - lsqr(field, everywhere, dipole))
    near = dipole.spectrum.abs() < 0.12
    assert change[near].abs().max() > 0.1
    assert change[~near].abs().max() < 1e-4 * change[near].abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_streaks_minimise_their_objective_near_the_cone(shape):
    field, mask, dipole = box_field(shape)
    field, dipole = field.double(), dipole.double()
    chi = tkd(field, mask, dipole)
    weights = edge_weights(fast_qsm(field, mask, dipole), mask, dipole)
    squares = [weight.square() for weight in weights]

    def slope_at(s):
        s = s.detach().requires_grad_()
        steps = [w * ahead(chi - s, i, size) for w, i, size in zip(weights, SPACE, VOXEL, strict=True)]
        (slope,) = torch.autograd.grad(sum(step.square().sum() for step in steps), s)
        return rfft(slope)[dipole.spectrum.abs() < 0.1].norm()

    s = streaks(chi, squares, dipole, 0.1, 1000, 1e-8, lambda: None)
    assert slope_at(s) < 1e-6 * slope_at(torch.zeros_like(chi))
    assert rfft(s)[dipole.spectrum.abs() >= 0.1].norm() < 1e-12 * rfft(s).norm()


def test_weights_fall_between_percentiles_and_know_nothing_from_outside():
    mask = torch.ones(10, 10, 10, dtype=torch.bool)
    mask[0] = False
    values = torch.arange(1000.0).reshape(10, 10, 10)
    weight = falling(values, mask, (50.0, 90.0))
    assert weight[~mask].max() == 0
    assert (weight[mask] == 1).float().mean() == pytest.approx(0.5, abs=0.01)
    assert (weight[mask] == 0).float().mean() == pytest.approx(0.1, abs=0.01)
    assert float(weight[6, 3, 0]) == pytest.approx((909 - 630) / (909 - 549), abs=0.01)
    assert not neighbours(mask)[0][-1].any() and neighbours(mask)[0][1:-1].all() and not neighbours(mask)[0][0].any()
    field, inside, dipole = box_field()
    shifted = data_weight(field + 5.0 * ~inside, inside, dipole, None, FLAT)
    torch.testing.assert_close(shifted, data_weight(field, inside, dipole, None, FLAT))


def test_ilsqr_has_fewer_streaks_than_lsqr_and_tkd():
    field, mask, dipole, truth = phantom(0.0, 4.0, error=0.2)
    errors = [rms_error(method(field, mask, dipole), truth, mask) for method in (ilsqr, lsqr, tkd)]
    assert errors[0] < 0.9 * min(errors[1:])


def test_least_squares_come_closer_than_division_where_the_field_is_good():
    field, mask, dipole, truth = phantom(0.0, 4.0)
    assert rms_error(lsqr(field, mask, dipole), truth, mask) < 0.97 * rms_error(tkd(field, mask, dipole), truth, mask)


@pytest.mark.parametrize(("strong", "radius"), [(1.0, 8.0), (-3.0, 4.0)])
def test_two_levels_recover_a_strong_source_better_than_one(strong, radius):
    field, mask, dipole, truth = phantom(strong, radius)
    one, two = total_variation(field, mask, dipole), star(field, mask, dipole)
    weak = mask & (truth != strong)
    assert rms_error(two, truth, weak) < 0.9 * rms_error(one, truth, weak)
    assert rms_error(two, truth, mask) < 0.9 * rms_error(one, truth, mask)


def test_without_strong_sources_the_second_level_is_total_variation():
    field, mask, dipole = box_field()
    chi = star(field, mask, dipole, strong_regularisation=10.0)
    torch.testing.assert_close(chi, total_variation(field, mask, dipole), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", [lsqr, ilsqr, star])
def test_cycling_the_axes_cycles_the_result(method):
    field, mask, dipole = box_field()
    x, y, z = (2, 0, 1)
    shape, size, b0 = (tuple(values[i] for i in (x, y, z)) for values in (dipole.shape, VOXEL, OBLIQUE))
    turned = DipoleModel(shape, size, b0, padding=0)
    expected = method(field, mask, dipole).permute(x, y, z)
    found = method(field.permute(x, y, z).contiguous(), mask.permute(x, y, z).contiguous(), turned)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("method", [lsqr, ilsqr, star])
def test_a_batch_equals_a_loop_and_nothing_is_outside_the_mask(method):
    field, mask, dipole = box_field((17, 14, 15), padding=2)
    fields, masks = torch.stack([field, 0.5 * field.flip(0)]), torch.stack([mask, mask.flip(0)])
    weights = 0.5 + torch.rand(fields.shape)
    both = method(fields, masks, dipole, weights)
    for k in range(2):
        torch.testing.assert_close(both[k], method(fields[k], masks[k], dipole, weights[k]))
    assert both[~masks].abs().max() == 0
    torch.testing.assert_close(method(fields + 5.0 * ~masks, masks, dipole, weights), both)


@pytest.mark.parametrize(("method", "levels"), [(lsqr, 1), (ilsqr, 2), (star, 2)])
def test_it_stops_early_and_tells_its_progress(method, levels):
    field, mask, dipole = box_field()
    seen = []
    method(field, mask, dipole, iterations=60, progress=lambda step, steps: seen.append((step, steps)))
    assert seen[0] == (1, 60 * levels)
    assert [step for step, _ in seen] == sorted({step for step, _ in seen})
    assert len(seen) < 60 * levels


@pytest.mark.parametrize("method", [lsqr, ilsqr, star])
def test_no_field_gives_no_chi(method):
    _, mask, dipole = box_field()
    chi = method(torch.zeros(dipole.shape), mask, dipole)
    assert chi.abs().max() == 0
