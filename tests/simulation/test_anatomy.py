"""Heads from a label map: values, borders, places, fields."""

import math

import pytest
import torch

from chimap.errors import InputError
from chimap.physics.dipole import DipoleModel
from chimap.simulation.acquisition import acquire, field_kernels, fields_of, local_field_of
from chimap.simulation.anatomy import LABELS, brain_share, hybrid_values, label_head, literature_values, steady_state
from chimap.simulation.head import angles_for_b0, rotation_matrix
from chimap.simulation.tissues import TISSUES

SHAPE, SIZE = (48, 56, 48), (4.0, 4.0, 4.0)


def plain(label_map, shape=SHAPE, size=SIZE, **changes):
    values = literature_values(torch.Generator().manual_seed(0), spread=0.0)
    values[3] = 0.0
    return label_head(label_map, shape, size, values=values, veins=False, **({"bend": 0.0} | changes))


def assert_nearly_all_close(a, b):
    """But for a few voxels that lie half way between two labels, where rounding decides."""
    assert float(((a - b).abs() > 1e-4).float().mean()) < 1e-3


def test_values_without_spread_are_those_of_the_literature():
    table = literature_values(torch.Generator().manual_seed(3), spread=0.0)
    assert table.shape == (5, LABELS)
    for tissue in TISSUES.values():
        assert float(table[0, tissue.label]) == pytest.approx(tissue.chi)
        assert float(table[2, tissue.label]) == pytest.approx(tissue.r2star, rel=1e-5)
        assert bool(table[4, tissue.label]) == tissue.brain


def test_values_vary_as_stated():
    generator = torch.Generator().manual_seed(0)
    tables = torch.stack([literature_values(generator) for _ in range(300)])
    pallidum, white = TISSUES["pallidum"], TISSUES["white matter"]
    assert float(tables[:, 0, pallidum.label].std()) == pytest.approx(0.15 * pallidum.chi, rel=0.15)
    assert float(tables[:, 0, white.label].std()) == pytest.approx(0.005, rel=0.15)
    assert float(tables[:, 0, TISSUES["air"].label].std()) < 1e-5
    # fluid is brighter than white matter in some contrasts and darker in others
    ratio = tables[:, 1, TISSUES["csf"].label] / tables[:, 1, white.label]
    assert float(ratio.min()) < 0.6 and float(ratio.max()) > 1.1


def test_hybrid_values_do_not_know_the_anatomy():
    generator = torch.Generator().manual_seed(0)
    tables = torch.stack([hybrid_values(generator) for _ in range(300)])
    pallidum, white = (tables[:, 0, TISSUES[name].label] for name in ("pallidum", "white matter"))
    assert abs(float((pallidum > white).float().mean()) - 0.5) < 0.1
    assert float(tables[:, 0, TISSUES["bone"].label].mean()) == pytest.approx(-2.1, abs=0.1)


def test_steady_state_by_hand():
    # no recovery needed where the repetition is long; half of it after ln 2 times T1, at 90 degrees
    assert steady_state(1.0, 50.0, 0.3) == pytest.approx(math.sin(0.3))
    assert steady_state(1.0, math.log(2), math.pi / 2) == pytest.approx(0.5)


def test_the_brain_lies_in_the_middle_and_has_its_volume(label_map):
    head = plain(label_map)
    brain = sum(int((label_map.classes == tissue.label).sum()) for tissue in TISSUES.values() if tissue.brain)
    assert float(head.mask.sum()) * 64 == pytest.approx(brain * 27, rel=0.05)
    places = torch.nonzero(head.labels == TISSUES["white matter"].label).float()
    middle = (places.amin(dim=0) + places.amax(dim=0)) / 2
    torch.testing.assert_close(middle, torch.tensor([23.5, 27.5, 23.5]), atol=3.0, rtol=0)


def test_within_a_tissue_chi_is_the_tables_and_borders_mix(label_map):
    head = plain(label_map, (64, 72, 64), (3.0, 3.0, 3.0))
    white = head.labels == TISSUES["white matter"].label
    inner = -torch.nn.functional.max_pool3d(-white[None].float(), 3, 1, 1)[0] > 0
    assert inner.any()
    assert float((head.chi[inner] - TISSUES["white matter"].chi).abs().max()) < 0.02
    assert len(head.chi[white & ~inner].unique()) > 50


def test_no_bone_and_no_air_is_in_the_masks_chi(label_map):
    head = plain(label_map)
    assert float(head.chi[head.mask].min()) > -0.06 and float(head.chi[head.mask].max()) < 0.2


def test_voxels_of_any_size_show_the_same_head(label_map):
    fine, coarse = plain(label_map, (96, 112, 96), (2.0, 2.0, 2.0)), plain(label_map, (48, 112, 32), (4.0, 2.0, 6.0))
    assert float(fine.mask.sum()) * 8 == pytest.approx(float(coarse.mask.sum()) * 48, rel=0.03)
    blocks = fine.chi.reshape(48, 2, 112, 32, 3).mean(dim=(1, 4))
    both = coarse.mask & (fine.mask.float().reshape(48, 2, 112, 32, 3).mean(dim=(1, 4)) == 1)
    error = (blocks - coarse.chi)[both]
    assert float(error.square().mean().sqrt()) < 0.4 * float(coarse.chi[both].std())


