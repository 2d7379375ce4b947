"""Background and chi in turns: better than Laplace's equation alone, on any grid and direction of B0."""

import pytest
import torch

from chimap.errors import InputError
from chimap.fields.background import lbv
from chimap.inversion.total_field import lbv_tv
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
    ("shape", "voxel_size", "b0", "share"),
    [((48, 51, 44), (1.5, 1.5, 1.6), (0.2, 0.3, 0.93), 0.75), ((66, 70, 37), (1.1, 1.1, 2.0), (0.0, 0.0, 1.0), 0.95)],
)
def test_the_rim_is_kept_and_less_is_lost_than_by_laplaces_equation(shape, voxel_size, b0, share):
    total, local, mask, dipole = scene(shape, voxel_size, b0)
    found, valid = lbv_tv(total, None, mask, dipole)
    plain, inner = lbv(total, None, mask, dipole)
    assert (valid == mask).all() and not found[~mask].any()

    def error(field):
        difference = (field - local)[inner]
        return float((difference - difference.mean()).norm() / local[inner].norm())

    assert error(found) < share * error(plain) and error(found) < 0.4


def test_what_lies_outside_the_mask_is_not_read():
    total, _, mask, dipole = scene((40, 44, 37), (2.0, 2.0, 2.0), (0.0, 0.0, 1.0))
    found, _ = lbv_tv(total, None, mask, dipole)
    again, _ = lbv_tv(total + 7.0 * ~mask, None, mask, dipole)
    torch.testing.assert_close(again, found)


def test_masks_without_room_are_refused():
    total, _, mask, dipole = scene((40, 44, 37), (2.0, 2.0, 2.0), (0.0, 0.0, 1.0))
    with pytest.raises(InputError, match="empty"):
        lbv_tv(total, None, torch.zeros_like(mask), dipole)
    thin = torch.zeros_like(mask)
    thin[20] = True
    with pytest.raises(InputError, match="no sphere of 2 mm fits"):
        lbv_tv(total, None, thin, dipole)
