"""A phantom of Gaussian blobs, scanned in grids and positions of all kinds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from chimap import metrics
from chimap.errors import InputError
from chimap.inversion.orientations import cosmos
from chimap.inversion.positions import Position, in_first_frame, overlap, register, rigid, turned_b0
from chimap.io.space import b0_from_affine, voxel_size
from chimap.physics.dipole import DipoleModel
from chimap.simulation.head import rotation_matrix

BLOBS = [((4.0, -6.0, 3.0), 5.0, 0.1), ((-9.0, 5.0, -2.0), 4.0, -0.08), ((2.0, 9.0, 8.0), 3.5, 0.12)]


def motion(degrees, shift=(0.0, 0.0, 0.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix([math.radians(angle) for angle in degrees]).double().numpy()
    matrix[:3, 3] = shift
    return matrix


def scanned(moved, shape=(40, 44, 38), size=(2.0, 1.8, 2.1), slab=(0.0, 0.0, 0.0), *, flip=False):
    """The phantom after a motion in the scanner, and its chi, on a grid of its own."""
    affine = motion(slab) @ np.diag([*size, 1.0]) @ np.diag([-1.0 if flip else 1.0, 1, 1, 1])
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2) + (1.0, -2.0, 0.5)
    axes = [torch.arange(n, dtype=torch.float64) for n in shape]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    to_head = torch.from_numpy(np.linalg.inv(moved) @ affine)
    head = voxels @ to_head[:3, :3].T + to_head[:3, 3]
    chi = torch.zeros(shape)
    for centre, width, value in BLOBS:
        distance = (head - torch.tensor(centre, dtype=torch.float64)).norm(dim=-1)
        chi += (value * torch.exp(-((distance / width) ** 2) / 2)).float()
    radii = torch.tensor([24.0, 30.0, 26.0], dtype=torch.float64)
    mask = (head / radii).norm(dim=-1) < 1
    b0 = b0_from_affine(affine)
    field = DipoleModel(shape, voxel_size(affine), b0)(chi) * mask
    places = 15 * torch.randn(14, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spots = sum(torch.exp(-(((head - place).norm(dim=-1) / 4) ** 2)) for place in places)
    magnitude = (mask * (1 + spots) + 0.1).float()
    return Position(field, mask, affine, b0, np.linalg.inv(moved), magnitude), chi


def three():
    first, chi = scanned(motion((0, 0, 0)))
    second, _ = scanned(motion((28, 4, 8), (3, -2, 1)), shape=(43, 46, 41), slab=(6, -3, 0))
    third, _ = scanned(motion((-5, 30, -6), (-2, 1, 2)), size=(1.9, 2.0, 2.2), slab=(0, 0, 90), flip=True)
    return [first, second, third], chi


def combined(positions):
    moved = in_first_frame(positions)
    masks = torch.stack([position.mask for position in moved])
    dipoles = [
        DipoleModel(tuple(masks.shape[1:]), voxel_size(one.affine), one.b0_direction, padding=8) for one in moved
    ]
    return cosmos(torch.stack([one.local_field for one in moved]), masks, dipoles)


def test_a_head_in_three_positions_is_recovered_and_the_wrong_way_round_is_worse():
    positions, chi = three()
    mask = positions[0].mask
    right = metrics.nrmse(combined(positions), chi, mask, demean=True)
    assert right < 8
    turned = [positions[0], *(replace(one, to_common=np.linalg.inv(one.to_common)) for one in positions[1:])]
    assert metrics.nrmse(combined(turned), chi, mask, demean=True) > 5 * right
    still = [replace(one, to_common=np.eye(4)) for one in positions]
    assert metrics.nrmse(combined(still), chi, mask, demean=True) > 5 * right
    for one, wrong in zip(positions[1:], turned[1:], strict=True):
        assert overlap(one, positions[0]) > 0.97 > 0.95 > overlap(wrong, positions[0])


def test_resampled_fields_are_those_of_the_head_with_b0_turned():
    positions, chi = three()
    for one in in_first_frame(positions):
        assert one.mask.shape == chi.shape and (one.affine == positions[0].affine).all()
        expected = DipoleModel(tuple(chi.shape), voxel_size(one.affine), one.b0_direction)(chi)
        assert metrics.nrmse(one.local_field, expected, one.mask & positions[0].mask) < 6


def test_any_common_space_will_do():
    positions, _ = three()
    elsewhere = motion((40, -20, 70), (10, 20, -30))
    moved = [replace(one, to_common=elsewhere @ one.to_common) for one in positions]
    for one, other in zip(in_first_frame(positions), in_first_frame(moved), strict=True):
        torch.testing.assert_close(one.local_field, other.local_field, rtol=0, atol=1e-6)
        assert one.b0_direction == pytest.approx(other.b0_direction, abs=1e-9)


def test_a_turn_of_the_slab_alone_leaves_b0_where_it_was_in_the_head():
    first, _ = scanned(motion((0, 0, 0)))
    oblique, _ = scanned(motion((0, 0, 0)), slab=(20, 10, 0))
    assert turned_b0(oblique, first) == pytest.approx(first.b0_direction, abs=1e-6)


def test_what_lies_outside_the_other_grid_is_not_in_the_mask():
    first, _ = scanned(motion((0, 0, 0)))
    short, _ = scanned(motion((0, 0, 0)), shape=(40, 44, 14))
    moved = in_first_frame([first, short])[1]
    planes = moved.mask.any(dim=0).any(dim=0)
    assert planes.sum() == 14 and (moved.mask & ~first.mask).sum() == 0


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.eye(3), "no 4 x 4 matrix"),
        (np.diag([1.0, 1, 1, 2]), "no 4 x 4 matrix"),
        (np.full((4, 4), np.nan), "no 4 x 4 matrix"),
        (np.diag([1.1, 1, 1, 1]), "stretches or mirrors"),
        (np.diag([-1.0, 1, 1, 1]), "stretches or mirrors"),
    ],
)
def test_what_is_no_rigid_motion_is_refused(matrix, words):
    with pytest.raises(InputError, match=words):
        rigid(matrix, "t.txt")


def test_registration_finds_the_motion():
    pytest.importorskip("SimpleITK")
    positions, _ = three()
    for position in positions[1:]:
        found = register(position, positions[0])
        difference = found @ np.linalg.inv(position.to_common)
        angle = math.degrees(math.acos(min(1.0, (np.trace(difference[:3, :3]) - 1) / 2)))
        assert angle < 5 and np.linalg.norm(difference[:3, 3]) < 0.5  # a few blobs tell no more


def test_registration_needs_magnitudes():
    pytest.importorskip("SimpleITK")
    positions, _ = three()
    with pytest.raises(InputError, match="needs the magnitude of every scan"):
        register(replace(positions[1], magnitude=None), positions[0])
