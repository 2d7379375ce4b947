import math

import pytest
import torch

from chimap.errors import InputError
from chimap.fields.relaxation import noise_level, r2star_map

EVEN = (0.004, 0.010, 0.016, 0.022, 0.028)
UNEVEN = (0.0037, 0.0081, 0.0162, 0.0259)
SHAPE = (40, 44, 31)


def echoes(times, rate, *, snr=math.inf, seed=0):
    """Magnitude (echo, x, y, z) of a decay [1/s] with noise like a scanner's, and a mask; the SNR is that at TE = 0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.linspace(-1, 1, SHAPE[0])[:, None, None].expand(SHAPE)
    decay = torch.stack([(300 + 60 * x) * torch.exp(-time * rate) for time in times])
    noise = 300 / snr * torch.randn(2, *decay.shape, generator=generator)
    return torch.hypot(decay + noise[0], noise[1]), (x.abs() < 0.9).clone()


@pytest.mark.parametrize("times", [EVEN, UNEVEN, (0.006, 0.022)])
def test_without_noise_the_decay_is_found_for_any_echo_times(times):
    rate = torch.linspace(0, 150, SHAPE[1])[None, :, None].expand(SHAPE)
    magnitude, mask = echoes(times, rate)
    found = r2star_map(magnitude, mask, times)
    torch.testing.assert_close(found[mask], rate[mask], rtol=1e-3, atol=0.02)
    assert (found[~mask] == 0).all()


def by_logarithm(magnitude, times):
    """A line through the logarithms, weighted by the squared magnitude: what the noise floor spoils."""
    time, weight = torch.tensor(times)[:, None, None, None], magnitude.square()
    away = time - (weight * time).sum(0) / weight.sum(0)
    return -(weight * away * magnitude.log()).sum(0) / (weight * away.square()).sum(0)


@pytest.mark.parametrize("times", [EVEN, UNEVEN])
@pytest.mark.parametrize("rate", [20.0, 60.0])
def test_at_low_snr_the_floor_feigns_no_slower_decay(times, rate):
    magnitude, mask = echoes(times, torch.full(SHAPE, rate), snr=12.0)
    off = (r2star_map(magnitude, mask, times) - rate)[mask]
    line = (by_logarithm(magnitude, times) - rate)[mask]
    assert abs(off.median()) < 0.02 * rate
    assert line.median() < -0.02 * rate  # else this test proves nothing
    assert off.quantile(0.84) - off.quantile(0.16) < 1.3 * (line.quantile(0.84) - line.quantile(0.16))


def test_the_noise_comes_out_beside_a_decay_that_is_no_exponential():
    _, mask = echoes(EVEN, torch.full(SHAPE, 30.0))
    noise = 10 * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(4))
    x = torch.linspace(-1, 1, SHAPE[0])[:, None, None].expand(SHAPE)
    misfit = noise + 60 * x.square() * torch.tensor([-0.5, 1, -0.5])[:, None, None, None]
    misfit[:, 20, 20] += 500
    assert misfit[:, mask].std() > 20
    # of three echoes a fit of two numbers leaves the noise of one
    assert noise_level(misfit[:, mask], mask) == pytest.approx(10 * 3**0.5, rel=0.03)
    assert noise_level(misfit[:2, mask], mask) == 0


def test_the_unit_of_the_magnitude_and_the_axes_do_not_matter():
    magnitude, mask = echoes(EVEN, torch.full(SHAPE, 30.0), snr=20.0)
    found = r2star_map(magnitude, mask, EVEN)
    torch.testing.assert_close(r2star_map(1e-4 * magnitude, mask, EVEN), found, rtol=1e-3, atol=0.05)
    turned = r2star_map(magnitude.permute(0, 2, 3, 1).contiguous(), mask.permute(1, 2, 0).contiguous(), EVEN)
    torch.testing.assert_close(turned.permute(2, 0, 1), found, rtol=1e-3, atol=0.05)


def test_voxels_without_signal_are_zero_and_lost_ones_stay_bounded():
    magnitude, mask = echoes(EVEN, torch.full(SHAPE, 30.0), snr=20.0)
    magnitude[:, 10] = 0
    magnitude[1:, 12] = 0
    found = r2star_map(magnitude, mask, EVEN)
    assert torch.isfinite(found).all()
    assert (found[10] == 0).all()
    assert found.max() <= 3 / (EVEN[1] - EVEN[0]) + 1e-3 and found[12].min() > 200
    assert (r2star_map(torch.zeros_like(magnitude), mask, EVEN) == 0).all()


def test_what_cannot_be_fitted_is_refused():
    magnitude, mask = echoes(EVEN, torch.full(SHAPE, 30.0))
    with pytest.raises(InputError, match="two echoes or more"):
        r2star_map(magnitude[:1], mask, EVEN[:1])
    with pytest.raises(InputError, match="4 echo times came with 5 echoes of magnitude"):
        r2star_map(magnitude, mask, EVEN[:4])
