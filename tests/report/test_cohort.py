"""The page of a cohort says who needs a second look, shows every value, and opens anywhere."""

import json
import re
import shutil

import pytest

from chimap import group
from chimap.plan import WHOLE_MASK
from chimap.report.cohort import write_cohort_page
from chimap.report.strips import WIDTH, Point, scatter, strip, ticks
from chimap.scan import Reference

COLUMNS = ("segmentation", "region", "volume_mm3", "chi_mean", "chi_sd", "r2star_mean")
PALLIDUM = (0.131, 0.128, 0.135, 0.122, 0.127, 0.138, 0.125, 0.46)
PLAN = {"inversion": "tv", "two_pass": False, "settings": {"tv": {"regularisation": 7e-4}}}
SETTINGS = {"Version": "1", "Plan": PLAN}


def acquisition(output, name, chi, *, region="pallidum", about=None):
    """Derivatives of one acquisition, as far as the page looks at them: the whole mask and one region."""
    sub, *session = [part for part in name.split("_") if part.startswith(("sub-", "ses-"))]
    stem = output.joinpath(sub, *session, "anat", name)
    stem.parent.mkdir(parents=True, exist_ok=True)
    record = {"Settings": SETTINGS, "Methods": "In a few words.", "Warnings": []}
    record["Reference"] = Reference(WHOLE_MASK, 1000 + len(name), 1.2e3, chi / 10, 0.03).sentence
    stem.with_name(f"{name}_Chimap.json").write_text(json.dumps(record | (about or {})))
    rows = [COLUMNS, ("n/a", "whole mask", 1.2e6, 0, 0.03, 21.5), ("aseg", region, 1800, chi, 0.02, "n/a")]
    text = "\n".join("\t".join(map(str, row)) for row in rows)
    stem.with_name(f"{name}_regions.tsv").write_text(text + "\n")
    (output / f"{name}.html").write_text("<title>its report</title>")


@pytest.fixture
def output(tmp_path):
    """Eight people, the last of them far out."""
    for n, chi in enumerate(PALLIDUM, start=1):
        acquisition(tmp_path, f"sub-{n:02d}", chi)
    return tmp_path


def page(output, **more) -> str:
    path = output / "group.html"
    write_cohort_page(path, group.collect(output), **more)
    return path.read_text(encoding="utf-8")


def section(text, name) -> str:
    return text.split(f'<section id="{name}">')[1].split("</section>")[0]


def test_an_outlier_is_named_with_its_value_and_leads_to_its_report(output):
    text = page(output)
    assert "8 people, 8 acquisitions" in text and "not looked for" not in text
    attention = section(text, "attention")
    assert attention.count("<tr><td") == 1
    row = re.search(r'<td class="who"><a href="sub-08.html">sub-08</a></td>(.*)</tr>', attention)[1]
    z = group.robust_z(PALLIDUM)[-1]
    assert "pallidum" in row and "0.4600 ppm" in row and "0.1295 ppm" in row and f">{z:.1f}<" in row
    regions = section(text, "regions")
    assert regions.index("whole mask") < regions.index("pallidum")
    low, high = group.limits(PALLIDUM)
    assert f"median 0.1295, limits {low:.4f} to {high:.4f}, n\u00a0=\u00a08" in regions
    assert re.search(r'<a href="sub-08.html">\s*<title>sub-08: 0.46</title>', regions)
    assert ">sub-08 0.4600</text>" in regions and "sub-07</text>" not in regions  # it lies beyond the axis
    assert '<td data-value="0.46" class="odd">0.4600 <small>± 0.0200</small>' in section(text, "table")


def test_nothing_is_loaded_from_elsewhere(output):
    text = page(output)
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(re.fullmatch(r"data:,|#\w+|sub-\d+\.html", link) for link in links)
    assert text.count("<script") == 1 and "default-src 'none'" in text
    assert not re.search(r"@import|url\(|<iframe|<object|srcset", text)


def test_who_has_no_report_is_named_without_a_link(output):
    (output / "sub-08.html").unlink()
    text = page(output)
    assert "sub-08.html" not in text and '<td class="who">sub-08</td>' in text


