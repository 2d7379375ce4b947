"""The viewer shows what is in the maps: packed and unpacked, in Python here and in a browser."""

import gzip
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from chimap.report import viewer as viewers
from chimap.report.page import CHI_WINDOW, write_report
from chimap.report.view import view_of
from chimap.report.viewer import OUTSIDE, Layer, layers, packed, viewer


def unpacked(content: bytes, shape) -> np.ndarray:
    """Steps, as the page's script reads them: differences, low bytes before high ones, x fastest."""
    parts = np.frombuffer(gzip.decompress(content), dtype=np.uint8).astype(np.uint16).reshape(2, -1)
    steps = np.cumsum(parts[0] + 256 * parts[1], dtype=np.uint16).astype(np.int16)
    return steps.reshape(shape[::-1]).transpose(2, 1, 0)


@pytest.fixture(scope="module")
def view(scan, maps):
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])  # the file's first axis runs to the left
    return view_of(affine, scan.voxel_size, maps.brain_mask, margin=6.0)


def test_what_is_packed_comes_back_within_half_a_step(maps, view):
    layer = Layer("chi", "ppm", maps.chi, CHI_WINDOW, maps.mask)
    content, shape, level = packed(layer, view, 1)
    steps = unpacked(content, shape)
    inside = view.turned(maps.mask)
    assert shape == view.shape
    assert np.array_equal(steps == OUTSIDE, ~inside)
    assert np.abs(steps * level - view.turned(maps.chi))[inside].max() <= 0.51 * level
    assert level == pytest.approx(0.25 / 500)


def test_every_other_voxel_where_half_the_detail_is_enough(maps, view):
    content, shape, level = packed(Layer("chi", "ppm", maps.chi, CHI_WINDOW), view, 2)
    whole = view.turned(maps.chi)[::2, ::2, ::2]
    assert shape == whole.shape
    assert np.abs(unpacked(content, shape) * level - whole).max() <= 0.51 * level


def test_what_is_not_finite_or_far_off_stays_in_range(maps, view):
    chi = maps.chi.clone()
    chi[14, 20, 13], chi[15, 20, 13], chi[16, 20, 13] = torch.inf, -1000.0, torch.nan
    content, shape, _ = packed(Layer("chi", "ppm", chi, CHI_WINDOW), view, 1)
    steps = unpacked(content, shape)
    assert steps.max() == -OUTSIDE and steps.min() == OUTSIDE + 1


def test_a_large_grid_is_shown_in_less_detail(scan, maps, view, monkeypatch):
    assert '"stride": 1' in viewer(scan, maps, view, CHI_WINDOW)["about"]
    monkeypatch.setattr(viewers, "MOST_VOXELS", 5000)
    about = viewer(scan, maps, view, CHI_WINDOW)["about"]
    assert '"stride": 1' not in about and '"stride": 2' in about and '"stride": 4' in about


def test_stages_without_data_have_no_layer(scan, maps):
    whole = [layer.name for layer in layers(scan, maps, CHI_WINDOW)]
    bare = replace(scan, phase=scan.phase[:1], magnitude=None, echo_times=scan.echo_times[:1])
    few = [layer.name for layer in layers(bare, replace(maps, unwrapped_phase=None, r2star=None), CHI_WINDOW)]
    assert whole[0] == few[0] == "susceptibility"
    assert {"magnitude, echo 1", "magnitude, echo 3", "R2*", "unwrapped phase, echo 3"} <= set(whole)
    assert few[1:] == ["wrapped phase, echo 1", "total field", "local field", "valid mask"]


def test_a_person_can_look_through_the_maps_in_a_browser(tmp_path, scan, maps, plan):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed; .ci/run installs it")
    path = tmp_path / "report.html"
    write_report(path, scan, maps, plan)
    complaints = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        page.locator("#viewer").wait_for(state="visible")

        def part(name):
            return page.locator(f'#viewer [data-is="{name}"]')

        def picture():
            return part("axial").evaluate("canvas => canvas.toDataURL()")

        def told(pattern):
            page.wait_for_function(
                "pattern => new RegExp(pattern).test(document.querySelector('[data-is=value]').textContent)",
                arg=pattern,
            )
            return part("value").inner_text()

        first = told(r"susceptibility -?0\.\d+ ppm"), picture()
        part("high").evaluate("slider => { slider.value = 1000; slider.dispatchEvent(new Event('input')); }")
        widened = part("window").inner_text(), picture()
        part("reset").click()
        assert picture() == first[1]
        part("axial").focus()
        page.keyboard.press("ArrowUp")
        moved = told("voxel")
        part("overlay").select_option(label="local field")
        both = told("local field")
        over = picture()
        part("map").select_option(label="magnitude, echo 1")
        other = told("magnitude, echo 1")
        box = part("axial").bounding_box()
        page.mouse.click(box["x"] + 1, box["y"] + 1)
        corner = told("outside its mask")
        browser.close()
    assert complaints == []
    assert widened[0] == "-0.100 to 0.400 ppm" and widened[1] != first[1]
    at = [[int(n) for n in re.findall(r"\d+", text.split(")")[0])] for text in (first[0], moved)]
    assert at[1] == [at[0][0], at[0][1], at[0][2] + 1]
    shown = float(re.search(r"susceptibility (\S+) ppm", first[0])[1])
    assert shown == pytest.approx(float(maps.chi[tuple(at[0])]), abs=0.0005)
    assert "susceptibility" in both and over != first[1]
    assert "susceptibility" not in other and "a.u." in other
    # the patient's right and front are at the picture's top left: the highest of both indices that are shown
    box = view_of(scan.affine, scan.voxel_size, maps.brain_mask, margin=6.0).box
    assert [int(n) for n in re.findall(r"\d+", corner.split(")")[0])][:2] == [box[0].stop - 1, box[1].stop - 1]
