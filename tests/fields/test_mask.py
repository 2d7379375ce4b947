"""The brain mask on small heads made of ellipsoids, and on real data where they lie beside the checkout."""

import functools
import math

import numpy as np
import pytest
import torch

from chimap.errors import InputError
from chimap.fields.mask import brain_mask, drop_noisy, erode, fill_holes, with_holes
from chimap.fields.quality import phase_quality

TIMES = (0.006, 0.014, 0.022)
SHAPE, VOXEL = (58, 68, 49), (3.0, 3.0, 3.0)


def ellipsoid(shape, voxel_size, semi_axes, offset=(0.0, 0.0, 0.0)):
    """Filled ellipsoid [mm] around the middle of the grid plus `offset` [mm]."""
    grids = torch.meshgrid(
        *[
            ((torch.arange(n) - (n - 1) / 2) * size - shift) / axis
            for n, size, shift, axis in zip(shape, voxel_size, offset, semi_axes, strict=True)
        ],
        indexing="ij",
    )
    return grids[0] ** 2 + grids[1] ** 2 + grids[2] ** 2 <= 1


@functools.cache
def head(shape=SHAPE, voxel_size=VOXEL, *, ventricle=0.9, ventricle_axes=(14, 22, 12), bias=2.0):
    """A head: (phase, magnitude, brain). The scalp is bright, the skull dark, optic nerves bridge it."""
    generator = torch.Generator().manual_seed(0)
    brain = ellipsoid(shape, voxel_size, (58, 72, 50))
    skull = ellipsoid(shape, voxel_size, (66, 80, 58))
    scalp = ellipsoid(shape, voxel_size, (74, 88, 66))
    intensity = 0.01 * torch.ones(shape)
    intensity[scalp] = 1.4
    intensity[skull] = 0.01
    intensity[brain] = 1.0
    intensity[ellipsoid(shape, voxel_size, ventricle_axes, (0, 5, 5))] = ventricle
    for side in (-20, 20):  # eyes and optic nerves, in front
        intensity[ellipsoid(shape, voxel_size, (11, 11, 11), (side, 82, -14))] = 1.2
        intensity[ellipsoid(shape, voxel_size, (2.5, 16, 2.5), (side, 66, -14))] = 1.0
    ramp = torch.linspace(-1, 1, shape[0])[:, None, None] - torch.linspace(-1, 1, shape[2])
    intensity = intensity * bias ** (ramp / 2)
    field = 0.02 * torch.linspace(-20, 20, shape[1])[None, :, None] * torch.ones(shape)
    echoes = []
    for time_ in TIMES:
        signal = intensity * torch.polar(torch.full(shape, math.exp(-20 * time_)), 300 * time_ * field)
        noise_parts = 0.02 * torch.randn(2, *shape, generator=generator)
        echoes.append(signal + torch.complex(noise_parts[0], noise_parts[1]))
    signal = torch.stack(echoes)
    return signal.angle(), signal.abs(), brain


@functools.cache
def mask_of_head():
    phase, magnitude, _ = head()
    return brain_mask(phase, magnitude, TIMES, VOXEL)