def test_warnings_failures_and_people_without_values(output):
    acquisition(output, "sub-03", 0.135, about={"Warnings": ["The echo time was guessed."]})
    text = page(output, failed={"sub-02": "made otherwise", "sub-09_ses-a": "the file ends too early"})
    attention = section(text, "attention")
    assert "; 1 person without values" in text
    rows = re.findall(r'<tr><td class="who">(.*?)</td><td class="who[^"]*">(.*?)</td><td>(.*?)</td></tr>', attention)
    assert rows == [
        ("sub-09_ses-a", "no values", "the file ends too early"),
        ('<a href="sub-02.html">sub-02</a>', "failed, older values", "made otherwise"),
        ('<a href="sub-03.html">sub-03</a>', "warning", "The echo time was guessed."),
    ]


def test_maps_made_in_two_ways_are_said_to_be(output):
    assert "All alike" in section(page(output), "made")
    other = {**SETTINGS, "Plan": {"inversion": "tkd", "two_pass": False}}
    acquisition(output, "sub-05", 0.127, about={"Settings": other, "MagneticFieldStrength": 7.0})
    text = page(output)
    made = section(text, "made")
    assert "2 plans or versions" in text.split("<section")[0]
    assert "is the mean of the valid mask" in section(text, "regions")
    assert "All alike" not in made
    assert "for that alone: inversion, tv.regularisation, Field strength." in made
    assert re.search(r"tv <span[^>]*>7 acquisitions</span><br>tkd <span[^>]*>1 acquisition: sub-05<", made)
    assert "In a few words." in made and "<b>sub-01</b>" in made


def test_what_files_say_cannot_become_markup(output):
    bad = "<script>alert(1)</script>"
    about = {"Warnings": [bad], "Methods": bad, "EstimationAlgorithm": bad}
    acquisition(output, "sub-04", 0.9, region=bad, about=about)
    text = page(output, failed={f"sub-{bad}": bad})
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6


def test_one_acquisition_is_enough(tmp_path):
    acquisition(tmp_path, "sub-01_ses-a_run-2", 0.13)
    text = page(tmp_path)
    assert "1 person, 1 session, 1 acquisition<" in text
    assert "Outliers were not looked for" in text and "Nothing stands out" not in text and 'role="alert"' not in text
    assert "median 0.1300, n\u00a0=\u00a01" in text and 'class="limit"' not in text
    assert '<a href="sub-01_ses-a_run-2.html">' in section(text, "table")


def test_ages_are_drawn_where_they_are_numbers(output):
    people = "participant_id\tage\nsub-01\t30\nsub-02\t61.5\nsub-03\t89+\nsub-04\tn/a\n"
    (output / "participants.tsv").write_text(people)
    ages = group.ages(output)
    assert ages == {"sub-01": 30.0, "sub-02": 61.5}
    text = page(output, ages=ages)
    drawn = section(text, "age")
    assert drawn.count("<svg") == 1 and len(re.findall(r"M[\d.]+ [\d.]+h0", drawn)) == 2  # the whole mask is zero
    assert "<th>Age</th>" in text and "<td>61.5</td>" in text and group.ages(output / "nothing") == {}
    assert 'id="age"' not in page(output, ages={"sub-01": 30.0})


def test_the_last_word_on_a_failure_counts(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    head = "acquisition\tstatus\tseconds\tsentence\n"
    (logs / "20250102T000000-1.tsv").write_text(head + "sub-01\tmade\t2.0\tn/a\nsub-03\tfailed\t1.0\tanother reason\n")
    (logs / "20250101T000000-9.tsv").write_text(
        head + "".join(f"sub-0{n}\tfailed\t1.0\tits reason\n" for n in (1, 2, 3))
    )
    assert group.failures(tmp_path) == {"sub-02": "its reason", "sub-03": "another reason"}
    assert group.failures(tmp_path / "nothing") == {}


def test_no_place_in_a_drawing_is_outside_of_it():
    values = [0.1 + 0.001 * (n % 17) for n in range(500)] + [9.0, -9.0]
    points = [Point(value, "sub-01 ses-a", "sub-01_ses-a", abs(value) > 1) for value in values]
    drawing = strip(points, 0.108, 4)
    places = [tuple(map(float, place)) for place in re.findall(r"M([\d.-]+) ([\d.-]+)h0", drawing.dots)]
    assert len(places) == 500 and [mark.beyond for mark in drawing.marks] == [-1, 1]
    marks = [(mark.x, mark.y) for mark in drawing.marks]
    assert all(0 < x < WIDTH and drawing.top <= y <= drawing.foot for x, y in places + marks)
    assert 0 < drawing.median < WIDTH and drawing.usual[0] < drawing.median < drawing.usual[1]
    assert max(x for x, _ in places) - min(x for x, _ in places) > WIDTH / 8  # in spite of the two far out


def test_labels_do_not_stand_on_each_other():
    points = [Point(1.0 + n / 1000, f"sub-{n}", f"sub-{n}", n >= 20) for n in range(30)]
    marks = [mark for mark in strip(points, 1.0, 3).marks if mark.label]
    assert 4 <= len(marks) < 10
    for one in marks:
        for other in marks:
            together = one.label_y == other.label_y and one is not other
            assert not together or abs(one.label_x - other.label_x) > 30


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 1.0, ["0.0", "0.5", "1.0"]),
        (-0.043, 0.031, ["−0.04", "−0.02", "0.00", "0.02"]),
        (898.0, 1560.0, ["1000", "1200", "1400"]),
    ],
)
def test_ticks_are_round_numbers(low, high, texts):
    assert [text for _, text in ticks(low, high, 4)] == texts


