"""What all pages share: where templates lie, and which script a page's policy lets run."""

import base64
import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


def template(name: str) -> "Template":
    """A template of this folder; whatever is put into it is escaped, and a name it lacks is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("chimap.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(name)


def script(name: str) -> str:
    """A script of this folder."""
    return files("chimap.report").joinpath(name).read_text(encoding="utf-8")


def script_hash(text: str) -> str:
    """By which a page's policy lets this script run, and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
