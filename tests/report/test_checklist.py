from dataclasses import replace

from chimap.report.checklist import checklist
from chimap.report.methods import Reference, bibtex, methods_used, references


def test_what_the_run_knows_is_filled_in_and_the_rest_is_left_open(scan, maps, plan):
    items = {item.name: item.value for item in checklist(scan, maps, plan, methods_used(scan, plan))}
    assert items["Field strength"] == "3 T"
    assert items["Echo times"] == "5, 10, 17.5 ms"
    assert items["Voxel size, matrix, field of view"] == "2 x 2 x 3 mm, 33 x 40 x 27, 66 x 80 x 81 mm, as reconstructed"
    algorithms = items["Algorithms and parameters"]
    assert algorithms is not None and "inversion: tv (regularisation 0.0007" in algorithms
    kept = 100 * int(maps.mask.sum()) / int(maps.brain_mask.sum())
    assert items["Share of the brain mask with a value"] == f"{kept:.1f} %"
    assert "SD there is 0.0345 ppm" in (items["Unit and reference"] or "")
    assert items["Regions: how they were drawn or segmented"] is None
    assert items["Repetition time, flip angle, bandwidth"] is None


def test_the_reference_is_stated_as_it_is(scan, maps, plan):
    items = {i.name: i.value for i in checklist(scan, replace(maps, reference=None), plan, methods_used(scan, plan))}
    assert "without a reference region" in (items["Unit and reference"] or "")


def test_every_paper_has_an_entry_with_a_key_of_its_own(scan, plan):
    papers = references(methods_used(scan, plan))
    text = bibtex(papers)
    keys = [line.split("{")[1].rstrip(",") for line in text.splitlines() if line.startswith("@article")]
    assert len(keys) == len(set(keys)) == len(papers)
    assert all(f"doi = {{{paper.doi}}}" in text for paper in papers)
    assert text.count("{") == text.count("}")


def test_two_papers_of_one_author_and_year_are_told_apart():
    two = [Reference("Liu et al. 2017", "10.1/a"), Reference("Liu et al. 2017", "10.1/b")]
    text = bibtex(two)
    assert "@article{liu2017,\n  author = {Liu and others},\n  year = {2017},\n  doi = {10.1/a}\n}" in text
    assert "@article{liu2017a," in text
    assert "author = {Liu and Koch}" in bibtex([Reference("Liu and Koch 2020", "10.1/c")])
