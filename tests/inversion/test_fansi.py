import math

import pytest
import torch

from chimap import methods
from chimap.errors import InputError
from chimap.inversion import fansi as module
from chimap.inversion.direct import tkd
from chimap.inversion.fansi import edge_shares, fansi, proximal_of_phase
from chimap.linalg import gradient
from chimap.physics.dipole import DipoleModel

VOXEL = (0.8, 1.0, 2.0)
OBLIQUE = (0.2, 0.3, 0.9)
SHAPE = (22, 19, 16)


def scene(voxel=VOXEL, noise=0.002):
    """chi of two boxes in an oblique B0, its field with noise, a mask that leaves the grid's rim out."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[2:-2, 2:-2, 2:-2] = True
    dipole = DipoleModel(SHAPE, voxel, OBLIQUE, padding=0)
    chi = torch.zeros(SHAPE)
    chi[5:10, 5:10, 5:9] = 0.1
    chi[12:16, 9:14, 7:12] = -0.05
    field = (dipole(chi) + noise * torch.randn(SHAPE, generator=generator)) * mask
    return field, mask, dipole, chi


def error(chi, truth, mask):
    difference, truth = (chi - truth)[mask], truth[mask]
    return float((difference - difference.mean()).norm() / (truth - truth.mean()).norm())


def on_a_lattice(low, high):
    """t, f and W in every combination that matters, t farther than a turn from f as well."""
    t, w = torch.meshgrid(torch.linspace(low, high, 401), torch.tensor([0.0, 0.3, 1.0, 2.5]), indexing="ij")
    return t.flatten(), torch.full((t.numel(),), 0.02), w.flatten()


@pytest.mark.parametrize("penalty", [0.1, 1.0])
def test_newton_finds_the_minimum_of_the_nonlinear_data_term(penalty):
    """Where the published iteration is unsure, W^2 above the penalty, too: no y of a fine grid has a lower value."""
    s = 16.0
    t, f, w = on_a_lattice(-0.5, 0.5)

    def value(y):
        return (w / s).square() * (1 - (s * (y - f)).cos()) + penalty / 2 * (y - t).square()

    y = proximal_of_phase(f, w, s, penalty)(t).requires_grad_()
    (slope,) = torch.autograd.grad(value(y).sum(), y)
    sure = (torch.remainder(s * (t - f) + math.pi, 2 * math.pi) - math.pi).abs() < 2.8
    assert slope[sure].abs().max() < 2e-4 * penalty
    found = value(y.detach())
    for shift in torch.linspace(-0.3, 0.3, 241):
        assert (found <= value(y.detach() + shift) + 1e-6)[sure].all()


def test_no_chi_nearby_has_a_lower_objective():
    """Of the docstring, and those of earlier iterations have higher ones; phases are wrong by several radians."""
    field, mask, dipole, _ = scene(noise=0.05)
    weight = (0.5 + torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))) * mask
    regularisation, s = 1e-3, 16.0

    def objective(chi):
        off = 1 - (s * (dipole(chi) - field)).cos()
        return ((weight / s).square() * off).sum() + regularisation * gradient(chi, VOXEL).abs().sum()

    everywhere = torch.ones_like(mask)
    options = {"radians_per_ppm": s, "regularisation": regularisation, "tolerance": 0.0}
    chi = fansi(field, everywhere, dipole, weight, iterations=200, **options)
    least = float(objective(chi))
    early = [float(objective(fansi(field, everywhere, dipole, weight, iterations=n, **options))) for n in (3, 30)]
    assert min(early) > least and early[1] < 1.05 * least
    generator = torch.Generator().manual_seed(2)
    for size in (1e-2, 1e-3):
        for _ in range(10):
            step = size * torch.randn(SHAPE, generator=generator)
            assert objective(chi + step) > least
        assert min(objective(chi * (1 + size)), objective(chi * (1 - size))) > least * (1 - 1e-4)


@pytest.mark.parametrize("voxel", [(1.0, 1.0, 1.0), VOXEL], ids=["1 mm", "anisotropic"])
def test_it_recovers_chi_in_an_oblique_b0_better_than_division(voxel):
    field, mask, dipole, truth = scene(voxel)
    chi = fansi(field, mask, dipole)
    assert error(chi, truth, mask) < 0.3 < 0.7 * error(tkd(field, mask, dipole), truth, mask)
    assert not chi[~mask].any()


def test_whole_turns_of_the_phase_change_nothing():
    field, mask, dipole, _ = scene()
    turns = torch.randint(-2, 3, SHAPE, generator=torch.Generator().manual_seed(3)) * 2 * math.pi / 16.0
    plain, turned = fansi(field, mask, dipole, iterations=20), fansi(field + turns * mask, mask, dipole, iterations=20)
    torch.testing.assert_close(turned, plain, rtol=0, atol=1e-5)


def test_lambda_means_the_same_at_any_echo_time():
    """As long as phases are small: with s divided out there is no echo time left."""
    field, mask, dipole, _ = scene(noise=0.0)
    found = [fansi(0.1 * field, mask, dipole, radians_per_ppm=s, regularisation=2e-5) for s in (4.0, 40.0)]
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 0.02


def test_a_weak_harmonic_remainder_is_told_from_chi():
    """x^2 - z^2 and a ramp have no Laplacian: without h they become chi."""
    field, mask, dipole, truth = scene((1.0, 1.0, 1.0))
    x, y, z = (torch.linspace(-1, 1, n).reshape([-1 if i == k else 1 for k in range(3)]) for i, n in enumerate(SHAPE))
    rest = 0.03 * (x**2 * (SHAPE[0] - 1) ** 2 - z**2 * (SHAPE[2] - 1) ** 2) / 400 + 0.02 * y
    spoilt = (field + rest) * mask
    errors = [error(fansi(spoilt, mask, dipole, harmonic=b, iterations=150), truth, mask) for b in (0.0, 150.0)]
    clean = error(fansi(field, mask, dipole, harmonic=150.0, iterations=150), truth, mask)
    assert errors[1] < 0.6 * errors[0]
    assert clean < 0.5


def test_edges_of_the_magnitude_are_kept():
    field, mask, dipole, truth = scene()
    magnitude = (1 + 5 * truth) * mask
    options = {"regularisation": 2e-3, "iterations": 100}
    even, edged = (error(fansi(field, mask, dipole, magnitude, edges=e, **options), truth, mask) for e in (0.0, 0.1))
    assert edged < 0.8 * even
    with pytest.raises(InputError, match="edges need a magnitude"):
        fansi(field, mask, dipole, edges=0.3)


def test_shares_of_edges_count_only_pairs_of_the_mask():
    _, mask, _, _ = scene()
    magnitude = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5)) * mask
    shares = edge_shares(magnitude, mask, VOXEL, 0.3)
    pairs = torch.stack([mask & mask.roll(-1, axis) for axis in range(3)])
    assert (shares[~pairs] == 1).all() and shares.min() > 0 and shares.max() <= 1
    assert float((shares[pairs] < 1).float().mean()) == pytest.approx(0.3, abs=0.01)


def test_generalised_variation_does_better_on_a_smooth_chi():
    dipole = DipoleModel(SHAPE, (1.0, 1.0, 1.0), OBLIQUE, padding=0)
    truth = (0.01 * (torch.arange(22.0) - 11).abs()).reshape(-1, 1, 1).expand(SHAPE).contiguous()
    field = dipole(truth) + 0.003 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(6))
    mask = torch.ones(SHAPE, dtype=torch.bool)
    options = {"regularisation": 1e-3, "iterations": 60}
    flat, smooth = (error(fansi(field, mask, dipole, tgv=t, **options), truth, mask) for t in (False, True))
    assert smooth < 0.5 * flat


@pytest.mark.parametrize("options", [{}, {"tgv": True}, {"harmonic": 150.0}, {"edges": 0.3}], ids=str)
def test_a_batch_equals_a_loop(options):
    field, mask, dipole, _ = scene()
    fields, masks = torch.stack([field, 0.5 * field.flip(0)]), torch.stack([mask, mask.flip(0)])
    weights = torch.rand(fields.shape, generator=torch.Generator().manual_seed(7)) * masks
    both = fansi(fields, masks, dipole, weights, iterations=7, **options)
    for k in range(2):
        torch.testing.assert_close(both[k], fansi(fields[k], masks[k], dipole, weights[k], iterations=7, **options))


def test_padding_keeps_the_shape_and_nearly_the_result():
    field, mask, dipole, truth = scene()
    wide = DipoleModel(SHAPE, VOXEL, OBLIQUE, padding=4)
    chi = fansi(wide(truth) + field - dipole(truth), mask, wide, mask.float(), edges=0.1)
    assert chi.shape == field.shape
    assert error(chi, truth, mask) < 1.5 * error(fansi(field, mask, dipole), truth, mask)


def test_the_table_has_it_and_lets_its_parameters_be_set():
    row = methods.find("fansi", "inversion")
    assert row.load() is module.fansi
    assert {"radians_per_ppm", "regularisation", "tgv", "harmonic", "edges"} <= set(row.parameters())
