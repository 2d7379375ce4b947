"""TGV-QSM: chi from wrapped phase through a strong background, in any direction of B0, and its solver by itself."""

import math

import pytest
import torch

from chimap import metrics, pipeline
from chimap.errors import InputError
from chimap.inversion import tgv as module
from chimap.inversion.tgv import System, inner_voxels, laplacian_of_field, solved, tgv, wave_spectrum
from chimap.linalg import (
    behind,
    difference_spectra,
    divergence,
    gradient,
    irfft,
    rfft,
    symmetrised_divergence,
    symmetrised_gradient,
)
from chimap.physics.dipole import DipoleModel, unit_vector
from chimap.physics.sources import sphere, sphere_field
from chimap.physics.units import radians_per_ppm
from chimap.plan import Plan
from chimap.report.methods import methods_paragraph
from chimap.scan import Scan

OBLIQUE = unit_vector((0.35, -0.3, 0.85))
TIMES, TESLA = (0.004, 0.009), 3.0


def scene(size, b0=OBLIQUE, shape=(36, 40, 38), noise=0.02):
    """A ball with three sources of 0.1 to -0.1 ppm in it, and air of 9 ppm just outside; lengths as for 1 mm voxels."""
    generator = torch.Generator().manual_seed(1)
    n = tuple(round(length / voxel) for length, voxel in zip(shape, size, strict=True))
    middle = [(length - 1) / 2 for length in n]

    def at(*offset):
        return tuple(m * voxel + mm for m, mm, voxel in zip(middle, offset, size, strict=True))

    ball = sphere(n, size, centre=at(0, 0, 0), radius=15.0)
    chi = torch.zeros(n)
    for offset, radius, value in (((-5, 0, 2), 4.0, 0.1), ((5, 4, -3), 3.0, -0.1), ((3, -6, 4), 3.0, 0.06)):
        chi += sphere(n, size, centre=at(*offset), radius=radius, chi=value)
    background = sphere_field(n, size, b0, centre=at(0, 3, -26), radius=5.0, chi=9.0)
    background += 0.1 * (torch.arange(n[0]) * size[0]).reshape(-1, 1, 1)  # what a shim has left
    field = DipoleModel(n, size, b0, kernel="green")(chi) + background
    phase = torch.stack([field * radians_per_ppm(time, TESLA) for time in TIMES])
    phase += noise * torch.randn(phase.shape, generator=generator)
    return phase, ball > 0.5, chi


def found(size, b0=OBLIQUE, **options):
    phase, mask, chi = scene(size, b0, **options)
    wrapped = torch.atan2(phase.sin(), phase.cos())
    assert (wrapped - phase)[1, mask].abs().max() > 6  # there are wraps to be ignorant of
    result, valid = tgv(wrapped, None, mask, TIMES, TESLA, size, b0)
    return result, valid, chi, mask


@pytest.mark.parametrize("shape", [(8, 10, 12), (7, 9, 11)])
def test_symmetrised_divergence_is_minus_the_adjoint_of_the_gradient(shape):
    size = (0.7, 1.0, 2.0)
    vectors = torch.randn(2, 3, *shape, dtype=torch.float64)
    tensors = torch.randn(2, 6, *shape, dtype=torch.float64)
    twice = torch.tensor([1.0, 1, 1, 2, 2, 2], dtype=torch.float64).reshape(6, 1, 1, 1)
    left = (symmetrised_gradient(vectors, size) * tensors * twice).sum()
    torch.testing.assert_close(left, -(vectors * symmetrised_divergence(tensors, size)).sum())


def test_symmetrised_gradient_knows_a_shear_and_not_a_turn():
    x = torch.arange(6.0).reshape(6, 1, 1).expand(6, 6, 6)
    y = 2 * torch.arange(6.0).reshape(1, 6, 1).expand(6, 6, 6)
    inner = (slice(None), slice(1, None), slice(1, None), slice(1, None))
    shear = symmetrised_gradient(torch.stack([y, x, 0 * x]), (1.0, 2.0, 1.0))[inner]
    assert shear[3].unique().tolist() == [1.0]
    assert shear[[0, 1, 2, 4, 5]].abs().max() == 0
    turned = symmetrised_gradient(torch.stack([y, -x, 0 * x]), (1.0, 2.0, 1.0))[inner]
    assert turned.abs().max() == 0


