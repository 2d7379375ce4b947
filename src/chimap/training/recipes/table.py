"""The recipes by name, each in two sizes: for a GPU of a large memory, and for two CPU cores."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chimap.errors import InputError
from chimap.training.settings import Settings

RECIPES: dict[str, str] = {
    "uqsm": "chimap.training.recipes.uqsm",
    "uqsm+": "chimap.training.recipes.uqsm_plus",
    "qsmnet": "chimap.training.recipes.qsmnet",
    "qsmnet+": "chimap.training.recipes.qsmnet_plus",
    "deepqsm": "chimap.training.recipes.deepqsm",
    "sharqnet": "chimap.training.recipes.deepqsm",
    "after-qsm": "chimap.training.recipes.after_qsm",
    "lpcnn": "chimap.training.recipes.lpcnn",
    "xqsm": "chimap.training.recipes.xqsm",
    "xqsm-mixed": "chimap.training.recipes.xqsm",
    "xqsm+": "chimap.training.recipes.xqsm",
    "nextqsm": "chimap.training.recipes.nextqsm",
    "iqsm": "chimap.training.recipes.iqsm",
    "iqsm-mixed": "chimap.training.recipes.iqsm",
    "iqfm": "chimap.training.recipes.iqsm",
    "iqsm+": "chimap.training.recipes.iqsm",
    "segment": "chimap.training.recipes.segment",
}
"""{name: module}; a module has `SIZES`, {name: {size: Settings}}, `loss`, `NEEDS_CHI`, and `CHOICES` where it leaves
some.
"""


@dataclass(frozen=True)
class Recipe:
    """What a module of a recipe gives.

    Attributes:
        name: On the command line.
        sizes: {size: settings}.
        loss: (network, sample, settings, step, generator) -> {part: scalar}; "loss" is what is minimised.
        needs_chi: Whether it compares with a true chi.
        choices: {name: values} that `Settings.choices` may have.
    """

    name: str
    sizes: dict[str, Settings]
    loss: Callable[..., dict[str, Any]]
    needs_chi: bool
    choices: dict[str, tuple[str, ...]]

    def check(self, settings: Settings) -> None:
        """Refuse a choice that the recipe does not know.

        Raises:
            InputError: Says which there are.
        """
        for name, value in settings.choices.items():
            if value not in self.choices[name]:
                raise InputError(f"{self.name} knows no {name} {value!r}; there are {', '.join(self.choices[name])}")


def find(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        InputError: There is none.
    """
    if name not in RECIPES:
        raise InputError(f"no recipe is called {name!r}; there are {', '.join(RECIPES)}")
    module = importlib.import_module(RECIPES[name])
    return Recipe(name, module.SIZES[name], module.loss, module.NEEDS_CHI, getattr(module, "CHOICES", {}))
