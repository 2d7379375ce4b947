"""What the ADMM returns satisfies the optimality conditions of what it minimises; its parts do what they say."""

import pytest
import torch

from chimap.inversion.admm import FixedData, GeneralisedVariation, Slopes, SplitData, Variation, minimised
from chimap.inversion.total_variation import proximal_of_square
from chimap.linalg import (
    divergence,
    gradient,
    irfft,
    laplacian_spectrum,
    rfft,
    symmetrised_divergence,
    symmetrised_gradient,
)
from chimap.physics.dipole import DipoleModel

VOXEL = (0.8, 1.0, 2.0)
OBLIQUE = (0.2, 0.3, 0.9)
SHAPE = (13, 12, 10)


@pytest.fixture(scope="module")
def scene():
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[2:-2, 2:-2, 2:-2] = True
    dipole = DipoleModel(SHAPE, VOXEL, OBLIQUE, padding=0)
    chi = torch.zeros(SHAPE)
    chi[4:8, 4:8, 4:7] = 0.1
    weight = (0.5 + torch.rand(SHAPE, generator=generator)) * mask
    return dipole(chi) + 0.002 * torch.randn(SHAPE, generator=generator), mask, weight, dipole


def force(chi, field, weight, dipole):
    """Gradient of 1/2 |W (D chi - f)|^2."""
    return dipole.adjoint(weight.square() * (dipole(chi) - field))


def solved(scene, prior, relaxation):
    field, mask, weight, dipole = scene
    proximal = proximal_of_square(field[mask], weight[mask])
    data = SplitData(mask, dipole, proximal, relaxation=relaxation)
    return minimised(data, prior, SHAPE, iterations=800, tolerance=0.0)


@pytest.mark.parametrize("relaxation", [1.0, 1.8])
@pytest.mark.parametrize("edged", [False, True], ids=["even", "edges"])
def test_total_variation_satisfies_its_optimality_conditions(scene, relaxation, edged):
    """p = penalty u is within its bounds, aligned with grad chi, and D W^2 (D chi - f) = div p."""
    field, _, weight, dipole = scene
    edges = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1)) if edged else None
    prior = Variation(SHAPE, VOXEL, regularisation=1e-3, penalty=0.1, relaxation=relaxation, like=field, edges=edges)
    chi = solved((*scene[:3], dipole), prior, relaxation)
    bound = 1e-3 * (torch.ones(3, *SHAPE) if edges is None else edges)
    u = torch.stack([kept / size for kept, size in zip(prior.kept, VOXEL, strict=True)])
    p = torch.maximum(torch.minimum(0.1 * u, bound), -bound)
    steps = gradient(chi, VOXEL)
    total = float((bound * steps.abs()).sum())
    assert float((p * steps).sum()) == pytest.approx(total, rel=1e-3)
    residual = force(chi, field, weight, dipole) - divergence(p, VOXEL)
    assert residual.norm() < 1e-3 * dipole.adjoint(weight.square() * field).norm()


def test_total_generalised_variation_satisfies_its_optimality_conditions(scene):
    """With p and q within their bounds and aligned: D W^2 (D chi - f) = div p, and p + div q = 0."""
    field, _, weight, dipole = scene
    prior = GeneralisedVariation(SHAPE, VOXEL, regularisation=1e-3, bend=2e-3, penalty=0.1, relaxation=1.8, like=field)
    chi = solved(scene, prior, 1.8)
    w = prior.slopes.of_chi(rfft(chi), [part.clone() for part in prior.pending])
    p, q = 0.1 * prior.first[1], 0.2 * prior.second[1]
    assert p.abs().max() <= 1e-3 * (1 + 1e-5) and q.abs().max() <= 2e-3 * (1 + 1e-5)
    steps, bends = gradient(chi, VOXEL) - w, symmetrised_gradient(w, VOXEL)
    double = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 2.0]).reshape(6, 1, 1, 1)
    scale = 1e-3 * float(gradient(chi, VOXEL).abs().sum())
    assert float((1e-3 * steps.abs() - p * steps).sum()) < 1e-2 * scale
    assert float((double * (2e-3 * bends.abs() - q * bends)).sum()) < 1e-2 * scale
    residual = force(chi, field, weight, dipole) - divergence(p, VOXEL)
    assert residual.norm() < 1e-2 * dipole.adjoint(weight.square() * field).norm()
    assert (p + symmetrised_divergence(q, VOXEL)).norm() < 1e-2 * p.norm()


