from functools import partial

import pytest
import torch

from chimap import metrics
from chimap.errors import InputError
from chimap.inversion import nonlinear
from chimap.inversion.direct import tkd
from chimap.inversion.nonlinear import medi, medi_zero, ndi
from chimap.linalg import gradient
from chimap.physics.dipole import DipoleModel

VOXEL = (0.8, 1.0, 2.0)
OBLIQUE = (0.2, 0.3, 0.9)
RATE = 12.0


def phantom(shape=(18, 15, 14), strength=0.1, padding=4, noise=0.02):
    """A box in a block with a magnitude that shows both, an oblique B0 and voxels that are no cubes."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[2:-2, 2:-2, 2:-2] = True
    dipole = DipoleModel(shape, VOXEL, OBLIQUE, padding=padding)
    box = torch.zeros(shape)
    box[5:10, 5:9, 5:9] = 1
    chi = strength * box
    weight = (1 - 0.4 * box + 0.02 * torch.randn(shape, generator=generator)) * mask
    weight = weight / weight[mask].mean() * mask
    error = noise / RATE * torch.randn(shape, generator=generator)
    return (dipole(chi) + error) * mask, mask, dipole, weight, chi


def data_term(chi, field, square, dipole):
    return (
        0.5
        * (square * (torch.polar(torch.ones_like(field), RATE * (dipole(chi) - field)) - 1).abs() ** 2).sum()
        / (RATE**2)
    )


def medi_objective(chi, field, mask, dipole, weight, *, regularisation, edges, smoothing, csf=None, csf_weight=0.0):
    """As the docstrings have it, of chi on a grid without padding."""
    steps = gradient(chi, dipole.voxel_size)
    jumps = gradient(weight * mask, dipole.voxel_size).abs()
    limit = torch.quantile(jumps[:, mask], 1 - edges)
    smooth = torch.sqrt(steps**2 + smoothing**2)
    total = data_term(chi, field, (weight * mask) ** 2, dipole) + regularisation * smooth[jumps < limit].sum()
    if csf is not None:
        total = total + csf_weight / 2 * (chi[csf] - chi[csf].mean()).square().sum()
    return total


def whole_grid(function, field, mask, dipole, weight, **settings):
    """chi before it is masked: the objective counts what is outside, too."""
    found = []
    minimise = nonlinear._minimise

    def keep(*arguments):
        found.append(minimise(*arguments))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nonlinear, "_minimise", keep)
        function(field, mask, dipole, weight, radians_per_ppm=RATE, **settings)
    return found[0]


SETTINGS = {"regularisation": 1e-3, "edges": 0.25, "smoothing": 3e-3}


@pytest.mark.parametrize("shape", [(18, 15, 14), (17, 16, 15)])
@pytest.mark.parametrize("zero", [False, True])
def test_the_gradient_of_the_objective_vanishes_at_the_result_of_medi(shape, zero):
    field, mask, dipole, weight, _ = phantom(shape, padding=0)
    function, settings = medi, dict(SETTINGS)
    if zero:
        csf = torch.zeros_like(mask)
        csf[11:14, 3:8, 4:8] = True
        function, settings = medi_zero, SETTINGS | {"csf": csf, "csf_weight": 0.5}
    objective = partial(medi_objective, field=field, mask=mask, dipole=dipole, weight=weight, **settings)
    chi = whole_grid(function, field, mask, dipole, weight, iterations=60, tolerance=1e-7, **settings)
    slopes = []
    for volume in (torch.zeros_like(chi), chi):
        volume.requires_grad_()
        slopes.append(torch.autograd.grad(objective(volume), volume)[0].norm())
    assert slopes[1] < 2e-3 * slopes[0]


def test_the_objective_falls_with_every_step_of_medi():
    field, mask, dipole, weight, _ = phantom(padding=0)
    settings = {"regularisation": 1e-4, "edges": 0.25, "smoothing": 3e-4}
    steps = [
        whole_grid(medi, field, mask, dipole, weight, iterations=n, tolerance=0.0, **settings) for n in range(2, 8)
    ]
    values = [
        float(medi_objective(chi.double(), field.double(), mask, dipole.double(), weight.double(), **settings))
        for chi in steps
    ]
    assert all(later < earlier for earlier, later in zip(values, values[1:], strict=False))


@pytest.mark.parametrize("step", [2.0, 4.4])
def test_the_objective_falls_with_every_step_of_ndi_and_so_does_its_gradient(step, monkeypatch):
    monkeypatch.setattr(nonlinear, "LINEAR_STEPS", 0)
    field, mask, dipole, weight, _ = phantom()
    everywhere = torch.ones_like(mask)  # so that chi is not cut off; the weight is zero outside the mask
    square = (weight / weight.flatten().kthvalue(round(0.9 * weight.numel())).values).clamp(0, 1).square()
    values, slopes = [], []
    for iterations in (1, 2, 3, 5, 10, 30, 100):
        settings = dict(radians_per_ppm=RATE, step=step, iterations=iterations, tolerance=0.0)
        chi = ndi(field, everywhere, dipole, weight, **settings).requires_grad_()
        value = data_term(chi, field, square, dipole) + 1e-5 / 2 * chi.square().sum()
        values.append(float(value.detach()))
        slopes.append(float(torch.autograd.grad(value, chi)[0].norm()))
    assert all(later < earlier for earlier, later in zip(values, values[1:], strict=False))
    assert slopes[-1] < 0.03 * slopes[0]


@pytest.mark.parametrize(("function", "most"), [(ndi, 1.4), (medi, 0.4)])
def test_chi_is_found(function, most):
    """Where little but noise is wrong, NDI's early end costs it more than division gets wrong."""
    field, mask, dipole, weight, chi = phantom()
    found = function(field, mask, dipole, weight, radians_per_ppm=RATE)
    error, by_division = (metrics.nrmse(one, chi, mask, demean=True) for one in (found, tkd(field, mask, dipole)))
    assert error < most * by_division
    assert metrics.correlation(found, chi, mask) > 0.85
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize("function", [ndi, medi])
def test_a_batch_equals_a_loop(function):
    field, mask, dipole, weight, _ = phantom()
    fields, masks = torch.stack([field, 0.5 * field.flip(0)])[:, None], torch.stack([mask, mask.flip(0)])[:, None]
    weights = torch.stack([weight, weight.flip(0)])[:, None]
    both = function(fields, masks, dipole, weights, iterations=4)
    assert both.shape == fields.shape
    for k in range(2):
        one = function(fields[k, 0], masks[k, 0], dipole, weights[k, 0], iterations=4)
        torch.testing.assert_close(both[k, 0], one)
    torch.testing.assert_close(
        function(fields, mask, dipole, iterations=4)[0, 0], function(field, mask, dipole, iterations=4)
    )


