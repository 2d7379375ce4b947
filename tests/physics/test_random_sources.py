import math

import pytest
import torch
from scipy import ndimage

from chimap.errors import InputError
from chimap.physics.random_sources import (
    blob,
    blob_source,
    external_sources,
    perturbation_map,
    simple_shapes,
)
from chimap.physics.solids import random_direction, random_rotation, solid
from chimap.physics.sources import sphere

ISOTROPIC = (1.0, 1.0, 1.0)
VOLUME = {"ellipsoid": 4 / 3 * math.pi, "sphere": 4 / 3 * math.pi, "cuboid": 8.0, "cylinder": 2 * math.pi}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def second_moments(vectors: torch.Tensor) -> torch.Tensor:
    return vectors.T @ vectors / len(vectors)


def test_directions_are_uniform_on_the_sphere():
    generator = seeded()
    found = torch.tensor([random_direction(generator) for _ in range(4000)])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4000))
    assert found.mean(dim=0).abs().max() < 0.035  # the standard error is 0.009
    torch.testing.assert_close(second_moments(found), torch.eye(3) / 3, atol=0.025, rtol=0.0)
    # each coordinate of a uniform direction is itself uniform: its fourth moment is 1/5
    torch.testing.assert_close((found**4).mean(dim=0), torch.full((3,), 0.2), atol=0.02, rtol=0.0)