def test_a_ramp_costs_total_generalised_variation_little():
    """Where chi is known everywhere, a periodic tent comes back but for its bends; total variation flattens it."""
    tent = (torch.arange(24.0) - 12).abs().reshape(24, 1, 1).expand(24, 6, 6) * 0.01
    tent = (tent - tent.mean()).contiguous()
    spectrum = rfft(tent)
    data = FixedData(torch.ones_like(spectrum.real), spectrum)
    options = {"regularisation": 2e-2, "penalty": 2.0, "like": tent}
    slopes = []
    for prior in (
        Variation(tent.shape, (1.0, 1.0, 1.0), **options),
        GeneralisedVariation(tent.shape, (1.0, 1.0, 1.0), bend=2e-2, **options),
    ):
        found = minimised(data, prior, tuple(tent.shape), iterations=200, tolerance=0.0)
        slopes.append(float((found[14:22] - found[13:21]).mean()) / 0.01)
    assert slopes[0] < 0.9 < 0.95 < slopes[1] <= 1.0


def test_the_vector_field_eliminated_is_the_best(scene):
    """Autograd's gradient over w vanishes, and over chi it is curvature chi - right."""
    generator = torch.Generator().manual_seed(2)
    chi, p, q = (torch.randn(*n, *SHAPE, generator=generator) for n in ((), (3,), (6,)))
    slopes = Slopes(SHAPE, VOXEL, slope=0.3, bend=0.7)
    right, own = slopes.right(p, q)
    w = slopes.of_chi(rfft(chi), own).requires_grad_()
    chi.requires_grad_()
    bends = symmetrised_gradient(w, VOXEL) - q
    value = 0.15 * (gradient(chi, VOXEL) - w - p).square().sum()
    value = value + 0.35 * (bends[:3].square().sum() + 2 * bends[3:].square().sum())
    of_w, of_chi = torch.autograd.grad(value, (w, chi))
    assert of_w.abs().max() < 1e-4
    expected = irfft(slopes.curvature * rfft(chi.detach()) - right, SHAPE)
    torch.testing.assert_close(of_chi, expected, rtol=0, atol=1e-3)


def test_padding_of_the_grid_is_free_of_data(scene):
    """What is appended to the grid belongs to nobody's mask: chi there is free and the data term does not see it."""
    field, mask, weight, _ = scene
    dipole = DipoleModel(SHAPE, VOXEL, OBLIQUE, padding=(5, 6, 6))
    data = SplitData(mask, dipole, proximal_of_square(field[mask], weight[mask]))
    assert len(data.inside) == int(mask.sum())
    kept = torch.zeros(dipole.padded_shape, dtype=torch.bool)
    kept.view(-1)[data.inside] = True
    assert torch.equal(kept[: SHAPE[0], : SHAPE[1], : SHAPE[2]], mask) and int(kept.sum()) == int(mask.sum())


class Smooth:
    """alpha / 2 |grad chi|^2: needs no splitting."""

    def __init__(self, alpha):
        self.curvature = alpha * laplacian_spectrum(SHAPE, VOXEL)

    def right(self, chi, spectrum):
        return torch.zeros_like(spectrum)


@pytest.mark.parametrize("harmonic", [0.5, 20.0])
def test_chi_and_the_weakly_harmonic_remainder_are_the_best_together(scene, harmonic):
    """Autograd's gradient of 1/2 |W (D chi + h - f)|^2 + beta / 2 |M Laplace h|^2 + prior vanishes for both."""
    field, mask, weight, dipole = scene
    data = SplitData(mask, dipole, proximal_of_square(field[mask], weight[mask]), relaxation=1.8, harmonic=harmonic)
    found = minimised(data, Smooth(0.05), SHAPE, iterations=600, tolerance=0.0)
    rest = irfft(data.remainder.known - data.remainder.soft * dipole.spectrum * rfft(found), SHAPE)

    def slopes(chi, h):
        chi, h = chi.clone().requires_grad_(), h.clone().requires_grad_()
        value = (weight * (dipole(chi) + h - field)).square().sum()
        value = value + harmonic * (mask * divergence(gradient(h, VOXEL), VOXEL)).square().sum()
        return torch.autograd.grad((value + 0.05 * gradient(chi, VOXEL).square().sum()) / 2, (chi, h))

    zero = torch.zeros_like(field)
    for at_result, at_zero in zip(slopes(found, rest), slopes(zero, zero), strict=True):
        assert at_result.norm() < 0.02 * at_zero.norm()
    assert rest.std() > 0.01 * field.std()
