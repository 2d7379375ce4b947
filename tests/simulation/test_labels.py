"""From FreeSurfer's numbers to tissues, and into a packed file and back."""

import numpy as np
import pytest
import torch

from chimap.errors import InputError
from chimap.simulation.labels import FREESURFER, from_freesurfer, read_packed, write_packed
from chimap.simulation.tissues import BRAIN_LABELS, TISSUES

SIZE = (3.0, 3.0, 3.0)


def share(label_map, *tissues):
    labels = torch.tensor([TISSUES[tissue].label for tissue in tissues], dtype=torch.uint8)
    return float(torch.isin(label_map.classes, labels).sum()) * 27e-3  # ml


def test_no_number_stands_for_two_tissues():
    numbers = [number for group in FREESURFER.values() for number in group]
    assert len(numbers) == len(set(numbers))
    assert set(FREESURFER) <= set(TISSUES)


def test_numbers_become_tissues_and_the_box_fits_the_head(numbers, label_map):
    voxels = int((numbers == 2).sum() + (numbers == 41).sum())
    assert share(label_map, "white matter") == pytest.approx(voxels * 27e-3, rel=0.02)
    head = np.argwhere(numbers > 0)
    assert all(n <= extent + 4 for n, extent in zip(label_map.classes.shape, np.ptp(head, axis=0) + 1, strict=True))


def test_nuclei_that_no_map_has_lie_where_they_belong(numbers, label_map):
    for tissue, least, most in (
        ("red nucleus", 0.1, 1.2),
        ("substantia nigra", 0.05, 1.5),
        ("dentate nucleus", 0.3, 3.0),
    ):
        assert least < share(label_map, tissue) < most, tissue  # ml, both sides
    places = torch.nonzero(label_map.classes == TISSUES["dentate nucleus"].label)[:, 0].float()
    middle = label_map.middle[0] / SIZE[0]
    assert (places < middle).any() and (places > middle).any()


def test_fluid_between_folds_is_of_the_brain_and_fluid_around_it_is_not(numbers):
    wide = numbers.copy()
    edge = np.zeros_like(wide, dtype=bool)
    edge[:, :, -12:] = True
    wide[edge & (wide > 0)] = 24  # a lake above the brain
    made = from_freesurfer(wide, SIZE, name="made")
    assert share(made, "outer fluid") > 10
    assert share(made, "csf") > 10


def test_specks_far_from_the_brain_are_no_brain(numbers):
    specked = numbers.copy()
    neck = np.argwhere(specked[:, :, 2] == 507)[0]
    specked[neck[0], neck[1], 2] = 3
    made = from_freesurfer(specked, SIZE, name="made")
    assert not (made.classes[:, :, :6] == TISSUES["grey matter"].label).any()


def test_gaps_that_a_map_leaves_in_the_skull_are_no_air(numbers):
    holed = numbers.copy()
    bone = np.argwhere(holed == 515)
    top = bone[bone[:, 2] > np.quantile(bone[:, 2], 0.8)][::7]
    holed[tuple(top.T)] = 0
    made, whole = (from_freesurfer(one, SIZE, name="made") for one in (holed, numbers))
    assert len(top) > 50
    air = TISSUES["air"].label
    assert int((made.classes == air).sum()) <= int((whole.classes == air).sum()) + 0.1 * len(top)


def test_sinuses_stay_air(numbers, label_map):
    middle = tuple(n // 2 for n in label_map.classes.shape)
    front = label_map.classes[middle[0] - 6 : middle[0] + 6, middle[1] :, : middle[2]]
    beyond = (front == TISSUES["air"].label).int().flip(1).cumprod(dim=1).flip(1)  # in front of the face
    assert int(((front == TISSUES["air"].label) & (beyond == 0)).sum()) > 20


def test_a_brain_without_a_head_gets_one(numbers, label_map):
    brain = np.where(numbers < 500, numbers, 0)
    made = from_freesurfer(brain, SIZE, name="aseg")
    assert share(made, "bone") > 150 and share(made, "muscle") > 300 and share(made, "air") > 100
    air = made.classes == TISSUES["air"].label
    beside_air = torch.nn.functional.max_pool3d(air[None].float(), 3, 1, 1)[0] > 0
    inside = torch.isin(made.classes, torch.tensor(BRAIN_LABELS, dtype=torch.uint8))
    assert not (beside_air & inside).any()
    assert float(inside.sum()) * 27e-3 == pytest.approx(
        share(label_map, *[tissue for tissue, row in TISSUES.items() if row.brain]), rel=0.02
    )


def test_packing_gives_the_maps_back_and_the_same_bytes(tmp_path, label_map):
    write_packed(tmp_path / "a.npz", [label_map, label_map])
    write_packed(tmp_path / "b.npz", [label_map, label_map])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    first, second = read_packed(tmp_path / "a.npz")
    assert torch.equal(first.classes, label_map.classes) and torch.equal(second.classes, label_map.classes)
    assert (first.voxel_size, first.middle, first.half_size, first.name) == (
        label_map.voxel_size,
        label_map.middle,
        label_map.half_size,
        "made",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n: np.where(n == 2, 9999, n), "9999"),
        (lambda n: n + 0.5, "whole numbers"),
        (lambda n: (n > 0).astype(int), "1"),
        (lambda n: n[0], "one volume"),
        (lambda n: np.where(n > 500, n, 0), "no number of a brain"),
    ],
)
def test_what_is_no_label_map_is_refused_in_a_sentence(numbers, change, words):
    with pytest.raises(InputError, match=words):
        from_freesurfer(change(numbers), SIZE, name="file")


def test_what_is_no_packed_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_packed(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(InputError, match="no file of packed label maps"):
        read_packed(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(InputError, match="no file of packed label maps"):
        read_packed(tmp_path / "other.npz")
