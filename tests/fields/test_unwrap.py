import math

import numpy as np
import pytest
import torch

from chimap.errors import InputError
from chimap.fields import tree
from chimap.fields.unwrap import unwrap_laplacian, unwrap_quality_guided

TURN = 2 * math.pi
TIMES = (0.004, 0.010, 0.016, 0.022, 0.028)


def head(*, shape=(31, 36, 27), voxel_size=(2.0, 1.7, 2.5), times=TIMES, noise=0.1, offset=1.0, slope=450.0, seed=0):
    """Phase with several wraps in an ellipsoid, steep at one side, where the signal fades.

    The field is `slope` / TE [rad/s] at most; returns true phase, wrapped phase, magnitude, mask.
    """
    generator = torch.Generator().manual_seed(seed)
    axes = [torch.linspace(-1, 1, n) for n in shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    mask = x**2 + y**2 + z**2 < 0.9
    bump = torch.exp(-((x - 0.4) ** 2 + y**2 + (z + 0.6) ** 2) / 0.06)
    field = slope * (0.7 * x - 0.5 * y**2 + 0.3 * z + 1.5 * bump)
    smooth = offset * (0.5 + 0.4 * x - 0.6 * y * z)
    true = torch.stack([smooth + field * time for time in times])
    fading = torch.exp(-torch.tensor(times)[:, None, None, None] * (25 + 90 * bump))
    signal = torch.polar(fading * (1 + 0.3 * z), true)
    signal = signal + noise * torch.complex(*torch.randn(2, *signal.shape, generator=generator))
    return true, signal.angle(), signal.abs(), mask


def wrong_share(unwrapped, phase, true, mask):
    """Share of voxels of each echo not at the turn at which the measured phase is closest to the true one."""
    right = phase + TURN * torch.round((true - phase) / TURN)
    off = torch.stack([torch.round((u - r)[mask] / TURN) for u, r in zip(unwrapped, right, strict=True)])
    off -= off.median(dim=1, keepdim=True).values  # a turn of the whole echo is not an error
    return (off != 0).float().mean(dim=1)


def apart(a, b):
    """Distance of two phases up to whole turns."""
    return (a - b - TURN * torch.round((a - b) / TURN)).abs().max()


@pytest.mark.parametrize("voxel_size", [(1.0, 1.0, 1.0), (0.8, 2.0, 1.3)])
@pytest.mark.parametrize("with_magnitude", [True, False])
def test_a_noisy_head_is_unwrapped_with_its_offset(with_magnitude, voxel_size):
    true, phase, magnitude, mask = head(voxel_size=voxel_size, noise=0.1)
    found = unwrap_quality_guided(phase, magnitude if with_magnitude else None, mask, TIMES, voxel_size)
    assert (true[-1][mask].max() - true[-1][mask].min()) > 3 * TURN  # there is something to unwrap
    assert wrong_share(found, phase, true, mask).max() < (1e-3 if with_magnitude else 3e-3)


def test_without_noise_every_voxel_is_right():
    true, phase, magnitude, mask = head(noise=0.0)
    found = unwrap_quality_guided(phase, magnitude, mask, TIMES, (2.0, 1.7, 2.5))
    assert wrong_share(found, phase, true, mask).max() == 0


@pytest.mark.parametrize("echoes", [1, 2, 3])
def test_any_number_of_echoes_will_do(echoes):
    times = (0.012, 0.02, 0.031)[:echoes]
    true, phase, magnitude, mask = head(times=times, noise=0.05)
    found = unwrap_quality_guided(phase, magnitude, mask, times, (1.0, 1.0, 1.0))
    assert wrong_share(found, phase, true, mask).max() < 2e-3


def test_the_result_is_the_measured_phase_up_to_whole_turns_and_zero_outside():
    _, phase, magnitude, mask = head(noise=0.6)
    found = unwrap_quality_guided(phase, magnitude, mask, TIMES, (1.0, 1.0, 1.0))
    assert found.dtype == torch.float32
    assert apart(found[:, mask], phase[:, mask]) < 1e-4
    assert found[:, ~mask].abs().max() == 0


def test_neighbours_help_where_the_noise_is_strong(monkeypatch):
    true, phase, magnitude, mask = head(noise=0.3, slope=150.0)
    helped = unwrap_quality_guided(phase, magnitude, mask, TIMES, (1.0, 1.0, 1.0))
    monkeypatch.setattr("chimap.fields.unwrap.NOISY", math.inf)
    alone = unwrap_quality_guided(phase, magnitude, mask, TIMES, (1.0, 1.0, 1.0))
    better, worse = (wrong_share(found, phase, true, mask).sum() for found in (helped, alone))
    assert better < 0.3 * worse


def test_all_echoes_lie_on_one_line_so_that_they_can_be_combined():
    true, phase, magnitude, mask = head(noise=0.02, offset=0.0)
    found = unwrap_quality_guided(phase, magnitude, mask, TIMES, (1.0, 1.0, 1.0))
    errors = torch.stack([(u - t)[mask].median() for u, t in zip(found, true, strict=True)])
    assert errors.abs().max() < 0.1


def test_cycling_the_axes_cycles_the_result():
    true, phase, magnitude, mask = head(noise=0.05)
    found = unwrap_quality_guided(phase, magnitude, mask, TIMES, (2.0, 1.7, 2.5))
    turned = unwrap_quality_guided(
        phase.permute(0, 2, 3, 1).contiguous(),
        magnitude.permute(0, 2, 3, 1).contiguous(),
        mask.permute(1, 2, 0).contiguous(),
        TIMES,
        (1.7, 2.5, 2.0),
    )
    different = (turned.permute(0, 3, 1, 2) - found).abs() > 1
    assert different[:, mask].float().mean() < 1e-3


def test_parts_that_do_not_touch_come_to_one_level():
    true, phase, magnitude, mask = head(times=(0.02,), noise=0.02, slope=300.0)
    mask[14:16] = False
    mask[22:, 17:19] = False
    found = unwrap_quality_guided(phase, magnitude, mask, (0.02,), (1.0, 1.0, 1.0))
    assert wrong_share(found, phase, true, mask).max() < 1e-3


def test_single_voxels_and_a_mask_to_the_faces_are_no_trouble():
    true, phase, magnitude, _ = head(shape=(9, 7, 8), noise=0.02, slope=100.0)
    full = torch.ones(phase.shape[1:], dtype=torch.bool)
    found = unwrap_quality_guided(phase, magnitude, full, TIMES, (1.0, 1.0, 1.0))
    assert wrong_share(found, phase, true, full).max() == 0
    single = torch.zeros_like(full)
    single[3, 3, 3] = True
    found = unwrap_quality_guided(phase, magnitude, single, TIMES, (1.0, 1.0, 1.0))
    assert torch.isfinite(found).all()


def test_a_fringe_that_ends_inside_does_not_mislead_the_class_of_safest_edges():
    # the phase winds up along y at a rate that grows along x: beyond half a turn per voxel fringes break up
    x, y, z = torch.meshgrid(torch.linspace(0, 1, 40), torch.arange(40.0), torch.arange(12.0), indexing="ij")
    true = (0.2 + 3.1 * x**2) * (y - 20) + 0.05 * z
    mask = torch.ones(true.shape, dtype=torch.bool)
    generator = torch.Generator().manual_seed(3)
    phase = tree.wrap(true + 0.05 * torch.randn(true.shape, generator=generator))
    deviation = torch.full_like(phase, 0.05)
    found = tree.unwrap_volume(phase, deviation, mask, (1.0, 1.0, 1.0))
    error = torch.round((found - true) / TURN)[:30]
    assert (error - error.median()).abs().max() == 0


def test_classes_give_the_turns_of_the_whole_tree(monkeypatch):
    _, phase, magnitude, mask = head(noise=0.15)
    deviation = tree.phase_deviation(phase, magnitude, mask)
    found = tree.unwrap_volume(phase[4], deviation[4], mask, (1.0, 1.0, 1.0))
    monkeypatch.setattr(tree, "UNSURE", ())
    whole = tree.unwrap_volume(phase[4], deviation[4], mask, (1.0, 1.0, 1.0))
    assert ((found - whole).abs() > 1).float().mean() < 1e-3


def test_turns_are_summed_along_edges_in_either_direction():
    # 0 and 3 are one region, so the edge from 1 to 3 runs against the order of regions; 5 is alone
    edges = tree.Edges(np.array([0, 1, 2, 3], dtype=np.int32), np.array([3, 3, 4, 4], dtype=np.int32))
    jumps = np.array([0, 2, -1, 3], dtype=np.int8)
    safety = np.full(4, 9.0, dtype=np.float32)
    turns, part = tree._turns_with_class(edges, jumps, safety, safety > 0, 6)
    np.testing.assert_array_equal(turns - turns[0], [0, -2, 4, 0, 3, turns[5] - turns[0]])
    assert len(set(part[:5])) == 1 and part[5] != part[0]


def test_the_noise_of_the_phase_is_found():
    _, phase, magnitude, mask = head(shape=(40, 41, 42), noise=0.05, slope=100.0)
    expected = 0.05 / magnitude[2][mask].median()
    with_magnitude = tree.phase_deviation(phase, magnitude, mask)[2][mask].median()
    without = tree.phase_deviation(phase, None, mask)[2][mask].median()
    assert 0.8 < with_magnitude / expected < 1.3
    assert 0.7 < without / expected < 1.4


def test_bad_voxels_do_not_lead_good_ones_astray():
    true, phase, magnitude, mask = head(noise=0.0)
    curtain = torch.zeros_like(mask)
    curtain[:, 16:20] = True  # noise through the middle, with a hole in it
    curtain[10:20, :, 8:18] = False
    generator = torch.Generator().manual_seed(2)
    noise = tree.wrap(10 * torch.randn(phase.shape, generator=generator))
    phase, magnitude = torch.where(curtain, noise, phase), torch.where(curtain, 0.02, magnitude)
    found = unwrap_quality_guided(phase, magnitude, mask, TIMES, (1.0, 1.0, 1.0))
    assert wrong_share(found, phase, true, mask & ~curtain).max() == 0


def test_a_single_echo_with_many_wraps_is_unwrapped():
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (40, 36, 30)), indexing="ij")
    true = (12 * math.pi * torch.exp(-3 * (x**2 + y**2 + z**2)) + 3 * x)[None]
    mask = x**2 + y**2 + z**2 < 0.9
    phase = tree.wrap(true)
    found = unwrap_quality_guided(phase, None, mask, (0.03,), (1.0, 1.2, 2.0))
    assert wrong_share(found, phase, true, mask).max() == 0


