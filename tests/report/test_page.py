"""The report opens anywhere, says everything, and loads nothing."""

import re
import shutil
from dataclasses import replace

import pytest
import torch

from chimap.report import figures
from chimap.report.page import write_report


@pytest.fixture
def report(tmp_path, scan, maps, plan):
    """Write the report, with fields of scan or maps replaced, and return its text."""

    def write(scan_changes=None, maps_changes=None, **options) -> str:
        path = tmp_path / "report.html"
        write_report(
            path,
            replace(scan, **(scan_changes or {})),
            replace(maps, **(maps_changes or {})),
            plan,
            **options,
        )
        return path.read_text(encoding="utf-8")

    return write


@pytest.fixture
def words(report, monkeypatch):
    """The same without drawing, which takes most of the time, for tests of the text."""
    for name in ("three_planes", "axial_levels", "histogram"):
        monkeypatch.setattr(figures, name, lambda *_, **__: b"")
    return report


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, scan, maps, plan):
    """A whole report with a warning that no line can hold."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    warned = replace(scan, warnings=("One " + "long" * 40 + " word.",))
    write_report(path, warned, maps, plan, title="Head", extras={"NRMSE": "61.2 %"})
    return path


def test_every_stage_has_its_picture(drawn):
    text = drawn.read_text(encoding="utf-8")
    names = re.findall(r'<figure id="([a-z0-9-]+)"', text)
    assert names == [
        *("chi", "chi-axial", "chi-histogram", "local-field-histogram"),
        *("magnitude-1", "magnitude-3", "phase-1", "phase-3", "masks", "unwrapped-1", "unwrapped-3"),
        *("total-field", "field-noise", "r2star", "local-field"),
    ]
    assert len(text) < 4 * 2**20


def test_nothing_is_loaded_from_elsewhere(drawn):
    text = drawn.read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(link.startswith(("data:", "#", "https://doi.org/10.")) for link in links)
    scripts = re.findall(r"<script([^>]*)>", text)
    assert all(
        words == "" or re.fullmatch(r' type="(text/plain|application/json)" id="[a-z0-9-]+"', words)
        for words in scripts
    )
    assert scripts.count("") == 2  # and only these may run: the policy names their hashes
    assert text.split("</head>")[0].count("'sha256-") == 2
    assert not re.search(r"@import|url\(|<iframe|<object|srcset", text)


def test_what_the_user_wrote_cannot_become_markup(words):
    text = words({"notes": ("<script>alert(1)</script>",)}, title="<b>x", extras={"<i>": "<u>"})
    assert "<script>alert" not in text and "&lt;script&gt;" in text
    assert not re.search(r"<b>x|<i>|<u>", text)


def test_warnings_stand_before_the_first_picture(words):
    text = words({"warnings": ("The echo time was guessed.",)}, {"warnings": ("Little was kept.",)})
    first = text.index("<figure id=")
    assert text.index("2 warnings") < text.index("The echo time was guessed.") < text.index("Little was kept.") < first
    assert "No warnings" not in text


def test_no_warnings_is_said_in_a_calm_line(words):
    text = words()
    assert "No warnings" in text and 'role="alert"' not in text


def test_times_are_shown_in_ms_and_folders_are_not_shown(words):
    text = words()
    assert "5, 10, 17.5 ms" in text and "sub-1_phase.nii.gz" in text
    assert "private folder" not in text


def test_the_numbers_are_those_of_the_maps(words, maps):
    text = words(extras={"NRMSE": "61.2 %"})
    values = maps.chi[maps.mask].double()
    assert f"{values.mean():.4f} ± {values.std(correction=0):.4f} ppm".replace("-", "−") in text
    volume = float(maps.mask.sum()) * 12 / 1000
    assert f"{volume:.0f} mL" in text
    assert "61.2 %" in text and "1.8 s" in text  # 0.5 s + 1.25 s


def test_a_tilted_slab_says_its_angle_to_b0(words):
    assert "perpendicular to B0" in words()
    tilted = words({"b0_direction": (0.0, 0.5, 3**0.5 / 2)})
    assert "tilted by 30.0°" in tilted and "perpendicular to B0" not in tilted


def test_one_echo_without_magnitude_or_unwrapped_phase_is_enough(words, scan):
    text = words(
        {"phase": scan.phase[:1], "magnitude": None, "echo_times": (0.02,)},
        {"unwrapped_phase": None, "r2star": None, "seconds": {}},
    )
    assert 'id="phase-1"' in text and 'id="masks"' in text
    assert 'id="magnitude' not in text and 'id="unwrapped' not in text
    assert "R2*" not in text


def test_an_empty_valid_mask_still_gives_a_report(report, maps):
    nothing = torch.zeros_like(maps.mask)
    text = report({}, {"mask": nothing, "chi": maps.chi * 0, "local_field": maps.chi * 0})
    assert "there is no susceptibility" in text


def test_infinite_noise_is_bright_and_does_not_set_the_window(words, maps):
    noise = maps.field_noise.clone()
    noise[14:18] = float("inf")
    assert "0 to 1.4 times its median" in words({}, {"field_noise": noise})


def test_it_opens_in_a_browser_without_network_errors_or_sideways_scrolling(drawn):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed; .ci/run installs it")
    requests, complaints, overflow = [], [], {}
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(drawn.as_uri())
        widths = page.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
        for width in (1000, 390):
            page.set_viewport_size({"width": width, "height": 800})
            overflow[width] = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        heading = page.locator("h1").inner_text()
        alert = page.get_by_role("alert").bounding_box()
        page.locator("#chi .enlarge").click()
        enlarged = page.locator("#chi").evaluate("figure => getComputedStyle(figure).position")
        browser.close()
    assert [url for url in requests if not url.startswith("data:")] == [drawn.as_uri()]
    assert complaints == []
    assert len(widths) == 15 and min(widths) > 0
    assert max(overflow.values()) <= 0
    assert heading == "Head"
    assert alert is not None and alert["y"] < 400
    assert enlarged == "fixed"
