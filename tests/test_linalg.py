import pytest
import torch

from chimap.linalg import (
    bounding_box,
    conjugate_gradient,
    crop,
    divergence,
    dot,
    fast_shape,
    gradient,
    irfft,
    laplacian_spectrum,
    rfft,
)

VOXEL = (0.7, 1.0, 2.0)


@pytest.mark.parametrize("shape", [(8, 10, 12), (7, 9, 11)])
def test_divergence_is_minus_the_adjoint_of_gradient(shape):
    volume = torch.randn(2, *shape, dtype=torch.float64)
    vectors = torch.randn(2, 3, *shape, dtype=torch.float64)
    left = (gradient(volume, VOXEL) * vectors).sum()
    right = -(volume * divergence(vectors, VOXEL)).sum()
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("shape", [(8, 10, 12), (7, 9, 11)])
def test_the_fft_diagonalises_the_laplacian(shape):
    volume = torch.randn(shape, dtype=torch.float64)
    expected = -divergence(gradient(volume, VOXEL), VOXEL)
    found = irfft(rfft(volume) * laplacian_spectrum(shape, VOXEL), shape)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 10, 12), (7, 9, 11)])
def test_an_inverse_transform_of_what_is_kept_is_the_whole_one_cropped(shape):
    spectrum = rfft(torch.randn(2, *shape, dtype=torch.float64))
    torch.testing.assert_close(irfft(spectrum, shape, (5, 9, 4)), crop(irfft(spectrum, shape), (5, 9, 4)))


def test_gradient_of_a_ramp_is_its_slope_per_millimetre():
    ramp = torch.arange(6.0).reshape(6, 1, 1).expand(6, 5, 4)
    slopes = gradient(ramp, VOXEL)
    torch.testing.assert_close(slopes[0, :-1], torch.full((5, 5, 4), 1 / 0.7))
    assert slopes[1:].abs().max() == 0


def test_conjugate_gradient_solves_every_member_of_a_batch():
    scale = 1 + torch.rand(2, 4, 5, 6, dtype=torch.float64)
    truth = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    truth[1] *= 100  # each member needs its own steps
    found = conjugate_gradient(lambda x: scale * x, scale * truth, iterations=60, tolerance=1e-12)
    torch.testing.assert_close(found, truth)
    again = conjugate_gradient(lambda x: scale * x, scale * truth, start=truth, iterations=5)
    torch.testing.assert_close(again, truth)
    assert dot(truth, truth).shape == (2, 1, 1, 1)


def test_fast_shape_only_grows_and_is_even_along_z():
    assert fast_shape((7, 11, 13)) == (8, 12, 16)
    assert fast_shape((160, 192, 15)) == (160, 192, 16)


def test_bounding_box_is_tight_and_stays_in_the_grid():
    mask = torch.zeros(6, 7, 8, dtype=torch.bool)
    mask[1:3, 4, 7] = True
    assert bounding_box(mask) == (slice(1, 3), slice(4, 5), slice(7, 8))
    assert bounding_box(mask, (2, 1, 3)) == (slice(0, 5), slice(3, 6), slice(4, 8))
    with pytest.raises(ValueError, match="empty"):
        bounding_box(torch.zeros(3, 3, 3, dtype=torch.bool))