def test_laplacian_knows_the_proportions_of_the_voxels():
    # where the phase can be followed every proportion gives the same; in noise it decides where errors spread
    phase = tree.wrap(10 * torch.randn(1, 20, 18, 16, generator=torch.Generator().manual_seed(0)))
    mask = torch.ones(20, 18, 16, dtype=torch.bool)
    cubes, twice, slabs = (
        unwrap_laplacian(phase, None, mask, (0.01,), size)
        for size in ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (1.0, 1.0, 3.0))
    )
    assert apart(cubes, twice) < 1e-3
    assert (slabs - cubes).std() > 0.3 * cubes.std()


def test_laplacian_follows_a_smooth_phase_on_any_voxels():
    voxel_size = (1.0, 2.0, 0.7)
    axes = [torch.arange(n) * size for n, size in zip((33, 20, 38), voxel_size, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    length = [n * size for n, size in zip((33, 20, 38), voxel_size, strict=True)]
    # half waves that are even at the faces, as the cosine transform takes them
    middle = [size / 2 for size in voxel_size]
    true = 7 * torch.cos(math.pi * (x + middle[0]) / length[0]) + 4 * torch.cos(
        2 * math.pi * (y + middle[1]) / length[1]
    ) * torch.cos(math.pi * (z + middle[2]) / length[2])
    phase = tree.wrap(true)[None]
    mask = torch.ones(true.shape, dtype=torch.bool)
    mask[:4] = False
    found = unwrap_laplacian(phase, None, mask, (0.01,), voxel_size)[0]
    error = (found - true)[mask]
    assert error.std() < 0.05 * true.std()
    assert found[~mask].abs().max() == 0
    assert (tree.wrap(error).mean()).abs() < 0.05  # its constant agrees with the phase up to whole turns


@pytest.mark.parametrize("unwrap", [unwrap_quality_guided, unwrap_laplacian])
def test_what_does_not_belong_together_is_refused(unwrap):
    phase = torch.zeros(2, 6, 6, 6)
    mask = torch.ones(6, 6, 6, dtype=torch.bool)
    size = (1.0, 1.0, 1.0)
    with pytest.raises(InputError, match="3 echo times came with 2"):
        unwrap(phase, None, mask, (0.01, 0.02, 0.03), size)
    with pytest.raises(InputError, match="mask is empty"):
        unwrap(phase, None, ~mask, (0.01, 0.02), size)
    with pytest.raises(InputError, match="ascending"):
        unwrap(phase, None, mask, (0.02, 0.01), size)


def test_real_epi_is_as_continuous_as_scikit_image_makes_it(shared_data):
    nibabel = pytest.importorskip("nibabel")
    from skimage.restoration import unwrap_phase

    folder = shared_data / "real" / "epi-whole-brain"

    def read(name):
        return torch.from_numpy(np.asarray(nibabel.load(folder / f"{name}.nii.gz").dataobj, dtype=np.float32))

    phase, magnitude, mask = read("part-phase_T2starw"), read("part-mag_T2starw"), read("brain_mask") > 0
    found = unwrap_quality_guided(phase[None], magnitude[None], mask, (0.03,), (1.8, 1.8, 3.0))[0]
    masked = np.ma.array(phase.numpy(), mask=~mask.numpy())
    other = torch.from_numpy(unwrap_phase(masked).filled(0).astype(np.float32))

    def jumps(volume):
        edges = tree.face_edges(mask)
        return np.count_nonzero(np.abs(volume[mask].numpy()[edges.second] - volume[mask].numpy()[edges.first]) > np.pi)

    assert jumps(found) < jumps(other)