@pytest.mark.parametrize("function", [ndi, medi])
def test_turning_the_axes_turns_chi(function):
    field, mask, dipole, weight, _ = phantom()
    turned = DipoleModel(
        (dipole.shape[1], dipole.shape[2], dipole.shape[0]),
        (*VOXEL[1:], VOXEL[0]),
        (*OBLIQUE[1:], OBLIQUE[0]),
        padding=4,
    )
    once = function(field, mask, dipole, weight, iterations=5)
    again = function(*(v.permute(1, 2, 0) for v in (field, mask)), turned, weight.permute(1, 2, 0), iterations=5)
    torch.testing.assert_close(again.permute(2, 0, 1), once, rtol=0, atol=2e-3 * float(once.abs().max()))


@pytest.mark.parametrize("function", [ndi, medi])
def test_the_rate_of_turning_has_no_part_where_the_phase_is_small(function):
    field, mask, dipole, weight, _ = phantom()
    slow, slower = (function(field, mask, dipole, weight, radians_per_ppm=rate) for rate in (0.2, 0.02))
    torch.testing.assert_close(slow, slower, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("function", "most"), [(ndi, 50), (medi, 5)])
def test_a_strong_source_is_not_led_to_another_turn(function, most, monkeypatch):
    field, mask, dipole, weight, chi = phantom(strength=2.0)
    assert (RATE * field).abs().max() > 2 * torch.pi
    found = function(field, mask, dipole, weight, radians_per_ppm=RATE)
    assert metrics.nrmse(found, chi, mask, demean=True) < most
    monkeypatch.setattr(nonlinear, "LINEAR_STEPS", 0)
    assert metrics.nrmse(ndi(field, mask, dipole, weight, radians_per_ppm=RATE), chi, mask, demean=True) > 100


