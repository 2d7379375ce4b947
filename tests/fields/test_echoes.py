import math

import pytest
import torch

from chimap.errors import InputError
from chimap.fields.combination import from_around, nonlinear_field, weighted_field
from chimap.fields.echoes import phase_offset, readout_phase, without_readout_phase
from chimap.fields.unwrap import unwrap_quality_guided
from chimap.physics.phase import TURN, wrap
from chimap.physics.units import radians_per_ppm

TIMES = (0.004, 0.010, 0.016, 0.022, 0.028)
SIZE = (2.0, 1.5, 3.0)
B0 = 3.0


def head(*, times=TIMES, noise=0.05, shift=0.0, shape=(40, 46, 31), seed=0):
    """Field [ppm], offset [rad], measured phase and magnitude, mask. The field's mean is `shift`."""
    generator = torch.Generator().manual_seed(seed)
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij")
    mask = x**2 + y**2 + z**2 < 0.9
    field = 0.5 * x - 0.4 * y**2 + 0.2 * z + 0.6 * torch.exp(-((x - 0.3) ** 2 + y**2 + (z + 0.6) ** 2) / 0.05)
    field += shift - field[mask].mean()
    offset = 0.8 + 1.1 * x - 0.7 * y * z + 0.6 * y**2
    angle = torch.stack([offset + field * radians_per_ppm(time, B0) for time in times])
    decay = torch.exp(-torch.tensor(times)[:, None, None, None] * (25 + 20 * x**2))
    signal = torch.polar(decay * (1 + 0.4 * z), angle)
    signal = signal + noise * torch.complex(*torch.randn(2, *signal.shape, generator=generator))
    return field, offset, signal.angle(), signal.abs(), mask


@pytest.mark.parametrize("times", [TIMES, (0.005, 0.0125), (0.012, 0.015, 0.02)])
@pytest.mark.parametrize("with_magnitude", [True, False])
def test_the_offset_is_found_up_to_a_constant(times, with_magnitude):
    _, offset, phase, magnitude, mask = head(times=times)
    found = phase_offset(phase, magnitude if with_magnitude else None, mask, times, SIZE)
    error = (found - offset)[mask]
    assert offset[mask].std() > 0.4
    assert (error - error.median()).std() < 0.08
    assert (error - error.median()).abs().max() < 0.4
    assert found[~mask].abs().max() == 0


@pytest.mark.parametrize("shift", [0.0, 1.3, -1.5])
def test_the_offset_of_echoes_that_are_not_evenly_spaced_is_found_whole(shift):
    times = (0.004, 0.0103, 0.0158, 0.0227)
    field, offset, phase, magnitude, mask = head(times=times, noise=0.01, shift=shift)
    found = phase_offset(phase, magnitude, mask, times, SIZE)
    assert abs(math.remainder(float((found - offset)[mask].median()), TURN)) < 0.05
    rest = wrap(phase - found)
    unwrapped = unwrap_quality_guided(rest, magnitude, mask, times, SIZE)
    total, _ = weighted_field(unwrapped, magnitude, mask, times, B0)
    assert (total - field)[mask].abs().median() < 0.02


def test_one_echo_has_no_offset():
    _, _, phase, magnitude, mask = head(times=(0.02,))
    assert phase_offset(phase, magnitude, mask, (0.02,), SIZE).abs().max() == 0


def test_a_scan_without_offset_keeps_its_phase():
    _, offset, phase, magnitude, mask = head()
    found = phase_offset(wrap(phase - offset), magnitude, mask, TIMES, SIZE)
    assert found[mask].abs().max() < 0.2


@pytest.mark.parametrize("times", [TIMES, (0.012,), (0.006, 0.018)])
def test_the_field_of_a_whole_acquisition_is_found(times):
    field, offset, phase, magnitude, mask = head(times=times)
    if len(times) == 1:
        phase = wrap(phase - offset)
    phase = wrap(phase - phase_offset(phase, magnitude, mask, times, SIZE))
    unwrapped = unwrap_quality_guided(phase, magnitude, mask, times, SIZE)
    found, _ = weighted_field(unwrapped, magnitude, mask, times, B0)
    error = (found - field)[mask]
    assert error.std() < 0.05 * field[mask].std()
    assert found[~mask].abs().max() == 0


