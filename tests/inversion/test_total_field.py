"""Background and chi in turns: better than sources outside alone, on any grid and direction of B0."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from chimap.errors import InputError
from chimap.fields.background import pdf
from chimap.inversion.total_field import _deeper_than, _smoothed, pdf_tv
from chimap.physics.dipole import DipoleModel


def scene(shape, voxel_size, b0):
    """Tissue with spots up to the rim of an ellipsoid, and air beyond it: total and local field, mask, dipole model."""
    axes = [(torch.arange(n) - (n - 1) / 2) * size for n, size in zip(shape, voxel_size, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    mask = (x / 30) ** 2 + (y / 34) ** 2 + (z / 30) ** 2 < 1
    inside = torch.zeros(shape)
    for middle, chi in (((20, 0, 0), 0.1), ((0, 26, 0), -0.1), ((0, 0, 20), 0.15), ((-9, 5, 0), -0.05)):
        near = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 + (z - middle[2]) ** 2 < 49
        inside[near & mask] = chi
    outside = torch.zeros(shape)
    outside[(x**2 + (y - 41) ** 2 + (z + 10) ** 2) < 25] = 9
    dipole = DipoleModel(shape, voxel_size, b0, kernel="green")
    local = dipole(inside) * mask
    return dipole(outside) * mask + local + 0.3 * mask, local, mask, dipole


@pytest.mark.parametrize(
    ("shape", "voxel_size", "b0"),
    [((48, 51, 44), (1.5, 1.5, 1.6), (0.2, 0.3, 0.93)), ((66, 70, 37), (1.1, 1.1, 2.0), (0.0, 0.0, 1.0))],
)
def test_the_rim_is_kept_and_less_is_lost_than_by_sources_outside_alone(shape, voxel_size, b0):
    total, local, mask, dipole = scene(shape, voxel_size, b0)
    found, valid = pdf_tv(total, None, mask, dipole)
    plain, _ = pdf(total, None, mask, dipole)
    assert (valid == mask).all() and not found[~mask].any()

    def error(field):
        difference = (field - local)[mask]
        return float((difference - difference.mean()).norm() / local[mask].norm())

    assert error(found) < 0.75 * error(plain) and error(found) < 0.4


def test_noisy_voxels_at_the_rim_are_given_up_and_those_inside_stay():
    total, local, mask, dipole = scene((48, 51, 44), (1.5, 1.5, 1.5), (0.0, 0.0, 1.0))
    x = torch.arange(48)[:, None, None]
    junk = mask & (x > mask.any(dim=(1, 2)).nonzero().max() - 3)
    spot = torch.zeros_like(mask)
    spot[24, 25, 22] = True
    noise = torch.where(junk | spot, 30.0, torch.where(mask, 1.0, torch.inf))
    wrong = total + 3.0 * junk * torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    found, valid = pdf_tv(wrong, noise, mask, dipole)
    assert not (valid & junk).any() and valid[spot].all() and float(valid.sum()) > 0.95 * float((mask & ~junk).sum())
    clean, _ = pdf_tv(total, None, mask & ~junk, dipole)
    assert (found - clean)[valid].norm() < 0.1 * local[valid].norm()


def test_what_lies_outside_the_mask_is_not_read():
    total, _, mask, dipole = scene((40, 44, 37), (2.0, 2.0, 2.0), (0.0, 0.0, 1.0))
    found, _ = pdf_tv(total, None, mask, dipole)
    again, _ = pdf_tv(total + 7.0 * ~mask, None, mask, dipole)
    torch.testing.assert_close(again, found)


def test_masks_without_room_are_refused():
    total, _, mask, dipole = scene((40, 44, 37), (2.0, 2.0, 2.0), (0.0, 0.0, 1.0))
    with pytest.raises(InputError, match="empty"):
        pdf_tv(total, None, torch.zeros_like(mask), dipole)
    thin = torch.zeros_like(mask)
    thin[20] = True
    with pytest.raises(InputError, match="no sphere of 2 mm fits"):
        pdf_tv(total, None, thin, dipole)


def test_depth_and_smoothing_are_those_of_scipy():
    generator = np.random.default_rng(1)
    inside = np.pad(ndimage.gaussian_filter(generator.normal(size=(30, 34, 18)), 4) > -0.02, 1)
    depth = np.asarray(ndimage.distance_transform_edt(inside, sampling=(0.9, 1.1, 1.7)))
    assert (_deeper_than(3.0, inside, (0.9, 1.1, 1.7)) == (depth > 3.0)).all()
    volumes = generator.normal(size=(2, 20, 14, 9)).astype(np.float32)
    expected = [ndimage.gaussian_filter(volume, (3.0, 4.0, 6.0)) for volume in volumes]
    np.testing.assert_allclose(_smoothed(volumes, (3.0, 4.0, 6.0)), expected, atol=1e-6)
