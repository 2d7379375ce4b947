import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from chimap.errors import InputError
from chimap.simulation.head import built_in_head
from chimap.simulation.lesions import Lesion, add_lesions, draw_lesions, parse_lesions
from chimap.simulation.tissues import TISSUES

SHAPE, SIZE = (66, 80, 50), (2.0, 2.0, 2.6)
WHITE = TISSUES["white matter"].label


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def head():
    return built_in_head(SHAPE, SIZE)


@pytest.fixture(scope="module")
def plain(head):
    """The head with chi, m0 and R2* of zero, one and ten, so that a lesion's shares can be read off."""
    one = torch.ones_like(head.chi)
    return replace(head, chi=0 * one, m0=one, r2star=10 * one)


def place_of(before, after):
    """Centre of mass of what changed, in scanner coordinates [mm]."""
    change = (after.chi - before.chi).abs()
    voxels = torch.nonzero(change > 1e-6)
    weight = change[change > 1e-6].double()
    middle = (voxels.double() * weight[:, None]).sum(dim=0) / weight.sum()
    return before.affine[:3, :3] @ middle.numpy() + before.affine[:3, 3]


@pytest.mark.parametrize("kind", ["haemorrhage", "calcification", "microbleed"])
@pytest.mark.parametrize("radius", [2.0, 5.0, 9.0])
def test_a_lesion_has_its_mean_and_its_volume(plain, kind, radius):
    lesion = Lesion(kind, -0.7, radius)
    made = add_lesions(plain, [lesion], seeded(1))
    moment = float(made.chi.sum()) * math.prod(SIZE)
    assert moment == pytest.approx(-0.7 * 4 / 3 * math.pi * radius**3, rel=0.025)
    assert float(made.chi.min()) >= -0.7 * 1.45
    assert ((made.chi < -0.02) & (made.chi > -0.4)).sum() > 2 * radius  # partial volume


def test_a_haemorrhage_has_a_rim_and_texture_and_others_are_even(plain):
    bleed = add_lesions(plain, [Lesion("haemorrhage", 1.0, 9.0)], seeded())
    full = bleed.labels == TISSUES["haemorrhage"].label
    depth = torch.from_numpy(distance_transform_edt(full.numpy(), sampling=SIZE))
    core = full & (depth > 6)
    assert float(bleed.chi[core].mean()) == pytest.approx(0.8, abs=0.06)
    assert float(bleed.chi[core].std()) > 0.005
    assert float(bleed.chi.max()) > 1.05
    assert float(bleed.r2star[full].max()) > 1.15 * float(bleed.r2star[core].mean())
    stone = add_lesions(plain, [Lesion("calcification", -2.0, 7.0)], seeded())
    inside = stone.chi < -1.99
    assert inside.sum() > 30
    assert float(stone.chi.min()) == pytest.approx(-2.0, abs=1e-4)


def test_lesions_lie_in_the_brain_away_from_its_rim_and_apart(head):
    depth = np.pad(head.mask.numpy(), 1)
    depth = torch.from_numpy(distance_transform_edt(depth, sampling=SIZE)[1:-1, 1:-1, 1:-1])
    for seed in range(4):
        lesions = draw_lesions(["haemorrhage", "calcification", "microbleeds"], seeded(seed))
        alone = [add_lesions(head, [lesion], seeded(seed)) for lesion in lesions[:2]]
        made = add_lesions(head, lesions, seeded(seed))
        changed = (made.chi - head.chi).abs() > 1e-6
        assert changed.any() and not (changed & ~head.mask).any()
        assert float(depth[changed].min()) >= 3
        assert torch.equal(made.mask, head.mask)
        for one in alone:
            middle = np.linalg.inv(head.affine) @ [*place_of(head, one), 1]
            name = head.label_names[int(head.labels[tuple(np.round(middle[:3]).astype(int))])]
            assert name in ("white matter", "internal capsule", "thalamus", "putamen", "caudate", "pallidum")
    # what lies nowhere on another adds up
    pair = [Lesion("calcification", -2.0, 6.0), Lesion("calcification", -2.0, 6.0)]
    made = add_lesions(head, pair, seeded())
    touched = ((made.chi - head.chi).abs() > 1e-4).sum() * math.prod(SIZE)
    assert float(touched) > 1.9 * 4 / 3 * math.pi * 6**3


