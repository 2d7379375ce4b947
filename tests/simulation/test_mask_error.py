import math

import pytest
import torch
from scipy import ndimage

from chimap.errors import InputError
from chimap.simulation import mask_error
from chimap.simulation.mask_error import imperfect_mask

SIZE = (2.0, 2.5, 3.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ellipsoid(shape=(72, 72, 48), size=SIZE, radii=(60.0, 75.0, 58.0)):
    axes = [(torch.arange(n) - (n - 1) / 2) * d / r for n, d, r in zip(shape, size, radii, strict=True)]
    return axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2 < 1


def dice(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture
def surface_only(monkeypatch):
    monkeypatch.setattr(mask_error, "BITES", 0.0)
    monkeypatch.setattr(mask_error, "HOLES", 0.0)


def test_no_amount_gives_the_mask_back():
    mask = ellipsoid()
    mask[30, 30, 30] = False
    result = imperfect_mask(mask, SIZE, amount_mm=0.0, generator=seeded())
    assert torch.equal(result, mask)
    assert result.data_ptr() != mask.data_ptr()


def test_one_millimetre_is_about_the_error_of_a_tool():
    """With bites and holes, at the size and resolution of a brain."""
    mask = ellipsoid((160, 160, 160), (1.0, 1.0, 1.0))
    found = [dice(imperfect_mask(mask, (1.0, 1.0, 1.0), amount_mm=1.0, generator=seeded(s)), mask) for s in range(3)]
    assert all(0.95 < value < 0.99 for value in found)


def test_dice_falls_with_the_amount_as_the_surface_tells(surface_only):
    mask = ellipsoid()
    means = []
    for amount in (0.5, 1.0, 2.0, 4.0):
        results = [imperfect_mask(mask, SIZE, amount_mm=amount, generator=seeded(s)) for s in range(12)]
        means.append(sum(dice(result, mask) for result in results) / 12)
    assert means == sorted(means, reverse=True)
    # a shell as thick as the mean distance, sqrt(2 / pi) SDs, over twice the volume; surface over volume is about 3 / r
    for amount, mean in zip((1.0, 2.0, 4.0), means[1:], strict=True):
        expected = 3 / 64 * math.sqrt(2 / math.pi) * amount / 2
        assert 1 - mean == pytest.approx(expected, rel=0.3)


def test_the_surface_moves_both_ways(surface_only):
    mask = ellipsoid()
    added, lost = 0, 0
    for seed in range(6):
        result = imperfect_mask(mask, SIZE, amount_mm=2.0, generator=seeded(seed))
        added += int((result & ~mask).sum())
        lost += int((mask & ~result).sum())
    assert 0.4 < added / lost < 2.5


def test_the_surface_moves_by_as_much_on_long_voxels(surface_only):
    """Cycled axes, cycled voxel sizes: nothing assumes cubes."""
    for cycle in range(3):
        order = [(axis + cycle) % 3 for axis in range(3)]
        shape, size, radii = ([values[i] for i in order] for values in ((72, 72, 48), SIZE, (60.0, 75.0, 58.0)))
        mask = ellipsoid(tuple(shape), tuple(size), tuple(radii))
        found = [dice(imperfect_mask(mask, tuple(size), amount_mm=2.0, generator=seeded(s)), mask) for s in range(8)]
        assert 0.955 < sum(found) / 8 < 0.97


def test_there_are_no_islands(monkeypatch):
    monkeypatch.setattr(mask_error, "BITES", 1.0)
    monkeypatch.setattr(mask_error, "HOLES", 1.0)
    mask = ellipsoid() & (torch.rand(72, 72, 48, generator=seeded(5)) > 0.02)
    mask[3, 3, 3] = mask[68, 5, 40] = True
    for seed in range(6):
        for amount in (0.2, 1.5, 4.0):
            result = imperfect_mask(mask, SIZE, amount_mm=amount, generator=seeded(seed))
            parts, number = ndimage.label(result.numpy())
            assert number >= 1
            assert torch.bincount(torch.from_numpy(parts).flatten())[1:].min() >= 8


@pytest.mark.parametrize(("down", "axis", "low"), [((0.0, 0.0, -1.0), 2, True), ((0.0, 3.0, 0.0), 1, False)])
def test_bites_are_near_the_base(monkeypatch, down, axis, low):
    mask = ellipsoid()
    volumes = []
    for seed in range(8):
        results = []
        for probability in (0.0, 1.0):
            monkeypatch.setattr(mask_error, "BITES", probability)
            monkeypatch.setattr(mask_error, "HOLES", 0.0)
            results.append(imperfect_mask(mask, SIZE, amount_mm=0.8, generator=seeded(seed), down=down))
        bitten = results[0] & ~results[1]
        volumes.append(int(bitten.sum()) * math.prod(SIZE))
        place = bitten.nonzero()[:, axis].float().mean() / mask.shape[axis]
        assert place < 0.45 if low else place > 0.55
    assert 500 < sum(volumes) / 8 < 6000  # [mm^3]; half a ball of 7 mm has 700, and there are two on average


def test_holes_are_inside(monkeypatch):
    mask = ellipsoid()
    monkeypatch.setattr(mask_error, "BITES", 0.0)
    monkeypatch.setattr(mask_error, "HOLES", 1.0)
    lost = 0
    inner = ellipsoid(radii=(52.0, 66.0, 50.0))
    for seed in range(6):
        lost += int((inner & ~imperfect_mask(mask, SIZE, amount_mm=0.5, generator=seeded(seed))).sum())
    assert 6 * 1 <= lost < 6 * 3 * 50


def test_bites_and_holes_come_as_often_as_stated():
    mask = ellipsoid((24, 26, 24), (5.0, 5.0, 5.0), (50.0, 52.0, 48.0))
    deep = ellipsoid((24, 26, 24), (5.0, 5.0, 5.0), (40.0, 42.0, 38.0))
    found = sum(
        bool((deep & ~imperfect_mask(mask, (5.0, 5.0, 5.0), amount_mm=0.5, generator=seeded(s))).any())
        for s in range(150)
    )
    assert 0.1 < found / 150 < mask_error.BITES + mask_error.HOLES + 0.1


def test_a_mask_that_the_grid_cuts_keeps_its_face(surface_only):
    mask = ellipsoid()[:, :, 20:30]
    result = imperfect_mask(mask, SIZE, amount_mm=2.0, generator=seeded())
    assert dice(result[:, :, 0], mask[:, :, 0]) > 0.9


def test_the_generator_decides():
    mask = ellipsoid()
    one, again, other = (imperfect_mask(mask, SIZE, amount_mm=1.0, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("amount", [-1.0, math.nan, math.inf])
def test_an_amount_that_is_no_length_is_refused(amount):
    with pytest.raises(InputError, match="amount"):
        imperfect_mask(ellipsoid(), SIZE, amount_mm=amount, generator=seeded())


def test_masks_that_cannot_be_used_are_refused():
    mask = torch.zeros(8, 8, 8, dtype=torch.bool)
    with pytest.raises(InputError, match="empty"):
        imperfect_mask(mask, SIZE, amount_mm=1.0, generator=seeded())
    mask[4, 4, 4] = True
    with pytest.raises(InputError, match="too small"):
        imperfect_mask(mask, SIZE, amount_mm=1.0, generator=seeded())
