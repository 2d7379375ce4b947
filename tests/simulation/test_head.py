import math

import numpy as np
import pytest
import torch

from chimap.errors import InputError
from chimap.simulation.head import built_in_head
from chimap.simulation.tissues import AIR_CHI, TISSUES

SHAPE, SIZE = (42, 49, 41), (4.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def head():
    return built_in_head(SHAPE, SIZE)


def test_the_brain_has_the_size_and_place_of_a_brain(head):
    litres = float(head.mask.sum()) * 4**3 / 1e6
    assert 1.2 < litres < 1.6
    middle = torch.nonzero(head.mask).float().mean(dim=0)
    assert (middle - (torch.tensor(SHAPE) - 1) / 2).abs().max() < 3


def test_every_tissue_has_its_susceptibility_and_iron_shows_in_decay(head):
    found = {}
    for name in ("white matter", "grey matter", "csf", "thalamus", "bone"):
        inside = head.labels == TISSUES[name].label
        assert inside.sum() > 20, name
        found[name] = float(head.chi[inside].median())
        assert head.label_names[TISSUES[name].label] == name
    assert found["bone"] < -0.8
    assert found["white matter"] == pytest.approx(-0.03, abs=0.01)
    assert found["grey matter"] == pytest.approx(0.02, abs=0.01)
    pallidum = head.labels == TISSUES["pallidum"].label
    assert 0.06 < float(head.chi[pallidum].median()) < 0.15
    assert float(head.r2star[pallidum].median()) > 30


def test_outside_is_air_and_the_brain_holds_none(head):
    assert float(head.chi[0, 0, -1]) == pytest.approx(AIR_CHI)
    assert float(head.m0[0, 0, -1]) == 0
    assert float(head.chi[head.mask].max()) < 0.5
    assert float(head.chi[head.mask].min()) > -0.5


def test_there_is_air_inside_the_head(head):
    """In front of and below the frontal lobes, with head around it."""
    air = head.labels == 0
    inside = air[12:30, 28:44, 4:22] & (head.m0[12:30, 28:44, 4:22] < 0.1)
    assert inside.sum() > 30


def test_the_same_seed_gives_the_same_head_and_another_seed_another(head):
    again = built_in_head(SHAPE, SIZE)
    assert torch.equal(again.chi, head.chi)
    assert torch.equal(again.surroundings, head.surroundings)
    other = built_in_head(SHAPE, SIZE, seed=1)
    assert not torch.equal(other.chi, head.chi)
    both = other.mask & head.mask
    assert 2 * both.sum() / (other.mask.sum() + head.mask.sum()) > 0.93


def test_voxel_size_changes_the_sampling_and_not_the_head(head):
    # 5 mm voxels are averaged from finer ones than 4 mm voxels, and along z there are others again
    other = built_in_head((34, 40, 54), (5.0, 5.0, 3.0))
    volume = float(other.mask.sum()) * 75
    assert volume == pytest.approx(float(head.mask.sum()) * 64, rel=0.04)
    assert float(other.chi[other.mask].mean()) == pytest.approx(float(head.chi[head.mask].mean()), abs=0.003)


def test_affine_and_b0_agree_for_an_oblique_grid():
    tilted = built_in_head((20, 24, 18), (8.0, 8.0, 9.0), grid_rotation=(0.6, 0.0, 0.0))
    # the grid turned about x: its z axis leans towards -y, its y axis towards +z
    np.testing.assert_allclose(tilted.b0_direction, (0, math.sin(0.6), math.cos(0.6)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(tilted.affine[:3, :3], axis=0), (8, 8, 9), rtol=1e-6)
    np.testing.assert_allclose(tilted.affine @ [9.5, 11.5, 8.5, 1], (0, 0, 0, 1), atol=1e-5)
    assert np.linalg.det(tilted.affine[:3, :3]) > 0


def test_a_grid_that_follows_the_head_sees_it_straight():
    angles = (0.5, -0.2, 0.3)
    straight = built_in_head((26, 30, 25), (6.0, 6.0, 6.0))
    both = built_in_head((26, 30, 25), (6.0, 6.0, 6.0), grid_rotation=angles, head_rotation=angles)
    torch.testing.assert_close(both.m0, straight.m0, atol=0.03, rtol=0.0)
    turned = built_in_head((26, 30, 25), (6.0, 6.0, 6.0), head_rotation=angles)
    assert (turned.m0 - straight.m0).abs().max() > 0.5


def test_surroundings_continue_the_grid(head):
    """The neck goes on below the grid; the coarse grid covers the fine one where it says."""
    low = head.margin
    inner = [-(-n // step) for n, step in zip(head.shape, head.step, strict=True)]
    part = head.surroundings[tuple(slice(m, m + n) for m, n in zip(low, inner, strict=True))]
    coarse = head.chi.unfold(0, 2, 2).unfold(1, 2, 2).unfold(2, 2, 2).mean(dim=(-3, -2, -1))
    part = part[: coarse.shape[0], : coarse.shape[1], : coarse.shape[2]]
    assert head.step == (2, 2, 2)
    assert float(torch.corrcoef(torch.stack([part.flatten(), coarse.flatten()]))[0, 1]) > 0.97
    assert (head.surroundings[:, :, low[2] - 2] < 1).sum() > 50


@pytest.mark.parametrize(
    ("shape", "size", "scale", "words"),
    [
        ((3, 40, 40), (4.0, 4.0, 4.0), 0.9, "grid"),
        ((40, 40, 40), (4.0, 0.0, 4.0), 0.9, "voxel size"),
        ((40, 40, 40), (4.0, 4.0, 4.0), 9.0, "scale"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(shape, size, scale, words):
    with pytest.raises(InputError, match=words):
        built_in_head(shape, size, head_scale=scale)
