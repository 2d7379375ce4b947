"""Which way is up."""

import numpy as np
import pytest
import torch

from chimap.errors import InputError
from chimap.report.view import view_of

SHAPE = (5, 6, 7)


def ramp(axis: int) -> torch.Tensor:
    """Grows along one anatomical axis of a right-anterior-superior volume."""
    view = [1, 1, 1]
    view[axis] = -1
    return torch.arange(float(SHAPE[axis])).reshape(view).expand(SHAPE).contiguous()


def stored(volume: torch.Tensor, order: tuple[int, int, int], flips: tuple[bool, bool, bool]):
    """A right-anterior-superior volume as a file that keeps `order` of the axes, some of them reversed."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, (anatomical, flip) in enumerate(zip(order, flips, strict=True)):
        matrix[anatomical, axis] = -1 if flip else 1
    kept = volume.permute(*order)
    return kept.flip([axis for axis in range(3) if flips[axis]]), matrix


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, False), (True, False, True)])
def test_a_file_with_any_order_of_axes_is_turned_to_right_anterior_superior(order, flips):
    for axis in range(3):
        volume, affine = stored(ramp(axis), order, flips)
        view = view_of(affine, (1.0, 1.0, 1.0), torch.ones(volume.shape, dtype=torch.bool))
        np.testing.assert_array_equal(view.turned(volume), ramp(axis).numpy())


def test_vectors_and_voxel_sizes_turn_with_the_volume():
    affine = np.array([[0, -2, 0, 5], [0, 0, 3, 0], [-4, 0, 0, 1], [0, 0, 0, 1]], float)  # inferior, left, anterior
    view = view_of(affine, (4.0, 2.0, 3.0), torch.ones(SHAPE, dtype=torch.bool))
    assert view.voxel_size == (2.0, 3.0, 4.0)
    assert view.turned_vector((-1.0, 0.0, 0.0)) == (0, 0, 1)


def test_an_index_points_to_the_same_voxel_after_turning_and_cropping():
    volume, affine = stored(torch.arange(210.0).reshape(SHAPE), (2, 0, 1), (True, False, True))
    mask = torch.zeros(volume.shape, dtype=torch.bool)
    mask[2:5, 1:4, 3:5] = True
    view = view_of(affine, (1.0, 1.0, 1.0), mask, margin=1.0)
    assert view.turned(volume)[view.turned_index(view.centre)] == volume[view.centre]
    assert view.turned(volume).shape == (5, 4, 5)


def test_the_centre_is_the_middle_of_the_mask():
    mask = torch.zeros(20, 20, 20, dtype=torch.bool)
    mask[4:9, 10:13, 2:7] = True
    assert view_of(np.eye(4), (1.0, 1.0, 1.0), mask).centre == (6, 11, 4)


def test_an_empty_mask_shows_the_middle_of_the_grid():
    view = view_of(np.eye(4), (1.0, 1.0, 1.0), torch.zeros(SHAPE, dtype=torch.bool), margin=3.0)
    assert view.centre == (2, 3, 3)
    assert view.turned(ramp(0)).shape == SHAPE


def test_a_singular_affine_is_refused():
    with pytest.raises(InputError, match="singular"):
        view_of(np.diag([1.0, 1.0, 0.0, 1.0]), (1.0, 1.0, 1.0), torch.ones(SHAPE, dtype=torch.bool))
