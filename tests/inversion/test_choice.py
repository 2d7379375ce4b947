import math

import pytest
import torch

from chimap import from_local_field, metrics
from chimap.errors import InputError
from chimap.inversion.choice import Point, choose, corner, error_near_cone, penalty_of
from chimap.inversion.direct import tikhonov
from chimap.physics.dipole import DipoleModel

VOXEL, OBLIQUE = (1.0, 1.2, 0.9), (0.2, -0.3, 0.93)
SHAPE = (41, 36, 45)


@pytest.fixture(scope="module")
def phantom():
    """Ellipsoids in a ball, their field and the mask."""
    axes = [(torch.arange(n) - (n - 1) / 2) * size for n, size in zip(SHAPE, VOXEL, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    mask = x**2 + y**2 + z**2 < 17**2
    chi = 0.1 * ((x - 4) ** 2 + (y + 5) ** 2 + 2 * z**2 < 30) - 0.08 * ((x + 6) ** 2 + (y - 3) ** 2 + (z - 4) ** 2 < 16)
    chi = chi + 0.05 * ((x + 4) ** 2 + (y + 4) ** 2 + (z + 6) ** 2 < 9)
    return chi, DipoleModel(SHAPE, VOXEL, OBLIQUE)(chi), mask


def noisy(phantom, noise, seed=0):
    _, field, mask = phantom
    return (field + noise * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))) * mask


@pytest.mark.parametrize("sharp", [1.0, 2.0])
def test_the_corner_of_a_known_curve_is_found(sharp):
    """misfit = 1 + (lambda / 0.02)^s and penalty = 1 + (0.02 / lambda)^s turn at lambda = 0.02."""
    values = [10 ** (-4 + step / 5) for step in range(21)]
    points = [Point(v, 1 + (v / 0.02) ** sharp, 1 + (0.02 / v) ** sharp) for v in values]
    found, is_one = corner(points)
    assert is_one and abs(math.log10(found / 0.02)) <= 0.11


def test_a_curve_that_turns_the_other_way_has_no_corner():
    values = [10 ** (-4 + step / 4) for step in range(17)]
    points = [Point(v, math.exp(math.log(v / 1e-5)), math.exp(-(math.log(v / 1e-5) ** 2) / 10)) for v in values]
    assert not corner(points)[1]


@pytest.mark.parametrize("method", ["tikhonov", "l2", "tv"])
def test_the_discrepancy_principle_reaches_the_noise(phantom, method):
    field, mask = noisy(phantom, 0.002), phantom[2]
    choice = from_local_field.chosen_regularisation(
        field, mask, VOXEL, OBLIQUE, method=method, criterion="discrepancy", error=0.002
    )
    assert choice.reached and choice.known
    assert choice.misfit == pytest.approx(0.002, rel=0.05)
    settings = {method: {"regularisation": choice.regularisation}}
    chi = from_local_field.invert(field, mask, VOXEL, OBLIQUE, method=method, settings=settings)
    dipole = DipoleModel(SHAPE, VOXEL, OBLIQUE, padding=from_local_field.missing_margin(mask, VOXEL))
    assert float((dipole(chi) - field)[mask].square().mean().sqrt()) == pytest.approx(choice.misfit, rel=1e-4)


@pytest.mark.parametrize(("method", "noise"), [("tikhonov", 0.001), ("tikhonov", 0.004), ("tv", 0.004)])
def test_what_is_chosen_without_knowing_the_noise_is_near_the_best(phantom, method, noise):
    chi, _, mask = phantom
    field = noisy(phantom, noise, seed=1)

    def error(value):
        settings = {method: {"regularisation": value}}
        found = from_local_field.invert(field, mask, VOXEL, OBLIQUE, method=method, settings=settings)
        return metrics.nrmse(found, chi, mask, demean=True)

    choice = from_local_field.chosen_regularisation(field, mask, VOXEL, OBLIQUE, method=method, criterion="discrepancy")
    assert not choice.known and choice.error == pytest.approx(noise, rel=0.35)
    usual = {"tikhonov": 1e-2, "tv": 3e-4}[method]
    tried = {usual * 10 ** (step / 3): error(usual * 10 ** (step / 3)) for step in range(-3, 4)}
    best = min(tried, key=tried.get)
    assert 1 / 5 < choice.regularisation / best < 5
    assert error(choice.regularisation) < tried[best] + 6


def test_the_l_curve_has_its_corner_between_too_little_and_too_much(phantom):
    choice = from_local_field.chosen_regularisation(
        noisy(phantom, 0.004), phantom[2], VOXEL, OBLIQUE, method="l2", criterion="l-curve"
    )
    values = [point.regularisation for point in choice.points]
    assert choice.reached and values == sorted(values)
    assert values[0] < choice.regularisation < values[-1]
    assert "corner of the L-curve" in choice.sentence


def test_error_near_the_cone_is_the_noise_even_if_it_is_not_white(phantom):
    mask = phantom[2]
    white = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    smooth = torch.nn.functional.avg_pool3d(white[None, None], 5, stride=1, padding=2)[0, 0]
    for error in (0.004 * white, 0.03 * smooth):
        found = error_near_cone((phantom[1] + error) * mask, mask, VOXEL, OBLIQUE)
        assert found == pytest.approx(float(error[mask].std()), rel=0.2)


def test_a_field_that_no_regularisation_explains_is_said_to_be_one(phantom):
    field, mask = noisy(phantom, 0.002), phantom[2]
    how = dict(method="tikhonov", criterion="discrepancy")
    little = from_local_field.chosen_regularisation(field, mask, VOXEL, OBLIQUE, **how, error=1e-6)
    much = from_local_field.chosen_regularisation(field, mask, VOXEL, OBLIQUE, **how, error=1.0)
    for choice in (little, much):
        assert not choice.reached and "no lambda brings them together" in choice.sentence
    assert little.regularisation == pytest.approx(1e-2)
    assert much.regularisation == pytest.approx(1.0)


def test_penalties_count_what_the_methods_hold_down():
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[5:30, 5:30, 5:30] = True
    chi = torch.arange(SHAPE[0]).float()[:, None, None].expand(SHAPE) * mask
    pairs = 24 * 25 * 25
    assert penalty_of("variation", mask, (2.0, 1.0, 1.0))(chi) == pytest.approx(pairs / 2)
    assert penalty_of("gradient", mask, (2.0, 1.0, 1.0))(chi) == pytest.approx(math.sqrt(pairs / 4))
    assert penalty_of("chi", mask, (2.0, 1.0, 1.0))(chi) == pytest.approx(float(chi.norm()))


def test_what_cannot_be_chosen_is_refused(phantom):
    _, field, mask = phantom
    with pytest.raises(InputError, match="tkd has no regularisation to choose; .*tikhonov"):
        from_local_field.chosen_regularisation(field, mask, VOXEL, OBLIQUE, method="tkd", criterion="discrepancy")
    dipole = DipoleModel(SHAPE, VOXEL, OBLIQUE)
    how = dict(around=1e-2, penalty=penalty_of("chi", mask, VOXEL))
    with pytest.raises(InputError, match="needed ppm above 0"):
        choose(lambda _: tikhonov(field, mask, dipole), field, mask, dipole, criterion="discrepancy", error=0.0, **how)
