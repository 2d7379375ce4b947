"""Values by region in the report: right, beside the literature's, and sorted by a click."""

import math
import shutil
from dataclasses import replace

import pytest
import torch

from chimap.report.page import write_report
from chimap.report.regions import outlined, region_table, through
from chimap.report.view import view_of
from chimap.segmentation import Segmentation

from .conftest import SHAPE, ball

NAMES = {1: "left globus pallidus", 2: "Cerebral White Matter", 3: "odd <spot>"}


@pytest.fixture(scope="module")
def segmented(maps):
    labels = torch.zeros(SHAPE, dtype=torch.int64)
    labels[ball(26)] = 2
    labels[ball(6, (8, 4, 0))] = 1
    labels[ball(4, (-10, 0, 6))] = 3
    return replace(maps, segmentation=Segmentation(labels, NAMES, "table"))


def test_values_are_those_of_the_maps_and_beside_them_what_is_known(scan, segmented):
    whole, pallidum, white, odd = region_table(scan, segmented)
    labels, chi = segmented.segmentation.labels, segmented.chi
    assert pallidum.region == "left globus pallidus"
    assert pallidum.mean == pytest.approx(float(chi[labels == 1].mean()), abs=1e-6)
    assert pallidum.volume == pytest.approx(12 * int((labels == 1).sum()) / 1000)
    assert pallidum.above == pytest.approx(float(chi[labels == 1].mean() - chi[labels == 2].mean()), abs=1e-6)
    assert pallidum.known == pytest.approx(0.1605) and pallidum.iron == (21.30, 3.49)
    assert white.above == 0 == white.known and math.isnan(white.iron[0])
    assert math.isnan(odd.known) and math.isnan(whole.known)


def test_without_white_matter_there_is_no_difference_to_it(scan, segmented):
    labels = segmented.segmentation.labels
    alone = replace(segmented, segmentation=Segmentation(labels * (labels != 2), NAMES, "table"))
    assert all(math.isnan(row.above) for row in region_table(scan, alone))


def test_planes_meet_in_the_regions(scan, segmented):
    regions = outlined(segmented.segmentation, segmented.mask)
    assert [name for name, _, _ in regions] == ["pallidum", "odd <spot>"]
    view = through(view_of(scan.affine, scan.voxel_size, segmented.brain_mask), regions[:1])
    assert regions[0][1][view.centre]


def test_a_run_without_regions_has_no_table(tmp_path, scan, maps, plan):
    assert region_table(scan, maps) == []
    write_report(tmp_path / "report.html", scan, maps, plan)
    assert "Values by region" not in (tmp_path / "report.html").read_text()


def test_the_table_sorts_in_a_browser(tmp_path, scan, segmented, plan):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium")
    path = tmp_path / "report.html"
    write_report(path, replace(scan, segmentation=segmented.segmentation), segmented, plan)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        first = page.locator("#regions tbody td:first-child")
        assert first.all_inner_texts() == ["whole mask", "left globus pallidus", "Cerebral White Matter", "odd <spot>"]
        head = page.locator("#regions th", has_text="chi, mean")
        head.click()
        assert first.all_inner_texts()[-1] == "left globus pallidus"
        head.click()
        assert first.all_inner_texts()[0] == "left globus pallidus"
        page.select_option("[data-is=overlay]", label="regions")
        page.locator("[data-is=value]", has_text="regions").wait_for()
        browser.close()
    assert said == []
