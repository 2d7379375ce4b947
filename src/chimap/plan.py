"""What to do with a scan, with defaults that are right for most."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from chimap.errors import InputError

WHOLE_MASK = "the mask in which it is valid"
"""What chi is relative to unless something else is asked for."""


@dataclass(frozen=True)
class Plan:
    """Methods of every stage, by their names in `chimap.methods`, and parameters that differ from the defaults.

    Attributes:
        mask: Used only where the scan brings no mask of the user's.
        unwrap: Phase unwrapping.
        combination: From the unwrapped echoes to one field.
        background: Background field removal.
        inversion: From local field to chi.
        reference: Where the mean of chi is made zero: "mask"; "csf", the fluid of the ventricles; the name of a region;
            "none": left as the inversion gives it.
        regions: Let a network find regions where the scan brings no segmentation.
        swi: Also make susceptibility-weighted images.
        noise_limit: Voxels whose field is noisier than this many times the median leave the mask. None: the package's
            own mask gives up voxels beyond 5 times the median, a user's mask stays as it is.
        two_pass: chi first without the voxels of unreliable field and what they throw around them, then with all;
            the second counts only where the first has nothing.
        erosion: Shave this much [mm] off the brain mask before the background is removed.
        choose_regularisation: The criterion, of `inversion.choice.CRITERIA`, by which the inversion's regularisation is
            chosen from the field; None leaves it at its setting.
        settings: {method: {parameter: value}}.
    """

    mask: str = "brain"
    unwrap: str = "quality-guided"
    combination: str = "nonlinear"
    background: str = "pdf-tv"
    inversion: str = "tv"
    reference: str = "mask"
    regions: bool = False
    swi: bool = False
    noise_limit: float | None = None
    two_pass: bool = False
    erosion: float = 0.0
    choose_regularisation: str | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def noise_limit_for(self, *, own_mask: bool) -> float | None:
        """The limit that applies, to a mask that the package made or to one of the user's."""
        return 5.0 if self.noise_limit is None and own_mask else self.noise_limit


PLANS = {
    "quick": Plan(unwrap="laplacian", combination="weighted", inversion="tkd"),
    "default": Plan(),
    "best": Plan(settings={"pdf-tv": {"coarse": 1.4}}),
}


def plan_named(name: str, **changes: Any) -> Plan:
    """A plan by name, with fields changed where the change is not None.

    Raises:
        InputError: No plan has the name.
    """
    if name not in PLANS:
        raise InputError(f"no plan is called {name!r}; there are {', '.join(PLANS)}")
    plan = PLANS[name]
    wanted = {key: value for key, value in changes.items() if value is not None}
    if "settings" in wanted:  # beside those of the plan, not instead of them
        own = wanted["settings"]
        wanted["settings"] = {
            method: {**plan.settings.get(method, {}), **own.get(method, {})} for method in {**plan.settings, **own}
        }
    return replace(plan, **wanted)
