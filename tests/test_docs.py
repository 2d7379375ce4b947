"""The documentation site is built as a reader gets it: a broken link or a page that nobody can reach is an error."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    return folder


def test_every_page_card_and_decision_is_on_the_site(site):
    pages = [page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")]
    pages += [Path("weights") / card.name for card in (ROOT / "src" / "chimap" / "weights").glob("*.md")]
    missing = [
        page for page in pages if page.stem != "index" and not (site / page.with_suffix("") / "index.html").exists()
    ]
    assert missing == []


def test_the_reference_shows_shapes_units_and_sources(site):
    text = (site / "reference" / "inversion" / "index.html").read_text(encoding="utf-8")
    for words in ("total_variation", "[ppm mm]", "doi:10.1002/mrm.25029", "tkd"):
        assert words in text


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(
            r'<(?:script|img|iframe)[^>]*src="(https?:[^"]+)"|<link[^>]*rel="stylesheet"[^>]*href="(https?:[^"]+)"',
            text,
        )
        assert not fetched, page