def test_weighted_least_squares_by_hand():
    # two echoes of magnitudes 2 and 1: f = (4 a1 p1 + a2 p2) / (4 a1^2 + a2^2)
    times = (0.005, 0.010)
    a1, a2 = (radians_per_ppm(time, B0) for time in times)
    unwrapped = torch.stack([torch.full((4, 4, 4), 0.30), torch.full((4, 4, 4), 0.70)])
    magnitude = torch.stack([torch.full((4, 4, 4), 2.0), torch.full((4, 4, 4), 1.0)])
    mask = torch.ones(4, 4, 4, dtype=torch.bool)
    mask[0] = False
    field, noise = weighted_field(unwrapped, magnitude, mask, times, B0)
    expected = (4 * a1 * 0.30 + a2 * 0.70) / (4 * a1**2 + a2**2)
    torch.testing.assert_close(field[mask], torch.full_like(field[mask], expected))
    torch.testing.assert_close(noise[mask], torch.full_like(noise[mask], (4 * a1**2 + a2**2) ** -0.5))
    assert torch.isinf(noise[~mask]).all() and (field[~mask] == 0).all()


def test_the_noise_is_what_the_field_scatters_by_for_a_magnitude_noise_of_one():
    field, _, _, magnitude, mask = head(noise=0.0)
    generator = torch.Generator().manual_seed(1)
    angle = torch.stack([field * radians_per_ppm(time, B0) for time in TIMES])
    unwrapped = angle + 0.02 / magnitude * torch.randn(angle.shape, generator=generator)
    found, noise = weighted_field(unwrapped, magnitude, mask, TIMES, B0)
    score = ((found - field) / noise)[mask]
    weak, strong = noise[mask] > noise[mask].median(), noise[mask] <= noise[mask].median()
    assert noise[mask][weak].mean() > 1.2 * noise[mask][strong].mean()
    assert 0.97 < score[weak].std() / score[strong].std() < 1.03
    assert float(score.std()) == pytest.approx(0.02, rel=0.03)  # the noise of the magnitude


def test_echoes_off_by_whole_turns_give_the_same_field():
    field, _, _, magnitude, mask = head(noise=0.0)
    times = (0.0041, 0.0103, 0.0158, 0.0227, 0.028)
    unwrapped = torch.stack([field * radians_per_ppm(time, B0) for time in times])
    off = unwrapped + TURN * torch.tensor([1.0, -2.0, 0.0, 3.0, 1.0])[:, None, None, None]
    found, _ = weighted_field(off, magnitude, mask, times, B0)
    torch.testing.assert_close(found[mask], field[mask], atol=1e-4, rtol=0)


def test_without_magnitude_or_with_zeros_in_it_the_field_stays_finite():
    field, _, _, magnitude, mask = head(noise=0.0)
    unwrapped = torch.stack([field * radians_per_ppm(time, B0) for time in TIMES])
    found, noise = weighted_field(unwrapped, None, mask, TIMES, B0)
    torch.testing.assert_close(found[mask], field[mask], atol=1e-4, rtol=0)
    assert noise[mask].std() < 1e-6
    magnitude[:, 20:25] = 0
    found, noise = weighted_field(unwrapped, magnitude, mask, TIMES, B0)
    assert torch.isfinite(found).all()
    assert torch.isinf(noise[20:25]).all() and torch.isfinite(noise[:20][mask[:20]]).all()


def test_what_does_not_belong_together_is_refused():
    phase = torch.zeros(2, 6, 6, 6)
    mask = torch.ones(6, 6, 6, dtype=torch.bool)
    with pytest.raises(InputError, match="1 echo times came with 2 echoes of phase"):
        phase_offset(phase, None, mask, (0.01,), SIZE)
    with pytest.raises(InputError, match="1 echo times came with 2 echoes of unwrapped phase"):
        weighted_field(phase, None, mask, (0.01,), B0)


def unwrapped_of(**options):
    field, offset, phase, magnitude, mask = head(**options)
    times = options.get("times", TIMES)
    rest = wrap(phase - offset)
    true = torch.stack([field * radians_per_ppm(time, B0) for time in times])
    return field, true + wrap(rest - true), magnitude, mask, times


@pytest.mark.parametrize("with_magnitude", [True, False])
def test_the_nonlinear_fit_is_the_line_where_there_is_little_noise(with_magnitude):
    field, unwrapped, magnitude, mask, times = unwrapped_of(noise=0.002)
    given = magnitude if with_magnitude else None
    line, line_noise = weighted_field(unwrapped, given, mask, times, B0)
    found, noise = nonlinear_field(unwrapped, given, mask, times, B0)
    assert (found - line)[mask].abs().max() < 1e-3 < (found - field)[mask].abs().max() * 10
    assert found[~mask].abs().max() == 0 and torch.isinf(noise[~mask]).all()
    assert (noise[mask] >= line_noise[mask] * 0.999).all()


