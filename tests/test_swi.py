import math

import pytest
import torch

from chimap.physics.units import radians_per_ppm
from chimap.swi import minimum_intensity_projection, swi, true_swi

SHAPE, VOXEL = (40, 45, 31), (1.0, 1.0, 2.0)


@pytest.fixture
def vein():
    """A tube along y with a higher field, over a steep background that wraps; TE 20 ms at 3 T."""
    x, y, z = torch.meshgrid(*(torch.arange(n) - n // 2 for n in SHAPE), indexing="ij")
    tube = (x**2 + (2 * z) ** 2) <= 4
    field = 0.1 * tube + 0.01 * y + 0.02 * x
    phase = field * radians_per_ppm(0.020, 3.0)
    return torch.remainder(phase + math.pi, 2 * math.pi)[None] - math.pi, tube


def test_veins_are_dark_and_wraps_are_not_seen(vein):
    phase, tube = vein
    inner = torch.zeros(SHAPE, dtype=torch.bool)
    inner[8:-8, 8:-8, 6:-6] = True
    picture = swi(phase, torch.ones_like(phase), VOXEL)
    assert picture[tube & inner].mean() < 0.4
    assert picture[~tube & inner].mean() > 0.8


def test_the_other_sign_of_phase_leaves_veins_as_bright_as_they_are(vein):
    phase, tube = vein
    tube = tube[:, 8:-8, 6:-6]  # at the ends of the grid the steep background is no background
    picture = swi(-phase, torch.ones_like(phase), VOXEL)[:, 8:-8, 6:-6]
    assert picture[tube].mean() > 0.95


def test_echoes_are_joined_by_their_squares(vein):
    phase, _ = vein
    one = swi(phase, torch.ones_like(phase), VOXEL)
    two = swi(torch.cat([phase, phase]), torch.ones(2, *SHAPE), VOXEL)
    assert torch.allclose(two, math.sqrt(2) * one, atol=1e-5)


def test_the_low_pass_is_a_length_not_a_number_of_voxels(vein):
    """A wave of 30 mm is background, one of 4 mm is detail, on any grid."""
    for size in (1.0, 0.5):
        n = round(60 / size)
        place = torch.arange(n) * size
        for length, dark in ((30.0, False), (4.0, True)):
            phase = (1.5 * torch.sin(2 * math.pi * place / length)).reshape(1, n, 1, 1).expand(1, n, 8, 8).contiguous()
            least = float(swi(phase, torch.ones_like(phase), (size, size, size)).min())
            assert (least < 0.3) == dark, (size, length, least)


def test_true_swi_follows_chi_whatever_the_phase():
    chi = torch.tensor([-0.3, 0.0, 0.225, 0.45, 0.9]).reshape(5, 1, 1)
    picture = true_swi(chi, torch.full((1, 5, 1, 1), 2.0), torch.ones(5, 1, 1, dtype=torch.bool))
    assert torch.allclose(picture.flatten(), torch.tensor([2.0, 2.0, 0.5, 0.0, 0.0]))
    outside = true_swi(chi, torch.full((1, 5, 1, 1), 2.0), torch.zeros(5, 1, 1, dtype=torch.bool))
    assert (outside == 2).all()


@pytest.mark.parametrize(
    "voxel_size, b0, axis, slices",
    [((1.0, 1.0, 2.0), (1.0, 0.0, 0.0), 2, 5), ((1.0, 1.0, 1.0), (0.0, 0.9, 0.436), 1, 9)],
)
def test_a_projection_keeps_the_darkest_voxel_of_the_slab(voxel_size, b0, axis, slices):
    volume, mask = torch.ones(21, 21, 21), torch.ones(21, 21, 21, dtype=torch.bool)
    volume[10, 10, 10], volume[3, 3, 3] = 0.2, 0.1
    mask[3, 3, 3] = False
    found = minimum_intensity_projection(volume, mask, voxel_size, b0)
    dark = torch.nonzero(found < 0.5)
    assert len(dark) == slices
    assert set(dark[:, axis].tolist()) == set(range(10 - slices // 2, 11 + slices // 2))
    assert minimum_intensity_projection(volume, ~mask & False, voxel_size, b0).abs().max() == 0
