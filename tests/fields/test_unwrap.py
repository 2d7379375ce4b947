import math

import pytest
import torch

from chimap.fields.unwrap import unwrap_laplacian, unwrap_quality_guided, wrap

VOXEL = (1.0, 1.2, 2.0)
TIMES = (0.004, 0.010, 0.016)


def smooth_phase(shape=(40, 36, 30), turns=4.0):
    """A bump of several turns and a ramp, in rad, at the first echo."""
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    return turns * math.pi * torch.exp(-3 * (x**2 + y**2 + z**2)) + 3 * x


def ball(shape):
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    return x**2 + y**2 + z**2 < 0.9


def echoes_of(first, noise=0.0):
    torch.manual_seed(0)
    true = torch.stack([first * (time / TIMES[0]) for time in TIMES])
    return true, wrap(true + noise * torch.randn(true.shape))


def wrong_share(unwrapped, true, measured, mask):
    """Share of voxels whose phase is not the one congruent to the measurement that is nearest to the truth."""
    right = true + wrap(measured - true)
    turns = torch.round((unwrapped - right) / (2 * math.pi))[:, mask]
    return float((turns != turns.median(dim=1, keepdim=True).values).float().mean())


@pytest.mark.parametrize("magnitude", [True, False])
def test_noisy_echoes_are_unwrapped_exactly(magnitude):
    true, measured = echoes_of(smooth_phase(), noise=0.3)
    mask = ball(true.shape[1:])
    found = unwrap_quality_guided(measured, torch.ones_like(true) if magnitude else None, mask, TIMES, VOXEL)
    assert wrong_share(found, true, measured, mask) < 1e-3
    assert wrong_share(measured, true, measured, mask) > 0.1  # there was something to do
    torch.testing.assert_close(wrap(found - measured)[:, mask], torch.zeros(3, int(mask.sum())), atol=1e-4, rtol=0)
    assert found[:, ~mask].abs().max() == 0


def test_a_single_echo_with_many_wraps_is_unwrapped():
    true = smooth_phase(turns=12)[None]
    mask = ball(true.shape[1:])
    found = unwrap_quality_guided(wrap(true), None, mask, (0.03,), VOXEL)
    assert wrong_share(found, true, wrap(true), mask) == 0


def test_parts_that_do_not_touch_are_set_to_the_same_turn_by_their_echoes():
    true, measured = echoes_of(smooth_phase(turns=3.0))
    mask = ball(true.shape[1:])
    mask[:, 17:19] = False
    found = unwrap_quality_guided(measured, None, mask, TIMES, VOXEL)
    assert wrong_share(found, true, measured, mask) == 0


def test_bad_voxels_do_not_lead_good_ones_astray():
    true, measured = echoes_of(smooth_phase())
    mask = ball(true.shape[1:])
    magnitude = torch.ones_like(true)
    noisy = torch.zeros_like(mask)
    noisy[:, 16:20, :] = True  # a curtain of noise through the middle, with a hole in it
    noisy[15:25, :, 10:20] = False
    measured = torch.where(noisy, wrap(10 * torch.randn(true.shape)), measured)
    magnitude[:, noisy] = 0.05
    found = unwrap_quality_guided(measured, magnitude, mask, TIMES, VOXEL)
    assert wrong_share(found, true, measured, mask & ~noisy) == 0


def test_cycling_the_axes_cycles_the_result():
    true, measured = echoes_of(smooth_phase(), noise=0.2)
    mask = ball(true.shape[1:])
    once = unwrap_quality_guided(measured, None, mask, TIMES, VOXEL)
    again = unwrap_quality_guided(
        measured.permute(0, 2, 3, 1), None, mask.permute(1, 2, 0), TIMES, (*VOXEL[1:], VOXEL[0])
    )
    other = (again - once.permute(0, 2, 3, 1)).abs() > 1
    assert float(other.float().mean()) < 1e-3  # ties may fall otherwise


def test_laplacian_follows_smooth_phase():
    true, measured = echoes_of(smooth_phase(turns=2.0))
    mask = ball(true.shape[1:])
    found = unwrap_laplacian(measured, None, mask, TIMES, VOXEL)
    for echo in range(3):
        difference = (found[echo] - true[echo])[mask]
        assert difference.std() < 0.02 * true[echo][mask].std()
    assert found[:, ~mask].abs().max() == 0


def test_laplacian_knows_the_voxel_size():
    """Phase that is harmonic in mm, x^2 - z^2, has no sources; taken for 1 mm voxels it would have."""
    axes = [(torch.arange(n) - n / 2) * size for n, size in zip((30, 28, 20), VOXEL, strict=True)]
    x, _, z = torch.meshgrid(*axes, indexing="ij")
    phase = (0.05 * (x**2 - z**2) / 4)[None]
    mask = torch.ones(30, 28, 20, dtype=torch.bool)
    found = unwrap_laplacian(wrap(phase), None, mask, (0.01,), VOXEL)
    inner = (slice(None), slice(4, -4), slice(4, -4), slice(4, -4))
    difference = (found - phase)[inner]
    assert difference.std() < 1e-3 * phase[inner].std()
