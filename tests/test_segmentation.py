"""Which number is which region."""

import pytest
import torch

from chimap import segmentation
from chimap.errors import InputError
from chimap.segmentation import CHALLENGE, DEEP_GREY, FREESURFER, TISSUE, canonical, identify, names_from_table, region
from chimap.simulation.tissues import NAMES, TISSUES

TABLE = "index\tname\tcolor\n0\tair\t#000000\n3\tLeft-Caudate\t#ff0000\n 40 \tRight-Caudate\tn/a\n"


def numbered(*numbers):
    return torch.tensor([0, *numbers], dtype=torch.float32).reshape(1, 1, -1)


def test_numbers_up_to_sixteen_are_the_challenges():
    found, note = identify(numbered(1, 8, 16), source="s.nii")
    assert found.scheme == "challenge" and found.names[16] == "calcification"
    assert "2019" in note and "No table" in note
    assert found.labels.dtype == torch.int64 and found.labels.flatten().tolist() == [0, 1, 8, 16]


def test_the_challenges_numbers_are_those_of_simulated_tissues():
    shared = {number: name for number, name in NAMES.items() if 0 < number <= 16}
    assert {number: CHALLENGE[number] for number in shared} == shared
    assert set(CHALLENGE) == set(range(1, 17))


def test_numbers_that_freesurfer_has():
    found, note = identify(numbered(2, 41, 10, 49, 1035, 2003, 4001, 253, 12175), source="s.nii")
    assert found.scheme == "freesurfer" and "FreeSurfer" in note
    assert (found.names[10], found.names[49], found.names[16]) == ("left thalamus", "right thalamus", "brain stem")
    assert (found.names[1035], found.names[2003], found.names[4001]) == (
        "left grey matter",
        "right grey matter",
        "right white matter",
    )
    assert found.names[26] == "left accumbens" and found.names[60] == "right ventral diencephalon"


def test_a_table_wins_over_what_the_numbers_look_like():
    table = names_from_table(TABLE, "s.tsv")
    assert table == {0: "air", 3: "Left-Caudate", 40: "Right-Caudate"}
    found, note = identify(numbered(3, 40), table=table, source="s.nii")
    assert found.scheme == "table" and "table beside" in note
    assert region(found, {"caudate"}).flatten().tolist() == [False, True, True]
    with pytest.raises(InputError, match=r"s\.nii holds 7, 9, which the table"):
        identify(numbered(3, 7, 9), table=table, source="s.nii")


def test_a_simulated_segmentation_without_its_table_is_refused():
    """Its numbers from 20 on are FreeSurfer's for something else."""
    brain = [tissue.label for tissue in TISSUES.values() if tissue.brain]
    with pytest.raises(InputError, match=r"1, 6, 9, 20, 21, 22, .*\.tsv"):
        identify(numbered(*brain), source="labels.nii.gz")


def test_unknown_numbers_are_named_but_not_by_the_hundred():
    with pytest.raises(InputError, match=r"holds 700, 701, .*709 and 15 more, which neither"):
        identify(numbered(2, *range(700, 725)), source="s.nii")
    with pytest.raises(InputError, match="holds -1, which neither"):
        identify(numbered(-1, 5), source="s.nii")


def test_interpolated_and_empty_segmentations_are_refused():
    with pytest.raises(InputError, match=r"holds 1\.5, needed whole numbers"):
        identify(numbered(1, 1.5), source="s.nii")
    with pytest.raises(InputError, match="0 everywhere"):
        identify(numbered(0, 0), source="s.nii")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns none"),
        ("index,name\n1,caudate\n", "has the columns index,name"),
        ("index\tlabel\n1\tcaudate\n", "index, label"),
        ("index\tname\n", "no row"),
        ("index\tname\n1.5\tcaudate\n", "1.5 caudate"),
        ("index\tname\n1\t\n", "a name"),
        ("index\tname\n1\n", "a name"),
        ("index\tname\n1\ta\n1\tb\n", "1 twice"),
    ],
)
def test_bad_tables_are_refused(text, message):
    with pytest.raises(InputError, match=f"s.tsv.*{message}"):
        names_from_table(text, "s.tsv")


def test_windows_and_byte_order_mark_do_not_matter():
    assert names_from_table("\ufeffname\tindex\r\nputamen\t3\r\n\r\n", "s.tsv") == {3: "putamen"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Left-Thalamus-Proper", "thalamus"),
        ("Globus Pallidus L", "pallidum"),
        ("lh_substantia_nigra", "substantia nigra"),
        ("Gray Matter", "grey matter"),
        ("Right-Cerebellum-Cortex", "cerebellar cortex"),
        ("Hemorrhage", "haemorrhage"),
        ("Brain-Stem", "brain stem"),
        ("lateral ventricle", "lateral ventricle"),
    ],
)
def test_names_as_the_groups_know_them(name, expected):
    assert canonical(name) == expected


def test_groups_hold_names_that_exist_and_none_twice():
    deep = [name for names in DEEP_GREY.values() for name in names]
    known = {canonical(name) for name in (*CHALLENGE.values(), *FREESURFER.values(), *TISSUES)}
    everything = [
        *deep, *TISSUE, *segmentation.BLOOD, *segmentation.CALCIFICATION, *segmentation.HAEMORRHAGE
    ]  # fmt: skip
    assert set(everything) <= known and len(everything) == len(set(everything))
    assert [canonical(name) for name in everything] == everything


def test_background_is_no_region_even_if_a_table_names_it():
    found, _ = identify(numbered(5), table={0: "white matter", 5: "caudate"}, source="s.nii")
    assert not region(found, TISSUE).any()