def test_a_wrong_turn_of_a_late_echo_does_no_harm_to_the_nonlinear_fit():
    field, unwrapped, magnitude, mask, times = unwrapped_of(noise=0.02)
    wrong = unwrapped.clone()
    spots = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.02)
    wrong[3:, spots] += TURN
    line, _ = weighted_field(wrong, magnitude, mask, times, B0)
    found, _ = nonlinear_field(wrong, magnitude, mask, times, B0)
    assert (line - field)[spots].abs().median() > 0.1
    assert (found - field)[spots].abs().median() < 0.01
    alone = nonlinear_field(unwrapped, magnitude, mask, times, B0)[0]
    torch.testing.assert_close(found[mask & ~spots], alone[mask & ~spots], atol=1e-5, rtol=1e-4)


def test_echoes_that_disagree_are_noisy():
    _, unwrapped, magnitude, mask, times = unwrapped_of(noise=0.02)
    spots = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.02)
    unwrapped[2, spots] += 2.0
    _, line_noise = weighted_field(unwrapped, magnitude, mask, times, B0)
    _, noise = nonlinear_field(unwrapped, magnitude, mask, times, B0)
    assert (noise / line_noise)[spots].median() > 5
    assert (noise / line_noise)[mask & ~spots].median() == 1


def test_echoes_that_contradict_each_other_say_nothing_and_dark_ones_still_do():
    field, unwrapped, magnitude, mask, times = unwrapped_of(noise=0.02)
    generator = torch.Generator().manual_seed(1)
    damaged = mask & (torch.rand(mask.shape, generator=generator) < 0.02)
    dark = mask & ~damaged & (torch.rand(mask.shape, generator=generator) < 0.02)
    unwrapped[1, damaged] += 2.5
    unwrapped[3, damaged] -= 2.5
    true = torch.stack([field * radians_per_ppm(time, B0) for time in times])
    signal = torch.polar(0.02 * magnitude, true)
    signal = signal + 0.02 * torch.complex(*torch.randn(2, *signal.shape, generator=generator))
    unwrapped[:, dark] = (true + wrap(signal.angle() - true))[:, dark]
    magnitude[:, dark] = signal.abs()[:, dark]  # next to no signal: noisy, but as noisy as the magnitude says
    _, noise = nonlinear_field(unwrapped, magnitude, mask, times, B0)
    assert torch.isinf(noise[damaged]).all()
    assert torch.isfinite(noise[mask & ~damaged]).all()
    assert noise[dark].median() > 10 * noise[mask & ~damaged & ~dark].median()


@pytest.mark.parametrize("turn", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_a_field_is_filled_from_around_and_nowhere_else(turn):
    field = torch.arange(9.0)[:, None, None].expand(9, 8, 7).permute(turn).clone()
    mask, unknown = torch.ones_like(field, dtype=torch.bool), torch.zeros_like(field, dtype=torch.bool)
    x, y, z = (3 if turn[0] == 0 else 4, 4, 3)
    unknown[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = True
    unknown[0, 0, 0] = True
    spoilt = torch.where(unknown, 1e6, field)
    found = from_around(spoilt, unknown, mask)
    assert torch.equal(found[~unknown], field[~unknown])
    assert float(found[x, y, z]) == pytest.approx(float(field[x, y, z]), abs=1e-4)  # the middle of a linear field
    assert (found - field)[unknown].abs().max() <= 1
    alone = torch.zeros_like(mask)
    alone[x, y, z] = True
    assert torch.equal(from_around(spoilt, alone, alone), spoilt)  # nothing is known around it
    assert torch.equal(from_around(spoilt, ~mask, mask), spoilt)


EVEN = (0.004, 0.009, 0.014, 0.019, 0.024)


@pytest.mark.parametrize("with_magnitude", [True, False])
@pytest.mark.parametrize("echoes", [3, 5])
def test_the_phase_of_a_bipolar_read_out_is_found_and_removed(with_magnitude, echoes):
    _, _, phase, magnitude, mask = head(times=EVEN[:echoes], noise=0.02)
    x = torch.linspace(-1, 1, phase.shape[1])[:, None, None]
    added = 0.9 * x + 0.2 * x**2
    signs = torch.tensor([-1.0, 1, -1, 1, -1])[:echoes, None, None, None]
    bipolar = wrap(phase - signs * added)
    given = magnitude if with_magnitude else None
    found = readout_phase(bipolar, given, mask, EVEN[:echoes], SIZE)
    difference = (found - added)[mask]
    assert (difference - difference.median()).abs().max() < 0.1
    mended = without_readout_phase(bipolar, found)
    rest = wrap(mended - phase)[:, mask]
    spread = torch.stack([one - one.median() for one in rest])
    assert spread.abs().max() < 0.1 < wrap(bipolar - phase)[:, mask].abs().max()


@pytest.mark.parametrize("times", [EVEN, (0.005, 0.012), (0.004, 0.0103, 0.0158, 0.0227)])
def test_echoes_read_in_one_direction_are_left_alone(times):
    _, _, phase, magnitude, mask = head(times=times)
    assert readout_phase(phase, magnitude, mask, times, SIZE) is None