@pytest.mark.parametrize("function", [ndi, medi])
def test_voxels_that_are_a_turn_off_do_no_harm(function):
    field, mask, dipole, weight, chi = phantom()
    wrong = field.clone()
    wrong[mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.01)] += 2 * torch.pi / RATE
    right, turned, linear = (
        metrics.nrmse(function(one, mask, dipole, weight, radians_per_ppm=rate), chi, mask, demean=True)
        for one, rate in ((field, RATE), (wrong, RATE), (wrong, 0.01))
    )
    assert turned < 1.2 * right and turned < 0.1 * linear


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_asked_share_of_the_magnitudes_differences_are_edges(share):
    _, mask, _, weight, _ = phantom()
    edges = torch.stack(nonlinear._edges(weight, mask, VOXEL, share))
    assert float(edges[:, mask].float().mean()) == pytest.approx(share, abs=1e-3)
    steps = gradient(weight * mask, VOXEL).abs()
    assert steps[edges].min() > steps[~edges].max()


def test_chi_may_jump_where_the_magnitude_does():
    field, mask, dipole, weight, chi = phantom()
    settings = dict(regularisation=5e-3, radians_per_ppm=RATE)
    with_edges, without = (medi(field, mask, dipole, one, **settings) for one in (weight, None))
    assert metrics.nrmse(with_edges, chi, mask, demean=True) < 0.6 * metrics.nrmse(without, chi, mask, demean=True)


def test_merit_lowers_the_influence_of_voxels_that_fit_nothing():
    field, mask, dipole, weight, chi = phantom()
    bad = field.clone()
    bad[12, 4, 4] += 0.2
    bad[7, 11, 9] -= 0.2
    settings = dict(radians_per_ppm=RATE, iterations=10, tolerance=0.0)
    error = {
        merit: metrics.nrmse(medi(bad, mask, dipole, weight, merit=merit, **settings), chi, mask, demean=True)
        for merit in (False, True)
    }
    assert error[True] < 0.7 * error[False]


def test_spheres_take_what_is_left_of_a_background_away():
    field, mask, dipole, weight, chi = phantom((24, 22, 18))
    x = torch.linspace(-1, 1, 24)[:, None, None]
    y = torch.linspace(-1, 1, 22)[:, None]
    harmonic = 0.05 * (x + x * y).expand(field.shape) * mask
    error = [
        metrics.nrmse(medi(field + harmonic, mask, dipole, weight, smv=radius), chi, mask, demean=True)
        for radius in (0.0, 2.5)
    ]
    assert error[1] < 0.5 * error[0]
    with pytest.raises(InputError, match="no sphere of 90 mm"):
        medi(field, mask, dipole, weight, smv=90.0)


def test_medi_zero_makes_fluid_uniform_and_zero():
    field, mask, dipole, weight, _ = phantom()
    csf = torch.zeros_like(mask)
    csf[11:14, 3:8, 4:8] = True
    streaked = field + 0.01 * torch.randn(field.shape, generator=torch.Generator().manual_seed(5)) * mask
    plain = medi(streaked, mask, dipole, weight)
    referred = medi_zero(streaked, mask, dipole, weight, csf=csf)
    assert abs(float(referred[csf].mean())) < 1e-6 and abs(float(plain[csf].mean())) > 1e-4
    assert referred[csf].std() < 0.5 * plain[csf].std()
    stronger = medi_zero(streaked, mask, dipole, weight, csf=csf, csf_weight=10.0)
    assert stronger[csf].std() < 0.5 * referred[csf].std()
    assert (referred[~mask] == 0).all()
    for nothing in (None, ~mask):
        with pytest.raises(InputError, match="needs a mask of the cerebrospinal fluid"):
            medi_zero(field, mask, dipole, weight, csf=nothing)