@pytest.mark.parametrize("shape", [(8, 10, 12), (7, 9, 11)])
def test_spectra_are_those_of_the_differences(shape):
    size = (0.7, 1.0, 2.0)
    volume = torch.randn(shape, dtype=torch.float64)
    for axis, spectrum in enumerate(difference_spectra(shape, size)):
        torch.testing.assert_close(irfft(rfft(volume) * spectrum, shape), gradient(volume, size)[axis])
        back = irfft(rfft(volume) * -spectrum.conj(), shape)
        torch.testing.assert_close(back, behind(volume, axis - 3, size[axis]))


def test_the_wave_operator_is_exact_for_polynomials():
    """Laplace / 3 - (b . grad)^2 of x^T A x / 2 is trace A / 3 - b^T A b."""
    shape, size = (12, 11, 10), (0.8, 1.0, 2.0)
    matrix = torch.tensor([[1.0, 0.5, -0.7], [0.5, -2.0, 0.3], [-0.7, 0.3, 0.4]], dtype=torch.float64)
    axes = [torch.arange(n, dtype=torch.float64) * length for n, length in zip(shape, size, strict=True)]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    volume = torch.einsum("ixyz,ij,jxyz->xyz", place, matrix, place) / 2
    waved = irfft(rfft(volume) * wave_spectrum(shape, size, OBLIQUE), shape)[1:-1, 1:-1, 1:-1]
    b = torch.tensor(OBLIQUE, dtype=torch.float64)
    torch.testing.assert_close(waved, torch.full_like(waved, float(matrix.trace() / 3 - b @ matrix @ b)))


def test_the_solution_for_each_frequency_minimises_the_quadratic():
    shape, size = (6, 5, 8), (0.8, 1.0, 2.0)
    system = System(shape, size, OBLIQUE, slope=0.02, bend=0.05)
    c, p, q = torch.randn(shape), torch.randn(3, *shape), torch.randn(6, *shape)
    c -= c.mean()
    chi, w, left = system.solution(c, p, q)
    wave = wave_spectrum(shape, size, OBLIQUE).float()
    r = module.CONSTRAINT_PENALTY
    # what box chi leaves of the equation is -Laplace psi
    laplace = sum(part.abs().square() for part in difference_spectra(shape, size)).float()
    waved = irfft(rfft(chi) * wave, shape)
    laplace[0, 0, 0] = torch.inf  # psi has no mean
    spectrum = rfft(left - waved) / laplace
    psi = irfft(spectrum, shape).requires_grad_()
    chi, w = chi.clone().requires_grad_(), w.clone().requires_grad_()
    equation = irfft(rfft(chi) * wave, shape) - divergence(gradient(psi, size), size) - c
    bends = symmetrised_gradient(w, size) - q
    value = psi.square().sum() + r * equation.square().sum() + 0.02 * (gradient(chi, size) - w - p).square().sum()
    value = value + 0.05 * (bends[:3].square().sum() + 2 * bends[3:].square().sum())
    for slope in torch.autograd.grad(value / 2, (chi, psi, w)):
        assert slope.abs().max() < 1e-4


def test_laplacian_of_the_phase_ignores_turns_and_weighs_the_echoes():
    size = (0.8, 1.0, 2.0)
    phase, mask, _ = scene(size, noise=0.0)
    generator = torch.Generator().manual_seed(0)
    magnitude = torch.rand(phase.shape, generator=generator)
    alone = [laplacian_of_field(phase[e : e + 1], None, TIMES[e : e + 1], TESLA, size)[0] for e in (0, 1)]
    weight = [(magnitude[e] * TIMES[e]).square() for e in (0, 1)]
    expected = (alone[0] * weight[0] + alone[1] * weight[1]) / (weight[0] + weight[1])
    turns = 2 * math.pi * torch.randint(-3, 4, phase.shape, generator=generator)
    both, known = laplacian_of_field(phase + turns, magnitude, TIMES, TESLA, size)
    inner = inner_voxels(mask)
    torch.testing.assert_close(both[inner], expected[inner], rtol=1e-3, atol=1e-4)
    assert known.all()
    magnitude[:, 3, 4, 5] = 0
    assert not laplacian_of_field(phase, magnitude, TIMES, TESLA, size)[1][3, 4, 5]


def test_later_echoes_may_turn_more_than_half_way_from_voxel_to_voxel():
    x = torch.arange(12.0).reshape(12, 1, 1).expand(12, 6, 6)
    field = 0.024 * x**2  # [ppm]: near its end the second echo turns by 3.6 rad from voxel to voxel
    phase = torch.stack([field * radians_per_ppm(time, TESLA) for time in TIMES])
    found, _ = laplacian_of_field(torch.atan2(phase.sin(), phase.cos()), None, TIMES, TESLA, (1.0, 1.0, 1.0))
    torch.testing.assert_close(found[1:-1, 1:-1, 1:-1], torch.full((10, 4, 4), 0.048), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), (0.8, 0.8, 2.0)], ids=["1 mm", "anisotropic"])