def test_signal_goes_with_iron_and_is_left_in_the_first_echo(head):
    kept = []
    for chi in (0.4, 0.8, 1.4):
        made = add_lesions(head, [Lesion("haemorrhage", chi, 8.0)], seeded())
        inside = made.labels == TISSUES["haemorrhage"].label
        early, late = (
            float((made.m0 * torch.exp(-time * made.r2star))[inside].mean()) / float(head.m0[inside].mean())
            for time in (0.004, 0.025)
        )
        kept.append((early, late))
        assert float(made.r2star[inside].median()) > 1.5 * float(head.r2star[head.labels == WHITE].median())
    early, late = zip(*kept, strict=True)
    assert early[0] > early[1] > early[2] > 0.3
    assert late[0] > late[1] > late[2] and late[2] < 0.1


def test_labels_are_those_of_the_tissues_where_a_lesion_fills_over_half_a_voxel(head):
    made = add_lesions(head, [Lesion("calcification", -2.0, 5.0), Lesion("microbleed", 0.6, 2.5)], seeded())
    for name, chi in (("calcification", -2.0), ("microbleed", 0.6)):
        inside = made.labels == TISSUES[name].label
        assert inside.any() and made.label_names[TISSUES[name].label] == name
        assert bool((made.chi[inside] / chi > 0.4).all())
    assert made.labels.dtype == head.labels.dtype
    same = made.labels == head.labels
    assert float((made.chi - head.chi)[same].abs().max()) < 1.1


