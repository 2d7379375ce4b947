import math

import pytest
import torch

from chimap.physics.signal import add_noise, gradient_echo_signal, intravoxel_dephasing, through_slices

SHAPE = (3, 4, 5)


def test_phase_turns_forwards_by_gamma_field_and_echo_time():
    m0, r2star = torch.full(SHAPE, 2.0), torch.full(SHAPE, 30.0)
    signal = gradient_echo_signal(m0, r2star, torch.full(SHAPE, 0.1), (0.004, 0.020), 3.0)
    # 0.1 ppm at 3 T is 12.773243 Hz
    expected = [2 * math.pi * 12.773243 * time for time in (0.004, 0.020)]
    assert signal.shape == (2, *SHAPE)
    assert signal.dtype == torch.complex64
    torch.testing.assert_close(signal[:, 0, 0, 0].angle(), torch.tensor(expected))
    torch.testing.assert_close(signal[:, 0, 0, 0].abs(), torch.tensor([2 * math.exp(-0.12), 2 * math.exp(-0.6)]))


def test_phase_offset_is_the_same_at_every_echo_and_strong_fields_wrap():
    ones = torch.ones(SHAPE)
    plain = gradient_echo_signal(ones, 0 * ones, 3 * ones, (0.01, 0.03), 7.0)
    moved = gradient_echo_signal(ones, 0 * ones, 3 * ones, (0.01, 0.03), 7.0, phase_offset=0.5 * ones)
    torch.testing.assert_close((moved * plain.conj()).angle(), torch.full((2, *SHAPE), 0.5))
    assert moved.angle().abs().max() <= math.pi


def test_a_batch_of_signals_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    m0, r2star, field = torch.rand(3, 2, *SHAPE, generator=generator)
    both = gradient_echo_signal(m0, r2star, field, (0.01, 0.02, 0.03), 3.0)
    assert both.shape == (2, 3, *SHAPE)
    one = gradient_echo_signal(m0[1], r2star[1], field[1], (0.01, 0.02, 0.03), 3.0)
    torch.testing.assert_close(both[1], one)


def test_dephasing_agrees_with_the_mean_over_a_voxel_for_a_gentle_gradient():
    x = torch.arange(9.0)[:, None, None].expand(9, 4, 5)
    slope = 0.05  # ppm a voxel: 0.128 cycles at 20 ms
    factor = intravoxel_dephasing(slope * x, (2.0, 1.0, 1.0), (0.02,), 3.0)
    fine = torch.linspace(-0.5, 0.5, 4001) * slope * 2 * math.pi * 127.73243 * 0.02
    assert factor.shape == (1, 9, 4, 5)
    assert float(factor[0, 4, 2, 2]) == pytest.approx(float(torch.cos(fine).mean()), abs=1e-3)
    assert float(intravoxel_dephasing(torch.ones(SHAPE), (1.0, 1.0, 1.0), (0.02,), 3.0).min()) == 1


def test_noise_has_the_stated_deviation_in_both_channels_and_follows_its_seed():
    signal = torch.full((2, 40, 40, 40), 3.0, dtype=torch.complex64)
    noisy = add_noise(signal, sigma=0.2, generator=torch.Generator().manual_seed(1))
    again = add_noise(signal, sigma=0.2, generator=torch.Generator().manual_seed(1))
    assert float(noisy.real.std()) == pytest.approx(0.2, rel=0.01)
    assert float(noisy.imag.std()) == pytest.approx(0.2, rel=0.01)
    assert float(noisy.real.mean()) == pytest.approx(3, abs=0.003)
    assert abs(float((noisy.real * noisy.imag).mean())) < 0.005
    assert torch.equal(noisy, again)


def test_negative_noise_is_refused():
    with pytest.raises(ValueError, match="sigma"):
        add_noise(torch.ones(1, 2, 2, 2), sigma=-1.0, generator=torch.Generator())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_average_and_hold_nothing_finer(axis):
    """A slow wave passes with the amplitude that a mean over the slice leaves it, a fast one not at all."""
    shape = [12, 12, 12]
    shape[axis] = 64
    at = (torch.arange(64) + 0.5).reshape([-1 if one == axis else 1 for one in range(3)]).expand(shape)
    for cycles, expected in ((4, math.sin(0.25 * math.pi) / (0.25 * math.pi)), (28, 0.0)):
        wave = torch.cos(2 * math.pi * cycles * at / 64)  # a mirrored cosine goes on as it was
        found = through_slices(wave, axis, 4.0)
        own = math.sin(math.pi * cycles / 64) / (math.pi * cycles / 64)  # of its own voxels
        torch.testing.assert_close(found, wave * expected / own, atol=0.01, rtol=0)
    flat = torch.full(shape, 3.0)
    torch.testing.assert_close(through_slices(flat, axis, 2.5), flat)