def test_rotations_are_rotations_and_uniform():
    generator = seeded()
    found = torch.stack([random_rotation(generator) for _ in range(4000)])
    torch.testing.assert_close(found @ found.mT, torch.eye(3).expand(4000, 3, 3), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(4000))
    assert found.mean(dim=0).abs().max() < 0.035
    for axis in range(3):
        torch.testing.assert_close(second_moments(found[:, :, axis]), torch.eye(3) / 3, atol=0.025, rtol=0.0)
    # the angle of a uniform rotation has density (1 - cos a) / pi: mean pi / 2 + 2 / pi
    angle = torch.acos(((found.diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2).clamp(-1, 1))
    assert float(angle.mean()) == pytest.approx(math.pi / 2 + 2 / math.pi, abs=0.04)


@pytest.mark.parametrize("kind", VOLUME)
@pytest.mark.parametrize("size", [ISOTROPIC, (0.7, 1.1, 3.0)])
@pytest.mark.parametrize("radii", [(0.8, 0.8, 0.8), (1.0, 2.0, 5.0), (4.0, 5.0, 3.0)])
def test_shares_add_up_to_the_volume(kind, size, radii):
    generator = seeded()
    shape = tuple(math.ceil(24 / d) for d in size)
    for _ in range(3):
        centre = tuple(12 + 2 * value for value in random_direction(generator))
        rotation = random_rotation(generator).tolist()
        _, share = solid(kind, shape, size, centre=centre, radii=radii, rotation=rotation)
        assert 0 <= float(share.min()) and float(share.max()) <= 1
        volume = float(share.sum()) * math.prod(size)
        assert volume == pytest.approx(VOLUME[kind] * math.prod(radii), rel=0.012)


@pytest.mark.parametrize("size", [ISOTROPIC, (0.6, 1.3, 2.0)])
def test_shares_of_a_sphere_are_those_of_many_points_per_voxel(size):
    shape = tuple(math.ceil(14 / d) for d in size)
    place = (6.3, 7.1, 6.8)
    box, share = solid("sphere", shape, size, centre=place, radii=(3.7, 3.7, 3.7))
    whole = torch.zeros(shape)
    whole[box] = share
    exact = sphere(shape, size, centre=place, radius=3.7, supersampling=10)
    assert (whole - exact).abs().max() < 0.06
    assert float((whole - exact).square().mean().sqrt()) < 0.01


def test_a_turned_solid_points_where_its_rotation_says():
    turn = random_rotation(seeded(1))
    for kind in ("ellipsoid", "cuboid", "cylinder"):
        box, share = solid(
            kind,
            (30, 30, 30),
            ISOTROPIC,
            centre=(15.0, 14.0, 16.0),
            radii=(1.5, 1.5, 8.0),
            rotation=turn.tolist(),
        )
        whole = torch.zeros(30, 30, 30)
        whole[box] = share
        places = torch.nonzero(whole > 0).float()
        weight = whole[whole > 0]
        middle = (places * weight[:, None]).sum(dim=0) / weight.sum()
        torch.testing.assert_close(middle, torch.tensor([15.0, 14.0, 16.0]), atol=0.05, rtol=0.0)
        away = (places - middle) * weight[:, None].sqrt()
        longest = torch.linalg.eigh(away.T @ away).eigenvectors[:, -1]
        assert float((longest @ turn[:, 2]).abs()) > 0.999


def test_a_hard_solid_is_the_voxels_whose_middle_is_inside():
    box, share = solid("sphere", (9, 9, 9), ISOTROPIC, centre=(4.0, 4.0, 4.0), radii=(2.1, 2.1, 2.1), hard=True)
    whole = torch.zeros(9, 9, 9)
    whole[box] = share
    assert set(whole.unique().tolist()) == {0.0, 1.0}
    assert int(whole.sum()) == 33  # lattice points within 2.1 of one


def test_a_solid_beyond_the_grid_covers_nothing_of_it():
    _, share = solid("cuboid", (8, 8, 8), ISOTROPIC, centre=(30.0, 4.0, 4.0), radii=(2.0, 2.0, 2.0))
    assert share.numel() == 0


@pytest.mark.parametrize("kinds", [("ellipsoid",), ("cuboid", "sphere", "cylinder", "ellipsoid")])
def test_perturbations_have_the_values_and_volume_of_the_paper(kinds):
    values = []
    for seed in range(30):
        chi, mask = perturbation_map((40, 36, 30), (1.0, 1.2, 1.4), generator=seeded(seed), kinds=kinds, count=1)
        assert mask.any() and bool((chi[~mask] == 0).all()) and bool((chi[mask] != 0).all())
        values.append(float(chi.max() if chi.max() > -chi.min() else chi.min()))
    full = torch.tensor(values)
    assert float(full.abs().max()) < 1.9
    assert float(full.abs().median()) == pytest.approx(1.5, abs=0.1)
    assert 3 <= int((full < 0).sum()) <= 17  # 30 draws at odds of 1/3


def test_perturbations_add_where_they_overlap():
    chi, mask = perturbation_map(
        (12, 12, 12), ISOTROPIC, generator=seeded(), kinds=("cuboid",), count=5, radius=(40.0, 40.0), negative=0.0
    )
    assert mask.all()
    assert float(chi.mean()) == pytest.approx(7.5, abs=1.0)


def test_a_binary_perturbation_has_as_many_values_as_solids():
    chi, _ = perturbation_map((48, 48, 48), ISOTROPIC, generator=seeded(2), count=3, hard=True)
    assert 1 <= len(chi[chi != 0].unique()) <= 7


@pytest.mark.parametrize(
    "make",
    [
        lambda g: perturbation_map((20, 21, 22), ISOTROPIC, generator=g)[0],
        lambda g: external_sources(torch.zeros(20, 20, 20, dtype=torch.bool), ISOTROPIC, generator=g, count=5),
        lambda g: blob(12, generator=g).float(),
        lambda g: blob_source((30, 30, 30), ISOTROPIC, generator=g)[0],
        lambda g: simple_shapes((20, 21, 22), generator=g),
    ],
    ids=["perturbation", "external", "blob", "blob source", "simple"],
)
def test_the_same_seed_gives_the_same_map(make):
    first = make(seeded(3))
    assert torch.equal(first, make(seeded(3)))
    assert not torch.equal(first, make(seeded(4)))
    assert first.isfinite().all()


def test_external_sources_stay_outside_and_look_like_air():
    mask = torch.zeros(40, 44, 36, dtype=torch.bool)
    mask[8:32, 8:36, 6:30] = True
    chi = external_sources(mask, (1.5, 1.5, 2.0), generator=seeded(), count=100)
    assert bool((chi[mask] == 0).all())
    assert float(chi[chi > 4].median()) == pytest.approx(9.2, abs=0.4)
    assert 0.1 < float((chi[~mask] > 4).float().mean()) < 0.95
    assert float(chi.min()) == 0 and float(chi.max()) < 12  # overlapping pockets of air are air
    few = external_sources(mask, (1.5, 1.5, 2.0), generator=seeded(), count=10)
    assert (few > 4).sum() < (chi > 4).sum()


@pytest.mark.parametrize("size", [12, 24, (18, 12, 7)])
def test_blobs_fill_their_box_and_have_no_holes(size):
    for seed in range(5):
        body = blob(size, generator=seeded(seed))
        assert body.dtype == torch.bool and body.shape == ((size,) * 3 if isinstance(size, int) else size)
        assert 0.02 < float(body.float().mean()) < 0.999
        assert ndimage.binary_fill_holes(body.numpy()).sum() == body.sum()


def test_blobs_of_few_shapes_are_not_empty():
    for seed in range(30):
        assert blob(16, generator=seeded(seed), each=(1, 1)).sum() > 3


def test_blob_sources_have_the_values_of_the_paper_and_keep_from_the_edge():
    values = []
    for seed in range(24):
        chi, mask = blob_source((26, 34, 22), (1.2, 1.0, 1.6), generator=seeded(seed))
        assert bool((chi[~mask] == 0).all())
        assert len(chi[mask].unique()) == 1
        values.append(float(chi[mask][0]))
        core = torch.zeros_like(mask)
        core[2:-2, 2:-2, 2:-2] = True
        assert not (mask & ~core).any()
        assert int(mask.any(dim=2).any(dim=1).sum()) * 1.2 <= 24
    low = [value for value in values if value < 0]
    high = [value for value in values if value > 0]
    assert 6 <= len(low) <= 18
    assert all(-0.3 <= value <= -0.2 for value in low) and all(0.4 <= value <= 1.2 for value in high)


def test_simple_shapes_have_the_spread_asked_for():
    chi = simple_shapes((48, 40, 44), generator=seeded(), spread=0.5)
    values = chi.unique()
    assert 30 < len(values) <= 101  # 0 and a value per shape, less those that others cover
    assert float(values.std()) == pytest.approx(0.5, rel=0.3)
    assert 0.3 < float((chi != 0).float().mean()) <= 1
    alone = simple_shapes((48, 40, 44), generator=seeded(), cuboids=1, spheres=0, size=(0.3, 0.3))
    assert float((alone != 0).sum()) <= 13**3
    soft = simple_shapes((48, 40, 44), generator=seeded(), hard=False)
    assert len(soft.unique()) > 200


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: perturbation_map((9, 9, 9), ISOTROPIC, generator=seeded(), radius=(3.0, 1.0)), "radii"),
        (lambda: external_sources(torch.ones(4, 4, 4).bool(), ISOTROPIC, generator=seeded()), "fills the grid"),
        (lambda: blob(1, generator=seeded()), "box"),
        (lambda: blob_source((20, 40, 40), ISOTROPIC, generator=seeded()), "too small"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(make, words):
    with pytest.raises(InputError, match=words):
        make()