def test_the_same_seed_gives_the_same_lesions_and_the_head_given_stays(head):
    before = head.chi.clone()
    lesions = draw_lesions(["haemorrhage", "microbleeds"], seeded())
    assert lesions == draw_lesions(["haemorrhage", "microbleeds"], seeded())
    first, again, other = (add_lesions(head, lesions, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.chi, again.chi) and torch.equal(first.r2star, again.r2star)
    assert not torch.equal(first.chi, other.chi)
    assert torch.equal(head.chi, before)
    assert add_lesions(head, [], seeded()) is head


def spread_of(before, after):
    """Second moments of what changed, in scanner axes [mm^2]."""
    change = (after.chi - before.chi).abs()
    voxels = torch.nonzero(change > 1e-6)
    offsets = voxels.double() @ torch.from_numpy(before.affine[:3, :3]).T - torch.from_numpy(place_of(before, after))
    offsets += torch.from_numpy(before.affine[:3, 3])
    weight = change[change > 1e-6].double()
    return (offsets.T * weight) @ offsets / weight.sum()


@pytest.mark.parametrize("kind", ["haemorrhage", "calcification"])
def test_places_and_directions_do_not_depend_on_voxel_size_or_slab(plain, kind):
    other = built_in_head((78, 90, 64), (2.0, 2.0, 2.0), grid_rotation=(0.5, 0.0, -0.3))
    other = replace(other, chi=torch.zeros_like(other.chi))
    alike = 0
    for seed in range(6):
        lesion = [Lesion(kind, 0.9, 7.0)]
        made = [add_lesions(one, lesion, seeded(seed)) for one in (plain, other)]
        here, there = (place_of(one, after) for one, after in zip((plain, other), made, strict=True))
        alike += bool(np.linalg.norm(here - there) < 0.3)
        # its shape lies alike in the scanner even where a voxel at a border decided for another place
        first, second = (spread_of(one, after) for one, after in zip((plain, other), made, strict=True))
        torch.testing.assert_close(first, second, atol=0.6, rtol=0.0)
        assert float((first - first.trace() / 3 * torch.eye(3)).abs().max()) > 0.6
    assert alike >= 4


def test_a_given_centre_is_kept(head):
    made = add_lesions(head, [Lesion("microbleed", 0.9, 3.0, centre=(26.3, -20.0, 24.6))], seeded())
    np.testing.assert_allclose(place_of(head, made), (26.3, -20.0, 24.6), atol=0.3)
    with pytest.raises(InputError, match="wholly"):
        add_lesions(head, [Lesion("microbleed", 0.9, 3.0, centre=(0.0, 0.0, 140.0))], seeded())


def test_a_brain_with_little_room_is_searched_through(head):
    labels = torch.full_like(head.labels, TISSUES["grey matter"].label)
    inside = distance_transform_edt(head.mask.numpy(), sampling=SIZE) > 25
    spot = torch.nonzero(torch.from_numpy(inside))[7]
    labels[tuple(spot.tolist())] = WHITE
    made = add_lesions(replace(head, labels=labels), [Lesion("calcification", -1.0, 4.0)], seeded())
    expected = head.affine[:3, :3] @ spot.numpy() + head.affine[:3, 3]
    assert np.linalg.norm(place_of(head, made) - expected) < 2.2  # within the voxel
    with pytest.raises(InputError, match="no place"):  # one lesion leaves no room for the other
        add_lesions(replace(head, labels=labels), [Lesion("calcification", -1.0, 4.0)] * 2, seeded())


def test_room_ends_before_the_rim_of_the_mask(head):
    depth = torch.from_numpy(distance_transform_edt(head.mask.numpy(), sampling=SIZE))
    labels = torch.full_like(head.labels, TISSUES["grey matter"].label)
    labels[(depth > 3) & (depth < 4.5)] = WHITE
    with pytest.raises(InputError, match="3 mm from its rim"):
        add_lesions(replace(head, labels=labels), [Lesion("microbleed", 1.0, 1.5)], seeded())


def test_what_fits_nowhere_is_refused(head):
    with pytest.raises(InputError, match="no place for a haemorrhage"):
        add_lesions(head, [Lesion("haemorrhage", 1.0, 60.0)], seeded())
    with pytest.raises(InputError, match="empty"):
        add_lesions(replace(head, mask=torch.zeros_like(head.mask)), [Lesion("microbleed", 1.0, 2.0)], seeded())
    names = {**head.label_names, TISSUES["microbleed"].label: "amygdala"}
    with pytest.raises(InputError, match="amygdala"):
        add_lesions(replace(head, label_names=names), [Lesion("microbleed", 1.0, 2.0)], seeded())


def test_drawn_lesions_are_in_their_ranges():
    found = [one for seed in range(20) for one in draw_lesions(["haemorrhage", "calcification"], seeded(seed))]
    assert len(found) == 40
    for one in found:
        low, high = (0.4, 1.4) if one.kind == "haemorrhage" else (-3.3, -0.3)
        assert low <= one.chi <= high
        low, high = (4, 12) if one.kind == "haemorrhage" else (2, 6)
        assert low <= one.radius <= high
    groups = [draw_lesions(["microbleeds"], seeded(seed)) for seed in range(20)]
    assert all(5 <= len(group) <= 20 for group in groups)
    assert len({len(group) for group in groups}) > 4
    assert all(0.8 <= one.radius <= 2.5 and 0.3 <= one.chi <= 1.0 for group in groups for one in group)


def test_lesions_are_read_from_a_command_line():
    first, second, *bleeds = parse_lesions(["calcification:-3.3:4", "haemorrhage::7.5", "microbleeds:0.5"], seeded())
    assert first == Lesion("calcification", -3.3, 4.0)
    assert second.radius == 7.5 and 0.4 <= second.chi <= 1.4
    assert 5 <= len(bleeds) <= 20 and all(one.kind == "microbleed" and one.chi == 0.5 for one in bleeds)
    assert len({one.radius for one in bleeds}) == len(bleeds)
    assert parse_lesions(["haemorrhage"], seeded(2)) == draw_lesions(["haemorrhage"], seeded(2))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tumour", "unknown"),
        ("calcification:low", "cannot be read"),
        ("calcification:-3:4:1", "3 numbers"),
        ("calcification:-3:-4", "radius"),
        ("calcification:nan", "ppm"),
        ("haemorrhage:0", "ppm"),
        ("haemorrhage:1:nan", "radius"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(text, words):
    with pytest.raises(InputError, match=words):
        parse_lesions([text], seeded())