def test_it_finds_chi_in_an_oblique_b0_through_a_strong_background(size):
    chi, valid, truth, mask = found(size)
    assert torch.equal(valid, inner_voxels(mask)) and not chi[~valid].any()
    assert metrics.correlation(chi, truth, valid) > 0.95
    assert metrics.nrmse(chi, truth, valid, demean=True) < 30
    assert 0.8 < metrics.slope(chi, truth, valid) < 1.1


def test_it_needs_the_right_direction_of_b0():
    phase, mask, truth = scene((1.0, 1.0, 1.0))
    chi, valid = tgv(phase, None, mask, TIMES, TESLA, (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))
    assert metrics.correlation(chi, truth, valid) < 0.8


def test_penalties_mean_the_same_for_other_voxels():
    """Strong penalties make the slope small, and on any grid as small."""
    slopes = []
    for size in ((1.0, 1.0, 1.0), (0.8, 0.8, 1.6)):
        phase, mask, truth = scene(size, noise=0.0)
        penalties = {"gradient_penalty": 1e-3, "bend_penalty": 3e-3, "iterations": 60}
        chi, valid = tgv(phase, None, mask, TIMES, TESLA, size, OBLIQUE, **penalties)
        slopes.append(metrics.slope(chi, truth, valid))
    assert slopes[0] < 0.85
    assert slopes[1] == pytest.approx(slopes[0], rel=0.05)


def test_whole_turns_change_nothing():
    size = (1.0, 1.0, 1.0)
    phase, mask, _ = scene(size)
    turns = 2 * math.pi * torch.randint(-2, 3, phase.shape, generator=torch.Generator().manual_seed(0))
    results = [tgv(p, None, mask, TIMES, TESLA, size, OBLIQUE, iterations=10)[0] for p in (phase, phase + turns)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)


def objective(chi, w, source, mask, valid, size, b0, alpha):
    """The primal objective of any chi and w, psi being the least that fulfils the equation: dense, in float64."""
    shape = mask.shape
    eye = torch.eye(mask.numel(), dtype=torch.float64).reshape(-1, *shape)
    rows = -divergence(gradient(eye, size), size)[:, valid].T  # -Laplace is symmetric: columns are rows
    right = (source - irfft(rfft(chi) * wave_spectrum(shape, size, b0), shape))[valid]
    psi = torch.linalg.pinv(rows[:, mask.flatten()]) @ right
    slopes, bends = gradient(chi, size) - w, symmetrised_gradient(w, size)
    bends = (bends[:3].square().sum(0) + 2 * bends[3:].square().sum(0)).sqrt()
    return float(psi.square().sum() / 2 + alpha[0] * slopes.norm(dim=0)[mask].sum() + alpha[1] * bends[mask].sum())


def small_problem():
    """9 x 8 x 7 voxels, few enough for dense algebra."""
    generator = torch.Generator().manual_seed(4)
    shape, size = (9, 8, 7), (1.0, 1.2, 1.5)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[1:-1, 1:-1, 1:-1] = True
    chi = torch.zeros(shape)
    chi[3:6, 3:6, 2:5] = 0.1
    source = irfft(rfft(chi) * wave_spectrum(shape, size, OBLIQUE).float(), shape)
    return source + 0.02 * torch.randn(shape, generator=generator), mask, inner_voxels(mask), size


def test_the_objective_falls_and_the_published_algorithm_finds_none_lower():
    """Chambolle and Pock's primal-dual iterations, which Langkammer et al. use, go down to it, and slowly."""
    source, mask, valid, size = small_problem()
    alpha = (2e-3, 6e-3)

    def value(chi, w):
        return objective(chi.double(), w.double(), source.double(), mask, valid, size, OBLIQUE, alpha)

    penalties = {"gradient_penalty": alpha[0], "bend_penalty": alpha[1], "tolerance": 0.0}
    values = [value(*solved(source, mask, valid, size, OBLIQUE, **penalties, iterations=n)) for n in (4, 20, 100, 300)]
    assert values == sorted(values, reverse=True)
    assert values[2] < 1.02 * values[3]
    early, late = (value(*primal_dual(source.double(), mask, valid, size, alpha, n)) for n in (100, 800))
    assert 0.999 * values[3] < late < early < 3 * values[3]