def dice(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize(
    "shape, voxel_size",
    [
        (SHAPE, VOXEL),
        ((97, 113, 48), (1.8, 1.8, 3.0)),
        ((131, 75, 45), (1.3, 2.7, 3.3)),
    ],
)
def test_the_brain_is_found_without_scalp_and_eyes(shape, voxel_size):
    phase, magnitude, brain = head(shape, voxel_size)
    mask = brain_mask(phase, magnitude, TIMES, voxel_size)
    assert mask.shape == brain.shape and mask.dtype == torch.bool
    assert dice(mask, brain) > 0.95
    assert (mask & brain).sum() > 0.97 * brain.sum()
    assert not (mask & ~ellipsoid(shape, voxel_size, (66, 80, 58))).any()


def test_cycling_the_axes_cycles_the_mask():
    phase, magnitude, _ = head((64, 75, 45), (2.7, 2.7, 3.3))
    mask = brain_mask(phase, magnitude, TIMES, (2.7, 2.7, 3.3))
    cycled = brain_mask(
        phase.permute(0, 3, 1, 2).contiguous(),
        magnitude.permute(0, 3, 1, 2).contiguous(),
        TIMES,
        (3.3, 2.7, 2.7),
    )
    assert dice(cycled, mask.permute(2, 0, 1)) > 0.99


def test_one_echo_without_magnitude_is_enough():
    phase, _, brain = head((72, 84, 60), (2.4, 2.4, 2.4))  # its rim is one voxel tight
    assert dice(brain_mask(phase[1:2], None, TIMES[1:2], (2.4, 2.4, 2.4)), brain) > 0.9


def test_the_unit_of_magnitude_does_not_matter():
    phase, magnitude, _ = head()
    assert dice(brain_mask(phase, 1e-4 * magnitude, TIMES, VOXEL), mask_of_head()) > 0.999


def test_strong_coil_sensitivity_does_not_move_the_rim():
    phase, magnitude, brain = head(bias=4.0)
    assert dice(brain_mask(phase, magnitude, TIMES, VOXEL), brain) > 0.94


def test_dark_ventricles_are_filled():
    phase, magnitude, brain = head(ventricle=0.05, ventricle_axes=(30, 44, 26))
    mask = brain_mask(phase, magnitude, TIMES, VOXEL)
    assert dice(mask, brain) > 0.95
    assert mask[ellipsoid(brain.shape, VOXEL, (30, 44, 26), (0, 5, 5))].all()


def test_tissue_whose_phase_is_lost_at_the_rim_is_left_out():
    phase, magnitude, brain = head()
    lost = ellipsoid(brain.shape, VOXEL, (16, 16, 16), (0, 66, -20))
    generator = torch.Generator().manual_seed(1)
    noise = math.pi * (2 * torch.rand(phase.shape, generator=generator) - 1)
    mask = brain_mask(torch.where(lost, noise, phase), magnitude, TIMES, VOXEL)
    core = ellipsoid(brain.shape, VOXEL, (11, 11, 11), (0, 66, -20)) & brain
    assert mask[core].float().mean() < 0.2
    assert (mask & brain & ~lost).sum() > 0.96 * (brain & ~lost).sum()


@pytest.mark.parametrize("with_magnitude", [True, False])
def test_a_stripped_brain_is_kept(with_magnitude):
    phase, magnitude, brain = head()
    magnitude = magnitude * brain if with_magnitude else None
    assert dice(brain_mask(phase * brain, magnitude, TIMES, VOXEL), brain) > 0.97


@pytest.mark.parametrize("slices", [4, 7])
def test_a_thin_slab_keeps_the_brain_up_to_its_faces(slices):
    phase, magnitude, brain = (part[..., 22 : 22 + slices].contiguous() for part in head())
    mask = brain_mask(phase, magnitude, TIMES, VOXEL)
    assert dice(mask, brain) > 0.95
    assert (mask & brain)[..., 0].sum() > 0.95 * brain[..., 0].sum()


def test_a_block_from_inside_a_brain_is_all_brain():
    phase, magnitude, _ = (part[..., 20:36, 24:42, 18:30].contiguous() for part in head())
    assert brain_mask(phase, magnitude, TIMES, VOXEL).float().mean() > 0.99


def test_a_bottle_is_kept_with_its_corners_and_a_vial_beside_it_is_not():
    shape, generator = (40, 44, 36), torch.Generator().manual_seed(0)
    bottle = torch.zeros(shape, dtype=torch.bool)
    bottle[8:32, 9:35, 5:31] = True
    vial = torch.zeros_like(bottle)
    vial[2:6, 2:6, 10:20] = True
    signal = (bottle | vial) + 0.02 * torch.complex(*torch.randn(2, 1, *shape, generator=generator))
    mask = brain_mask(signal.angle(), signal.abs(), (0.005,), (3.0, 3.0, 3.6))
    assert dice(mask, bottle) > 0.97
    assert not (mask & vial).any()


def test_erosion_is_the_last_step():
    phase, magnitude, _ = head()
    eroded = brain_mask(phase, magnitude, TIMES, VOXEL, erosion=4.0)
    torch.testing.assert_close(eroded, erode(mask_of_head(), 4.0, VOXEL))


def test_a_dark_furrow_narrower_than_twice_the_closing_is_closed():
    phase, magnitude, brain = head()
    furrow = torch.zeros_like(brain)
    furrow[28:30, :, 30:] = True  # 6 mm wide
    furrow &= brain
    dark = torch.where(furrow, 0.02, magnitude)
    closed = brain_mask(phase, dark, TIMES, VOXEL)
    left = brain_mask(phase, dark, TIMES, VOXEL, closing=0.0)
    deep = furrow & erode(brain, 4.0, VOXEL)  # at the rim its mouth is rounded
    assert closed[deep].float().mean() > 0.95
    assert left[deep].float().mean() < 0.6
    assert not (left & ~closed).any()


@pytest.mark.parametrize("magnitude", [True, False])
def test_noise_alone_is_refused_with_advice(magnitude):
    signal = torch.complex(*torch.randn(2, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(InputError, match="--mask"):
        brain_mask(signal.angle(), signal.abs() if magnitude else None, (0.02,), (2.0, 2.0, 2.0))


def test_an_empty_image_and_too_much_erosion_are_refused():
    phase, magnitude, _ = head((40, 46, 34), (4.4, 4.4, 4.4))
    with pytest.raises(InputError, match="--mask"):
        brain_mask(phase, 0 * magnitude, TIMES, (4.4, 4.4, 4.4))
    with pytest.raises(InputError, match="erosion"):
        brain_mask(phase, magnitude, TIMES, (4.4, 4.4, 4.4), erosion=80.0)


def test_erosion_of_a_ball_takes_its_radius_off():
    voxel_size = (1.0, 1.5, 2.0)
    ball = ellipsoid((61, 41, 31), voxel_size, (25, 25, 25))
    eroded = erode(ball, 5.0, voxel_size)
    volume = float(eroded.sum()) * 3.0
    assert volume == pytest.approx(4 / 3 * math.pi * 20**3, rel=0.06)
    assert not (eroded & ~ball).any()


def test_erosion_counts_the_border_of_the_grid_as_outside():
    full = torch.ones(9, 8, 7, dtype=torch.bool)
    eroded = erode(full, 2.0, (1.0, 2.0, 3.0))
    expected = torch.zeros_like(full)
    expected[2:-2, 1:-1] = True  # two voxels along x, one along y, none along z: its first is 3 mm from outside
    torch.testing.assert_close(eroded, expected)
    torch.testing.assert_close(erode(full, 0.0, (1.0, 2.0, 3.0)), full)
    assert not erode(torch.zeros_like(full), 2.0, (1.0, 2.0, 3.0)).any()


def test_holes_are_filled_also_where_a_face_cuts_them_open():
    box = torch.zeros(12, 12, 12, dtype=torch.bool)
    box[2:10, 2:10, :] = True
    holes = box.clone()
    holes[4:6, 4:6, 5:7] = False  # closed
    holes[6:8, 6:8, 0:3] = False  # cut open by a face
    torch.testing.assert_close(fill_holes(holes), box)
    notch = box.clone()
    notch[2:5, 5, 5] = False  # open to the outside: no hole
    torch.testing.assert_close(fill_holes(notch), notch)


def test_phase_quality_is_one_for_a_wrapped_ramp_and_low_for_noise():
    ramp = torch.linspace(0, 60, 24)[:, None, None].expand(24, 20, 16)
    wrapped = torch.remainder(ramp + math.pi, 2 * math.pi) - math.pi
    noise = math.pi * (2 * torch.rand(24, 20, 16, generator=torch.Generator().manual_seed(0)) - 1)
    assert phase_quality(wrapped[None].contiguous()).min() > 0.999
    assert phase_quality(noise[None]).mean() < 0.1
    halves = torch.cat([wrapped[:, :10], noise[:, 10:]], dim=1)
    quality = phase_quality(halves[None])
    assert quality[:, :8].min() > 0.999 and quality[:, 12:].max() < 0.5


def test_phase_quality_refuses_another_shape():
    with pytest.raises(InputError, match="echo"):
        phase_quality(torch.zeros(1, 8, 8, 1))


def test_the_real_epi_mask_is_found_again(shared_data):
    nib = pytest.importorskip("nibabel")
    folder = shared_data / "real" / "epi-whole-brain"
    phase, magnitude, reference = (
        torch.from_numpy(np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj, dtype=np.float32))
        for name in ("part-phase_T2starw", "part-mag_T2starw", "brain_mask")
    )
    mask = brain_mask(phase[None], magnitude[None], (0.03,), (1.8, 1.8, 3.0))
    assert dice(mask, reference > 0) > 0.93  # the reference holds specks of scalp


def test_a_real_block_inside_a_brain_is_kept(shared_data):
    nib = pytest.importorskip("nibabel")
    folder = shared_data / "real" / "multi-echo-block"
    phase, magnitude = (
        torch.from_numpy(np.asarray(nib.load(folder / name).dataobj, dtype=np.float32)).permute(3, 0, 1, 2)
        for name in ("Phase.nii", "Mag.nii")
    )
    phase = (phase * (math.pi / phase.abs().max())).contiguous()
    assert brain_mask(phase, magnitude.contiguous(), (0.01, 0.02, 0.03), (0.469, 0.469, 1.0)).float().mean() > 0.98


def test_noisy_voxels_leave_at_the_rim_and_stay_inside():
    mask = torch.zeros(20, 20, 20, dtype=torch.bool)
    mask[4:16, 4:16, 4:16] = True
    noise = torch.ones(20, 20, 20)
    noise[4:6, 4:16, 4:16] = 9  # a slab at the rim
    noise[10, 10, 10] = 9  # a dark vein inside
    noise[~mask] = torch.inf
    kept = drop_noisy(mask, noise, 5.0)
    expected = mask.clone()
    expected[4:6] = False
    assert torch.equal(kept, expected)
    assert torch.equal(drop_noisy(mask, noise, 10.0), mask)


def test_the_first_of_two_passes_has_holes_where_the_field_is_noisy():
    mask = torch.zeros(16, 16, 16, dtype=torch.bool)
    mask[2:14, 2:14, 2:14] = True
    noise = torch.where(mask, 1.0, torch.inf)
    noise[7, 8, 9], noise[5, 5, 5] = 4.0, 2.5
    kept = with_holes(mask, noise)
    hole = torch.zeros_like(mask)
    hole[6:9, 7:10, 8:11] = True
    assert torch.equal(kept, mask & ~hole)
    assert torch.equal(with_holes(mask, noise, 5.0), mask)