def test_shift_and_scale_move_and_stretch(label_map):
    head, moved = plain(label_map), plain(label_map, head_shift=(8.0, -4.0, 0.0))
    assert_nearly_all_close(head.chi[:-2, 1:], moved.chi[2:, :-1])
    large = plain(label_map, head_scale=(1.1, 1.0, 1.0))
    assert float(large.mask.sum() / head.mask.sum()) == pytest.approx(1.1, rel=0.03)


@pytest.mark.parametrize("direction", [(0.3, -0.5, 0.81), (1.0, 0.0, 0.0), (0.0, 0.0, -1.0)])
def test_a_grid_can_be_laid_to_any_b0(label_map, direction):
    angles = angles_for_b0(direction)
    head = plain(label_map, grid_rotation=angles)
    torch.testing.assert_close(
        torch.tensor(head.b0_direction), torch.nn.functional.normalize(torch.tensor(direction), dim=0)
    )
    torch.testing.assert_close(rotation_matrix(angles) @ rotation_matrix(angles).T, torch.eye(3))


def test_a_head_that_turns_with_its_grid_keeps_chi_and_changes_its_field(label_map):
    turn = angles_for_b0((0.0, 1.0, 1.0))
    straight = plain(label_map)
    tilted = plain(label_map, grid_rotation=turn, head_rotation=turn)
    assert_nearly_all_close(straight.chi, tilted.chi)
    for head in (straight, tilted):
        model = DipoleModel(head.shape, head.voxel_size, head.b0_direction, kernel="green")
        expected = model(head.chi * head.mask)
        torch.testing.assert_close(local_field_of(head), expected, atol=2e-5, rtol=1e-3)
    difference = local_field_of(straight) - local_field_of(tilted)
    assert float(difference.std()) > 0.5 * float(local_field_of(straight).std())


def test_kernels_made_once_give_the_same_fields(label_map):
    head = plain(label_map, grid_rotation=(0.3, 0.2, 0.0))
    kernels = field_kernels(head.shape, head.voxel_size)
    for made, expected in zip(fields_of(head, kernels=kernels), fields_of(head), strict=True):
        torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


def test_a_small_grid_has_the_field_of_the_whole_brain(label_map):
    """Inside a part of the brain the field is that of all of it: the rest comes on the coarse grid."""
    whole = plain(label_map)
    part = plain(label_map, (24, 24, 24), SIZE)
    inside = tuple(slice((n - 24) // 2, (n + 24) // 2) for n in SHAPE)
    assert_nearly_all_close(part.chi, whole.chi[inside])
    expected = local_field_of(whole)[inside]
    near = local_field_of(part, whole_brain=True)
    alone = local_field_of(part)
    core = (slice(3, -3),) * 3  # where the coarse grid is not next door
    assert float((near - expected)[core].std()) < 0.25 * float(expected[core].std())
    assert float((near - expected)[core].std()) < 0.6 * float((alone - expected)[core].std())


def test_the_same_seed_gives_the_same_head_and_another_another(label_map):
    a, b, c = (label_head(label_map, SHAPE, SIZE, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a.chi, b.chi) and torch.equal(a.labels, b.labels)
    assert not torch.equal(a.chi, c.chi)


def test_veins_are_thin_and_have_the_chi_of_blood(label_map):
    values = literature_values(torch.Generator().manual_seed(0), spread=0.0)
    values[3] = 0.0
    size = (1.0, 1.0, 1.0)
    with_veins = label_head(label_map, (64, 64, 64), size, values=values, bend=0.0, seed=4)
    without = label_head(label_map, (64, 64, 64), size, values=values, bend=0.0, seed=4, veins=False)
    changed = (with_veins.chi - without.chi).abs() > 1e-3
    assert (changed & ~with_veins.mask).sum() == 0
    assert 0.002 < float(changed[with_veins.mask].float().mean()) < 0.1
    assert float(with_veins.chi[changed].max()) <= TISSUES["blood"].chi + 1e-4
    assert float(with_veins.chi[changed].max()) > 0.15


def test_a_label_head_can_be_scanned(label_map):
    head = label_head(label_map, SHAPE, SIZE)
    scan, truth = acquire(head, field_error=0.5)
    scan.check()
    share = truth.field_error[truth.mask].std() / truth.local_field[truth.mask].std()
    assert float(share) == pytest.approx(0.5, rel=1e-3)
    assert 0.002 < float(truth.local_field[truth.mask].std()) < 0.03
    assert 0.02 < float(truth.total_field[truth.mask].std()) < 2


def test_the_share_of_brain_is_found_from_few_points(label_map):
    placement = {"grid_rotation": (0.0, 0.0, 0.0), "head_rotation": (0.0, 0.0, 0.0), "head_scale": (1.0, 1.0, 1.0)}
    for shift in ((0.0, 0.0, 0.0), (60.0, 0.0, 0.0), (0.0, 0.0, 70.0)):
        head = plain(label_map, (24, 24, 24), SIZE, head_shift=shift)
        estimate = brain_share(label_map, (96.0, 96.0, 96.0), head_shift=shift, **placement)
        assert estimate == pytest.approx(float(head.mask.float().mean()), abs=0.06)


def test_bad_grids_are_refused(label_map):
    with pytest.raises(InputError, match="voxel size"):
        label_head(label_map, SHAPE, (0.1, 1.0, 1.0))
    with pytest.raises(InputError, match="scale"):
        label_head(label_map, SHAPE, SIZE, head_scale=3.0)
