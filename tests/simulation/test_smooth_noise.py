import numpy as np
import pytest
import torch
from scipy import ndimage

from chimap.errors import InputError
from chimap.simulation.smooth_noise import gaussian_blur, smooth_noise


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("spacing", [0.5, 1.3, 3.7, 40.0])
def test_every_voxel_has_mean_zero_and_variance_one(spacing):
    noise = smooth_noise((7, 6, 5), (1.0, 1.5, 2.0), spacing, generator=seeded(), channels=8000)
    torch.testing.assert_close(noise.var(dim=0), torch.ones(7, 6, 5), rtol=0, atol=0.09)  # 5 standard errors
    assert float(noise.mean(dim=0).abs().max()) < 0.06


def test_the_correlation_is_a_half_at_one_spacing_along_every_axis():
    lags = (6, 4, 3)  # of 12 mm
    found = []
    for seed in range(20):  # the lattice is shifted differently each time
        noise = smooth_noise((13, 10, 8), (2.0, 3.0, 4.0), 12.0, generator=seeded(seed), channels=200)
        for axis, lag in enumerate(lags, start=1):
            n = noise.shape[axis]
            found.append(float((noise.narrow(axis, 0, n - lag) * noise.narrow(axis, lag, n - lag)).mean()))
    for axis in range(3):
        assert np.mean(found[axis::3]) == pytest.approx(0.5, abs=0.03)


def test_an_axis_of_long_voxels_is_white():
    noise = smooth_noise((8, 8, 8), (1.0, 1.0, 4.0), 3.0, generator=seeded(), channels=500)
    assert abs(float((noise[..., 1:] * noise[..., :-1]).mean())) < 0.02
    assert float((noise[:, 1:] * noise[:, :-1]).mean()) > 0.7


def test_the_generator_decides():
    shape, size = (6, 7, 8), (1.0, 1.0, 1.0)
    one = smooth_noise(shape, size, 3.0, generator=seeded(1))
    assert one.shape == shape
    assert torch.equal(one, smooth_noise(shape, size, 3.0, generator=seeded(1)))
    assert not torch.equal(one, smooth_noise(shape, size, 3.0, generator=seeded(2)))
    assert smooth_noise(shape, size, 3.0, generator=seeded(1), channels=1).shape == (1, *shape)


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan")])
def test_a_spacing_that_is_no_length_is_refused(spacing):
    with pytest.raises(InputError, match="spacing"):
        smooth_noise((4, 4, 4), (1.0, 1.0, 1.0), spacing, generator=seeded())


@pytest.mark.parametrize("sigma", [0.0, 0.9, 2.0, 5.5, 14.0])
@pytest.mark.parametrize("size", [(1.0, 1.5, 2.5), (1.5, 2.5, 1.0)])
def test_the_blur_is_that_of_a_gaussian(sigma, size):
    volume = torch.zeros(2, 31, 28, 25)
    volume[0, 8:20, 5:, 9:14] = 1
    volume[1, :6, 10:12, 8:20] = 1
    exact = [ndimage.gaussian_filter(part, [sigma / d for d in size], mode="nearest") for part in volume.numpy()]
    blurred = gaussian_blur(volume, size, sigma)
    assert float((blurred - torch.from_numpy(np.stack(exact))).abs().max()) < 0.02


def test_the_blur_keeps_a_constant_up_to_the_faces():
    torch.testing.assert_close(
        gaussian_blur(torch.full((9, 8, 7), 3.0), (1.0, 2.0, 3.0), 9.0), torch.full((9, 8, 7), 3.0)
    )
