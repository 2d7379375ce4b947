"""What the site needs beside the pages in this folder: the cards of the weights, and decisions in the navigation."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
CARDS = ROOT / "src" / "chimap" / "weights"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Cards and decisions are listed by what is there, so that a new one cannot be forgotten."""
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    config.nav.append({"Weights": [f"weights/{card.name}" for card in sorted(CARDS.glob("*.md"))]})
    config.nav.append({"Decisions": [f"decisions/{page.name}" for page in decisions]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for card in sorted(CARDS.glob("*.md")):
        files.append(File.generated(config, f"weights/{card.name}", abs_src_path=str(card)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links into the source tree, which work where the repository is read, lead to the site's copies."""
    return markdown.replace("../../src/chimap/weights/", "../weights/").replace("../src/chimap/weights/", "weights/")
