import math

import pytest
import torch

from chimap.linalg import irfft
from chimap.physics.dipole import DipoleModel, GreenTensor, dipole_kernel, green_kernel

OBLIQUE = (0.2, -0.3, 0.93)
VOXEL = (0.7, 1.0, 2.0)


@pytest.mark.parametrize("shape", [(8, 10, 12), (7, 9, 11)])
@pytest.mark.parametrize("padding", [None, 0, 3])
@pytest.mark.parametrize("kernel", ["fourier", "green"])
def test_adjoint_is_the_transpose_of_forward(shape, padding, kernel):
    dipole = DipoleModel(shape, VOXEL, OBLIQUE, padding=padding, kernel=kernel).double()
    chi, field = torch.randn(2, *shape, dtype=torch.float64)
    torch.testing.assert_close((dipole(chi) * field).sum(), (chi * dipole.adjoint(field)).sum())


def test_kernel_by_hand():
    kernel = dipole_kernel((4, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 2.0))
    assert kernel[0, 0, 0] == 0
    assert float(kernel[0, 0, 1]) == pytest.approx(1 / 3 - 1)
    assert float(kernel[1, 0, 0]) == pytest.approx(1 / 3)
    assert float(kernel[1, 0, 1]) == pytest.approx(1 / 3 - 1 / 2)
    # voxels twice as long along z halve kz: 1/3 - 0.25 / 1.25
    stretched = dipole_kernel((4, 4, 4), (1.0, 1.0, 2.0), (0.0, 0.0, 1.0))
    assert float(stretched[1, 0, 1]) == pytest.approx(1 / 3 - 1 / 5)


@pytest.mark.parametrize("function", [dipole_kernel, green_kernel])
@pytest.mark.parametrize("shape", [(6, 8, 10), (7, 9, 11)])
def test_cycling_the_axes_cycles_the_kernel(function, shape):
    once = function(shape, VOXEL, OBLIQUE)
    cycled = function((*shape[1:], shape[0]), (*VOXEL[1:], VOXEL[0]), (*OBLIQUE[1:], OBLIQUE[0]))
    torch.testing.assert_close(cycled, once.permute(1, 2, 0))


@pytest.mark.parametrize("shape", [(6, 8, 10), (7, 9, 11)])
def test_half_kernel_is_half_of_the_kernel(shape):
    half = dipole_kernel(shape, VOXEL, OBLIQUE, half=True)
    torch.testing.assert_close(half, dipole_kernel(shape, VOXEL, OBLIQUE)[..., : shape[2] // 2 + 1])


def test_opposite_b0_gives_the_same_kernel():
    opposite = tuple(-component for component in OBLIQUE)
    torch.testing.assert_close(dipole_kernel((5, 6, 7), VOXEL, opposite), dipole_kernel((5, 6, 7), VOXEL, OBLIQUE))


def test_far_green_kernel_is_the_point_dipole():
    kernel = green_kernel((32, 32, 32), VOXEL, OBLIQUE)
    b = torch.tensor(OBLIQUE) / torch.tensor(OBLIQUE).norm()
    for index in [(5, 3, 4), (9, -2, 3), (-6, 7, -3)]:
        r = torch.tensor(index) * torch.tensor(VOXEL)
        cosine = float(r @ b / r.norm())
        point = (3 * cosine**2 - 1) / (4 * math.pi * float(r.norm()) ** 3) * math.prod(VOXEL)
        assert float(kernel[index]) == pytest.approx(point, rel=0.05)


def test_a_cubic_voxel_feels_no_field_of_its_own_but_a_flat_one_does():
    assert abs(float(green_kernel((8, 8, 8), (1.0, 1.0, 1.0), OBLIQUE)[0, 0, 0])) < 1e-12
    flat = green_kernel((8, 8, 8), (4.0, 4.0, 1e-3), (0.0, 0.0, 1.0))
    assert float(flat[0, 0, 0]) == pytest.approx(1 / 3 - 1, abs=1e-3)  # a thin plate across B0


def test_unpadded_field_wraps_around_and_padded_field_does_not():
    near_the_face = torch.zeros(24, 20, 16)
    near_the_face[1, 10, 8] = 1
    beside_the_other_face = (22, 10, 8)  # three voxels away on the torus, 21 in space
    circular = DipoleModel((24, 20, 16), (1.0, 1.0, 1.0), padding=0, kernel="green")(near_the_face)
    padded = DipoleModel((24, 20, 16), (1.0, 1.0, 1.0), kernel="green")(near_the_face)
    assert float(circular[beside_the_other_face]) == pytest.approx(-1 / (4 * math.pi * 27), rel=0.3)
    assert abs(float(padded[beside_the_other_face])) < 1e-4


def test_doubled_green_kernel_is_the_exact_sum_over_sources():
    shape = (6, 5, 7)
    chi = torch.randn(shape, dtype=torch.float64)
    kernel = green_kernel((12, 12, 14), VOXEL, OBLIQUE)
    expected = torch.zeros(shape, dtype=torch.float64)
    for i in range(6):
        for j in range(5):
            for k in range(7):
                shifted = kernel.roll((i, j, k), (0, 1, 2))[:6, :5, :7]
                expected += chi[i, j, k] * shifted
    found = DipoleModel(shape, VOXEL, OBLIQUE, kernel="green").double()(chi)
    # the model's mean over the padded grid is zero; the plain sum's is not quite
    torch.testing.assert_close(found - found.mean(), expected - expected.mean(), rtol=0, atol=2e-3)


def test_batches_equal_loops_and_gradients_flow():
    dipole = DipoleModel((7, 8, 9), VOXEL, OBLIQUE)
    chi = torch.randn(2, 3, 7, 8, 9, requires_grad=True)
    field = dipole(chi)
    torch.testing.assert_close(field[1, 2], dipole(chi[1, 2]))
    (0.5 * field.square().sum()).backward()
    assert chi.grad is not None
    torch.testing.assert_close(chi.grad, dipole.adjoint(field).detach(), rtol=1e-4, atol=1e-6)


def test_spectrum_of_a_padded_model_is_the_kernel_of_the_padded_grid():
    dipole = DipoleModel((7, 8, 9), VOXEL, OBLIQUE, padding=(2, 0, 5))
    full = dipole_kernel(dipole.padded_shape, VOXEL, OBLIQUE)
    torch.testing.assert_close(irfft(dipole.spectrum, dipole.padded_shape), torch.fft.ifftn(full).real)


def test_wrong_shapes_and_directions_are_refused():
    with pytest.raises(ValueError, match="this dipole model is for"):
        DipoleModel((7, 8, 9), VOXEL)(torch.zeros(7, 8, 8))
    with pytest.raises(ValueError, match="no length"):
        dipole_kernel((4, 4, 4), VOXEL, (0.0, 0.0, 0.0))


def test_the_tensor_is_the_kernel_of_every_direction():
    shape, voxel_size = (12, 9, 10), (1.0, 0.7, 2.0)
    chi = torch.randn(6, 5, 4)
    tensor = GreenTensor((12, 10, 8), voxel_size)
    for direction in ((0.0, 0.0, 1.0), (0.3, -0.5, 0.81), (1.0, 0.0, 0.0)):
        expected = DipoleModel((6, 5, 4), voxel_size, direction, kernel="green")
        assert expected.padded_shape == (12, 10, 8)
        made = DipoleModel((6, 5, 4), voxel_size, direction, kernel=tensor)
        torch.testing.assert_close(made(chi), expected(chi), atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="another grid"):
        DipoleModel(shape, voxel_size, kernel=tensor)
