"""Shares of echoes: by what they know of the field, and none where sines no longer follow it."""

import torch

from chimap.networks.echoes import echo_shares
from chimap.physics.phase import wrap
from chimap.physics.units import radians_per_ppm

TIMES = (0.004, 0.012, 0.020)
SHAPE = (16, 14, 12)
ONES = torch.ones(3, *SHAPE)


def phases_of(field, times=TIMES, tesla=3.0):
    return wrap(torch.stack([radians_per_ppm(time, tesla) * field for time in times]))


def test_where_the_phase_is_flat_shares_are_inverse_variances():
    generator = torch.Generator().manual_seed(0)
    magnitude = 1 + torch.rand(3, *SHAPE, generator=generator)
    mask = torch.ones(SHAPE, dtype=torch.bool)
    field = 0.01 * torch.randn(SHAPE, generator=generator)
    shares = echo_shares(phases_of(field), magnitude, mask, TIMES)
    weights = (magnitude * torch.tensor(TIMES).reshape(3, 1, 1, 1)).square()
    torch.testing.assert_close(shares, weights / weights.sum(dim=0), rtol=1e-4, atol=1e-6)
    times = torch.tensor(TIMES).square().reshape(3, 1, 1, 1)
    expected = (times / times.sum()).expand(3, *SHAPE)
    torch.testing.assert_close(echo_shares(phases_of(field), ONES, mask, TIMES), expected)


def test_echoes_that_turn_too_far_from_voxel_to_voxel_do_not_count():
    mask = torch.ones(SHAPE, dtype=torch.bool)
    x = torch.arange(SHAPE[0]).float()
    slope = torch.where(x < 8, 0.0, 2.0 / radians_per_ppm(0.020, 3.0))  # 0.4, 1.2 and 2 rad a voxel
    field = (slope * (x - 8)).reshape(-1, 1, 1).expand(SHAPE)
    shares = echo_shares(phases_of(field), ONES, mask, TIMES)
    assert (shares[2, 9:] == 0).all() and (shares[:2] > 0).all()
    assert (shares[2, :6] > 0.5).all()
    # six times as steep: even the second echo; the first is kept whatever it shows
    shares = echo_shares(phases_of(6 * field), ONES, mask, TIMES)
    assert (shares[1:, 9:] == 0).all() and (shares[0, 9:] == 1).all()
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(SHAPE))
    # and nothing that lies outside the mask is looked at
    shares = echo_shares(phases_of(6 * field), ONES, mask & (x < 8).reshape(-1, 1, 1), TIMES)
    assert (shares[2, :7] > 0.5).all()


def test_noise_is_not_taken_for_a_slope():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(SHAPE, dtype=torch.bool)
    noise = 0.2 * torch.randn(3, *SHAPE, generator=generator)
    late = (0.020, 0.028, 0.036)
    shares = echo_shares(wrap(noise), ONES, mask, late)
    assert float((shares[2] > 0).float().mean()) > 0.98
    # steps of the first echo, scaled to the last, would have taken a good part of it for steep
    steps = noise[0].diff(dim=0).abs() * late[2] / late[0]
    assert float((steps > 1.2).float().mean()) > 0.005


def test_a_scan_of_nothing_has_finite_shares():
    zero = torch.zeros(3, *SHAPE)
    shares = echo_shares(zero, zero, torch.ones(SHAPE, dtype=torch.bool), TIMES)
    assert torch.isfinite(shares).all()
