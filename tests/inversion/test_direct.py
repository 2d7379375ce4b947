import pytest
import torch

from chimap.inversion.direct import l2_gradient, tikhonov, tkd, tsvd
from chimap.linalg import gradient
from chimap.physics.dipole import DipoleModel, dipole_kernel

VOXEL = (0.7, 1.0, 2.0)
OBLIQUE = (0.2, -0.3, 0.93)
SHAPES = [(8, 10, 12), (7, 9, 11)]


def everywhere(shape):
    return torch.ones(shape, dtype=torch.bool)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", [tkd, tsvd])
def test_division_by_hand_on_the_full_spectrum(function, shape):
    field = torch.randn(shape)
    kernel = dipole_kernel(shape, VOXEL, OBLIQUE)
    small = kernel.abs() <= 0.2
    inverse = torch.where(small, kernel.sign() / 0.2 if function is tkd else 0 * kernel, 1 / kernel)
    inverse[0, 0, 0] = 0
    expected = torch.fft.ifftn(torch.fft.fftn(field) * inverse).real
    found = function(field, everywhere(shape), DipoleModel(shape, VOXEL, OBLIQUE, padding=0), threshold=0.2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", [tkd, tsvd])
def test_correction_makes_the_point_spread_function_one_at_the_origin(function, shape):
    point = torch.zeros(shape)
    point[3, 4, 5] = 1
    dipole = DipoleModel(shape, VOXEL, OBLIQUE, padding=0)
    plain = function(dipole(point), everywhere(shape), dipole)
    corrected = function(dipole(point), everywhere(shape), dipole, correct_underestimation=True)
    assert float(plain[3, 4, 5]) < 0.97
    assert float(corrected[3, 4, 5]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("function", "penalty"),
    [(tikhonov, lambda chi: chi), (l2_gradient, lambda chi: gradient(chi, VOXEL))],
)
def test_gradient_of_the_objective_vanishes_at_the_result(function, penalty, shape):
    field = torch.randn(shape)
    field -= field.mean()
    dipole = DipoleModel(shape, VOXEL, OBLIQUE, padding=0)

    def slope_at(chi):
        chi = chi.detach().requires_grad_()
        objective = (dipole(chi) - field).square().sum() + 0.05 * penalty(chi).square().sum()
        return torch.autograd.grad(objective, chi)[0].norm()

    chi = function(field, everywhere(shape), dipole, regularisation=0.05)
    assert slope_at(chi) < 1e-4 * slope_at(torch.zeros(shape))


@pytest.mark.parametrize("function", [tkd, tsvd, tikhonov, l2_gradient])
def test_a_batch_equals_a_loop_and_nothing_is_outside_the_mask(function):
    mask = torch.rand(2, 8, 9, 10) > 0.3
    field = torch.randn(2, 8, 9, 10)
    dipole = DipoleModel((8, 9, 10), VOXEL, OBLIQUE)
    both = function(field, mask, dipole)
    for k in range(2):
        torch.testing.assert_close(both[k], function(field[k], mask[k], dipole))
    assert both[~mask].abs().max() == 0
    shifted = function(field + 5.0 * ~mask, mask, dipole)
    torch.testing.assert_close(shifted, both)  # what lies outside the mask is not data
