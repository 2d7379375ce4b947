import math

import pytest
import torch

from chimap.fields.echoes import combine_echoes, phase_offset
from chimap.fields.unwrap import wrap
from chimap.physics.units import GAMMA_BAR, radians_per_ppm

VOXEL = (2.0, 2.0, 3.0)
TIMES = (0.004, 0.010, 0.016)


def test_one_ppm_at_three_tesla_in_ten_milliseconds_is_eight_radians():
    assert radians_per_ppm(0.01, 3.0) == pytest.approx(2 * math.pi * GAMMA_BAR * 3 * 1e-6 * 0.01)
    assert radians_per_ppm(0.01, 3.0) == pytest.approx(8.0256, abs=1e-3)


def scene(noise=0.0):
    torch.manual_seed(0)
    shape = (30, 28, 20)
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    mask = x**2 + y**2 + z**2 < 0.9
    field = 0.3 * torch.exp(-4 * (x**2 + y**2)) + 0.1 * z
    offset = 1 + 0.8 * x - 0.5 * y * z
    magnitude = torch.stack([torch.exp(-30 * time * (1 + x)) for time in TIMES])
    phase = torch.stack([field * radians_per_ppm(time, 3.0) for time in TIMES])
    phase = phase + offset + noise * torch.randn(phase.shape) / magnitude
    return field, offset, magnitude, phase, mask


def test_the_common_offset_is_found():
    _, offset, magnitude, phase, mask = scene(noise=0.02)
    found = phase_offset(wrap(phase), magnitude, mask, TIMES, VOXEL, smoothing=4.0)
    assert wrap(found - offset)[mask].abs().mean() < 0.05
    assert found[~mask].abs().max() == 0


def test_a_single_echo_has_no_offset_to_find():
    _, _, magnitude, phase, mask = scene()
    found = phase_offset(wrap(phase[:1]), magnitude[:1], mask, TIMES[:1], VOXEL)
    assert found.abs().max() == 0


@pytest.mark.parametrize("echoes", [1, 3])
def test_field_comes_out_in_ppm(echoes):
    field, offset, magnitude, phase, mask = scene()
    found, _ = combine_echoes((phase - offset)[:echoes], magnitude[:echoes], mask, TIMES[:echoes], 3.0)
    torch.testing.assert_close(found[mask], field[mask], rtol=1e-4, atol=1e-5)
    assert found[~mask].abs().max() == 0


def test_noise_is_what_the_fit_really_scatters_by():
    field, offset, magnitude, _, mask = scene()
    generator = torch.Generator().manual_seed(1)
    clean = torch.stack([field * radians_per_ppm(time, 3.0) for time in TIMES])
    errors = []
    for _ in range(200):
        noisy = clean + 0.01 * torch.randn(clean.shape, generator=generator) / magnitude
        found, noise = combine_echoes(noisy, magnitude, mask, TIMES, 3.0)
        errors.append((found - field)[mask])
    scatter = torch.stack(errors).std(dim=0)
    ratio = scatter / (0.01 * noise[mask])
    assert float(ratio.mean()) == pytest.approx(1, abs=0.02)
    assert torch.isinf(noise[~mask]).all()


def test_voxels_without_signal_get_infinite_noise_and_a_finite_field():
    _, _, magnitude, phase, mask = scene()
    magnitude[:, 15, 14, 10] = 0
    found, noise = combine_echoes(phase, magnitude, mask, TIMES, 3.0)
    assert torch.isinf(noise[15, 14, 10]) and torch.isfinite(found).all()
