"""The words a user pastes into a paper."""

import re
from dataclasses import replace

from chimap.plan import Plan
from chimap.report.methods import methods_paragraph, methods_used, references, shown

from .conftest import ball


def test_every_parameter_is_listed_with_the_value_that_was_used(scan, plan):
    tv = methods_used(scan, plan)[-1]
    assert tv.method.name == "tv"
    assert tv.parameters["regularisation"] == 7e-4
    assert list(tv.changed) == ["regularisation"]
    assert tv.changed["regularisation"] == tv.method.parameters()["regularisation"]
    assert "progress" not in tv.parameters


def test_a_setting_equal_to_the_default_is_no_change(scan):
    default = methods_used(scan, Plan())[-1].parameters["iterations"]
    assert not methods_used(scan, Plan(settings={"tv": {"iterations": default}}))[-1].changed


def test_numbers_in_the_paragraph_count_the_references(scan, maps, plan):
    plan = replace(plan, background="vsharp")
    used = methods_used(scan, plan)
    papers = references(used)
    text = methods_paragraph(scan, maps, plan)
    cited = [int(number) for number in re.findall(r"\[(\d+)\]", text)]
    assert sorted(set(cited)) == list(range(1, len(papers) + 1))
    assert len(set(papers)) == len(papers)
    at = text.index("V-SHARP [") + len("V-SHARP [")
    assert papers[int(text[at]) - 1].doi == "10.1002/mrm.23000"
    assert all(re.fullmatch(r"10\.\d{4,}/\S+[^.;,]", paper.doi) for paper in papers)


def test_the_paragraph_states_acquisition_changes_and_reference(scan, maps, plan):
    text = methods_paragraph(scan, maps, plan)
    assert "3-echo" in text and "5, 10 and 17.5 ms" in text and "3 T" in text and "2 x 2 x 3 mm" in text
    assert "regularisation 0.0007, default" in text
    assert f"{100 * float(maps.mask.sum() / maps.brain_mask.sum()):.1f} % of the brain mask" in text
    assert "relative to its mean in the mask in which it is valid" in text and "SD 0.0345 ppm" in text
    without = methods_paragraph(scan, replace(maps, reference=None), plan)
    assert "relative to its mean" not in without and "without a reference region" in without


def test_the_users_mask_is_called_the_users(scan, maps, plan):
    given = replace(scan, mask=ball(32))
    assert "supplied by the user" in methods_paragraph(given, maps, replace(plan, erosion=2.0))
    assert "eroded by 2 mm" in methods_paragraph(given, maps, replace(plan, erosion=2.0))
    assert [row.method.stage for row in methods_used(given, plan)] == [
        "unwrap",
        "combination",
        "relaxation",
        "background",
        "inversion",
    ]


def test_one_echo_reads_as_one_echo(scan, maps, plan):
    single = replace(scan, phase=scan.phase[:1], magnitude=None, echo_times=(0.02,))
    text = methods_paragraph(single, maps, plan)
    assert "single-echo" in text and "echo time 20 ms" in text and "combined" not in text
    assert "from phase" in text and "magnitude" not in text


def test_values_are_written_for_readers():
    assert [shown(value) for value in (True, 0.00025, (1.0, 2.5), None, "auto")] == [
        "yes",
        "0.00025",
        "1, 2.5",
        "automatic",
        "auto",
    ]


def test_a_network_of_ones_own_is_named_without_its_folders(scan, maps, tmp_path):
    weights = tmp_path / "somebody" / "best.safetensors"
    weights.parent.mkdir()
    weights.touch()
    text = methods_paragraph(scan, maps, Plan(inversion=str(weights)))
    assert "own training (best.safetensors)" in text and "somebody" not in text