def test_equal_values_and_equal_ages_can_be_drawn():
    points = [Point(0.0, "sub-01", "sub-01", False)] * 6
    assert strip(points, 0.0, 4).usual is None
    assert len(scatter([50.0] * 6, points, 4).bottom) > 0


def test_columns_sort_in_a_browser(output):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed; .ci/run installs it")
    page(output, ages={"sub-01": 30.0, "sub-02": 61.5})
    complaints = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page(viewport={"width": 390, "height": 800})
        shown.on("console", lambda message: complaints.append(message.text))
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.goto((output / "group.html").as_uri())
        names = lambda: shown.locator("#table tbody th").all_inner_texts()  # noqa: E731
        before = names()
        shown.locator("#table thead th", has_text="pallidum").click()
        rising = names()
        shown.locator("#table thead th", has_text="pallidum").click()
        falling = names()
        width = shown.evaluate("document.documentElement.scrollWidth")
        shown.locator("#attention tbody a").first.click()
        shown.wait_for_url("**/sub-08.html")
        browser.close()
    by_chi = [f"sub-{1 + n:02d}" for n in sorted(range(8), key=PALLIDUM.__getitem__)]
    assert before == sorted(by_chi) and rising == by_chi and falling == by_chi[::-1]
    assert complaints == [] and width == 390


def test_on_paper_nothing_is_cut_off(tmp_path):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed; .ci/run installs it")
    who = {"session_id": "n/a", "acquisition": "n/a", "outlier": "n/a", "segmentation": "aseg", "chi_sd": "0.0217"}
    regions = [f"left inferior lateral region {n}" for n in range(36)]
    rows = [{**who, "participant_id": "sub-01", "region": name, "chi_mean": "-0.0432"} for name in regions]
    path = tmp_path / "group.html"
    write_cohort_page(path, group.Table({"sub-01": group.Member(rows, {})}, {}, ()), ages={"sub-01": 61.5})
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        paper = browser.new_page(viewport={"width": 688, "height": 1000})  # A4 between its margins
        paper.emulate_media(media="print")
        paper.goto(path.as_uri())
        cells = paper.locator("#table th, #table td")
        places = [cell.bounding_box() for cell in cells.all()]
        inside = cells.evaluate_all("all => all.map(cell => cell.scrollWidth <= cell.clientWidth)")
        width = paper.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert len(places) == 2 * 38 and width == 688 and all(inside)
    assert all(place and place["x"] >= 0 and place["x"] + place["width"] <= 688 for place in places)


def test_five_hundred_people_fit_into_one_megabyte(tmp_path):
    def rows(person):
        who = {"participant_id": f"sub-{person:03d}", "session_id": "n/a", "acquisition": "n/a", "outlier": "n/a"}
        return [
            who
            | {"segmentation": "aseg", "region": f"region {n}", "chi_mean": str(0.01 * n + 1e-4 * (person % 89))}
            | {"chi_sd": "0.02", "r2star_mean": str(20 + n + 0.01 * (person % 97)), "volume_mm3": str(900 * n + person)}
            for n in range(1, 13)
        ]

    members = {f"sub-{person:03d}": group.Member(rows(person), {}) for person in range(500)}
    path = tmp_path / "group.html"
    write_cohort_page(path, group.Table(members, {}, ()), ages={name: 20.0 + n / 10 for n, name in enumerate(members)})
    assert path.stat().st_size < 1e6
    assert len(re.findall(r"M[\d.]+ [\d.]+h0", path.read_text())) == 4 * 12 * 500  # nobody is left out


def test_a_calm_cohort_is_said_to_be_calm(output):
    acquisition(output, "sub-08", 0.13)
    assert "Nothing stands out" in section(page(output), "attention")