def primal_dual(source, mask, valid, size, alpha, iterations):
    """chi and w by the iterations of Chambolle and Pock 2011, doi:10.1007/s10851-010-0251-1, from their formulas."""
    shape, wave = source.shape, wave_spectrum(source.shape, size, OBLIQUE)

    def box(volume):
        return irfft(rfft(volume) * wave, shape)

    def laplace(volume):
        return divergence(gradient(volume, size), size)

    laplace_norm = 4 * sum(1 / length**2 for length in size)
    step = (2 * laplace_norm**2 + 2 * laplace_norm + 1) ** -0.5
    ratio = 0.02  # the dual variables are so much smaller than chi
    tau, sigma = step / ratio, step * ratio
    x = [torch.zeros(n, *shape, dtype=torch.float64) for n in (1, 3, 1)]  # chi, w, psi
    ahead_of_x = x
    eta, p, q = (torch.zeros(n, *shape, dtype=torch.float64) for n in (1, 3, 6))
    for _ in range(iterations):
        chi, w, psi = ahead_of_x
        eta = eta + sigma * valid * (box(chi) - laplace(psi) - source)
        p = p + sigma * mask * (gradient(chi[0], size) - w)
        p = p / (p.norm(dim=0) / alpha[0]).clamp_min(1)
        q = q + sigma * mask * symmetrised_gradient(w, size)
        q = q / ((q[:3].square().sum(0) + 2 * q[3:].square().sum(0)).sqrt() / alpha[1]).clamp_min(1)
        following = [
            x[0] - tau * (box(eta) - divergence(p, size)),
            x[1] + tau * (p + symmetrised_divergence(q, size)),
            (x[2] + tau * laplace(eta)) / (1 + tau),
        ]
        ahead_of_x = [2 * new - old for new, old in zip(following, x, strict=True)]
        x = following
    return x[0][0], x[1]


def test_it_stops_by_its_criterion(monkeypatch):
    taken = []
    solution = System.solution
    monkeypatch.setattr(System, "solution", lambda *arguments: taken.append(1) or solution(*arguments))
    phase, mask, _ = scene((1.0, 1.0, 1.0))
    steps, maps = [], []
    for tolerance in (5e-2, 5e-3, 0.0):
        taken.clear()
        options = {"tolerance": tolerance, "iterations": 80}
        maps.append(tgv(phase, None, mask, TIMES, TESLA, (1.0, 1.0, 1.0), OBLIQUE, **options)[0])
        steps.append(len(taken))
    assert steps[0] < steps[1] < steps[2] == 80
    errors = [float((chi - maps[2]).norm() / maps[2].norm()) for chi in maps]
    assert 0 < errors[1] < errors[0] < 0.3


@pytest.mark.parametrize(("shape", "message"), [((0, 0, 0), "the mask is empty"), ((12, 2, 12), "too thin")])
def test_a_mask_that_leaves_nothing_is_refused_in_one_sentence(shape, message):
    phase = torch.zeros(2, 16, 16, 16)
    mask = torch.zeros(16, 16, 16, dtype=torch.bool)
    mask[2 : 2 + shape[0], 2 : 2 + shape[1], 2 : 2 + shape[2]] = True
    with pytest.raises(InputError, match=message) as refused:
        tgv(phase, None, mask, TIMES, TESLA, (1.0, 1.0, 1.0), OBLIQUE)
    assert "\n" not in str(refused.value)


def test_a_mask_that_reaches_the_faces_of_the_grid_gives_what_it_does_on_a_larger_grid():
    phase, mask, _ = scene((1.0, 1.0, 1.0))
    inner = (slice(8, -8),) * 3
    cut = torch.zeros_like(mask)
    cut[inner] = mask[inner]
    arguments = (TIMES, TESLA, (1.0, 1.0, 1.0), OBLIQUE)
    whole, valid = tgv(phase, None, cut, *arguments, iterations=20)
    part, inside = tgv(phase[:, *inner], None, mask[inner], *arguments, iterations=20)
    assert torch.equal(valid[inner], inside)
    assert float((whole[inner] - part)[inside].norm() / part[inside].norm()) < 0.1


def test_the_pipeline_takes_it_and_says_so():
    phase, mask, truth = scene((1.0, 1.0, 1.0))
    wrapped = torch.atan2(phase.sin(), phase.cos())
    scan = Scan(wrapped, None, TIMES, TESLA, (1.0, 1.0, 1.0), OBLIQUE, torch.eye(4).numpy(), mask=mask)
    plan = Plan(inversion="tgv", background="vsharp", settings={"tgv": {"iterations": 30}})
    maps = pipeline.reconstruct(scan, plan)
    assert metrics.correlation(maps.chi, truth, maps.mask) > 0.85
    assert any("from the wrapped phase by tgv" in note for note in maps.notes)
    assert "total generalised variation (TGV-QSM)" in methods_paragraph(scan, maps, plan)
