"""The table of methods: what can be chosen for each stage, where it lives, what it needs and who published it.

This is the only registry. It imports nothing heavy, so `chimap methods` answers at once; a method's module is
imported when the method is called.
"""

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chimap.errors import InputError

WEIGHTS = ".safetensors"
"""Ends the name of a method that is a file of somebody's own weights."""

Stage = Literal[
    "mask",
    "unwrap",
    "combination",
    "relaxation",
    "background",
    "background from phase",
    "inversion",
    "from total field",
    "from phase",
    "from orientations",
]

TO_LOCAL_FIELD: tuple[Stage, ...] = ("background", "background from phase")
"""The stages that give the local field: of the total one, or in one step."""
TO_CHI: tuple[Stage, ...] = ("inversion", "from total field", "from phase")
"""The stages that give chi: of the local field, or earlier in the chain."""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: As given on the command line.
        stage: Methods of one stage share one signature.
        function: "module:function".
        summary: One line for a user who chooses.
        reference: Authors, year and DOI, as a methods section cites it.
        needs: What the function takes beside its parameters.
        cost: Order of magnitude on two cores at 160 x 160 x 160.
        slow: Takes long for the many cases of the benchmark, which runs it only when it is named.
        weights: What a network has learned: a name in the package, or a file. An argument of the function.
    """

    name: str
    stage: Stage
    function: str
    summary: str
    reference: str
    needs: tuple[str, ...]
    cost: str
    slow: bool = False
    weights: str | None = None

    @property
    def label(self) -> str:
        """The name for a record: of a file, no folders."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def zero_is_csf(self) -> bool:
        """Whether the method makes chi zero in cerebrospinal fluid; of others the reference can be chosen."""
        return self.stage == "inversion" and self.takes("csf")

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, function = self.function.split(":")
        return getattr(importlib.import_module(module), function)

    def takes(self, argument: str) -> bool:
        """Whether the function has an argument of that name."""
        return argument in inspect.signature(self.load()).parameters

    def parameters(self) -> dict[str, Any]:
        """Keyword-only parameters of the function with a number as default: what a user may set."""
        signature = inspect.signature(self.load())
        return {
            parameter.name: parameter.default
            for parameter in signature.parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY and isinstance(parameter.default, int | float | tuple)
        }


METHODS: tuple[Method, ...] = (
    Method(
        "brain",
        "mask",
        "chimap.fields.mask:brain_mask",
        "Brain from magnitude and phase quality, without another program",
        "Smith 2002, doi:10.1002/hbm.10062",
        ("phase", "magnitude (optional)"),
        "1 s",
    ),
    Method(
        "quality-guided",
        "unwrap",
        "chimap.fields.unwrap:unwrap_quality_guided",
        "Along the most reliable edges in space, then over echo time; exact whole turns",
        "Dymerska et al. 2021, doi:10.1002/mrm.28563",
        ("phase", "magnitude (optional)", "mask", "echo times"),
        "1 s",
    ),
    Method(
        "laplacian",
        "unwrap",
        "chimap.fields.unwrap:unwrap_laplacian",
        "Poisson equation of the phase; smooth, never fails, not exact",
        "Schofield and Zhu 2003, doi:10.1364/OL.28.001194",
        ("phase", "mask"),
        "1 s an echo",
    ),
    Method(
        "nonlinear",
        "combination",
        "chimap.fields.combination:nonlinear_field",
        "Fit of the complex signal over the echoes; a wrong turn of a noisy echo does no harm",
        "Liu et al. 2013, doi:10.1002/mrm.24272",
        ("unwrapped phase", "magnitude (optional)", "mask", "echo times", "field strength"),
        "2 s",
    ),
    Method(
        "weighted",
        "combination",
        "chimap.fields.combination:weighted_field",
        "Line through the phases of the echoes, weighted by the inverse of their variance; quick",
        "Gilbert et al. 2012, doi:10.1016/j.neuroimage.2012.03.020",
        ("unwrapped phase", "magnitude (optional)", "mask", "echo times", "field strength"),
        "0.5 s",
    ),
    Method(
        "r2star",
        "relaxation",
        "chimap.fields.relaxation:r2star_map",
        "R2* from the squared magnitude of two echoes or more less its noise floor; chi does not depend on it",
        "Miller and Joseph 1993, doi:10.1016/0730-725X(93)90225-3",
        ("magnitude", "mask", "echo times"),
        "3 s",
    ),
    Method(
        "vsharp",
        "background",
        "chimap.fields.background:vsharp",
        "Spherical mean values, with smaller spheres towards the rim",
        "Wu et al. 2012, doi:10.1002/mrm.23000",
        ("total field", "mask"),
        "0.5 s",
    ),
    Method(
        "sharp",
        "background",
        "chimap.fields.background:sharp",
        "Spherical mean values of one radius; gives up the rim to that depth",
        "Schweser et al. 2011, doi:10.1016/j.neuroimage.2010.10.070",
        ("total field", "mask"),
        "0.2 s",
    ),
    Method(
        "resharp",
        "background",
        "chimap.fields.background:resharp",
        "Spherical mean values of one radius, regularised deconvolution",
        "Sun and Wilman 2014, doi:10.1002/mrm.24765",
        ("total field", "mask"),
        "2 s",
    ),
    Method(
        "ismv",
        "background",
        "chimap.fields.background:ismv",
        "The field that equals its own spherical mean values, with the measured one at the rim, is background",
        "Wen et al. 2014, doi:10.1002/mrm.24998",
        ("total field", "mask"),
        "5 s",
    ),
    Method(
        "lbv",
        "background",
        "chimap.fields.background:lbv",
        "Laplace's equation with the measured field as boundary values; keeps all but the outermost voxels",
        "Zhou et al. 2014, doi:10.1002/nbm.3064",
        ("total field", "mask"),
        "5 s",
    ),
    Method(
        "pdf",
        "background",
        "chimap.fields.background:pdf",
        "Projection onto dipole fields of sources outside; keeps the rim",
        "Liu et al. 2011, doi:10.1002/nbm.1670",
        ("total field", "mask", "field noise (optional)"),
        "6 s",
    ),
    Method(
        "pdf-tv",
        "background",
        "chimap.inversion.total_field:pdf_tv",
        "Sources around the brain and a chi of little variation inside it in turns; keeps the rim",
        "Liu et al. 2011, doi:10.1002/nbm.1670; Liu et al. 2017, doi:10.1002/mrm.26331; Bilgic et al. 2014, "
        "doi:10.1002/mrm.25029",
        ("total field", "mask", "field noise (optional)"),
        "2 s",
    ),
    Method(
        "tkd",
        "inversion",
        "chimap.inversion.direct:tkd",
        "Division by the dipole kernel, small values replaced by a threshold of their sign",
        "Shmueli et al. 2009, doi:10.1002/mrm.22135",
        ("local field", "mask"),
        "0.1 s",
    ),
    Method(
        "tsvd",
        "inversion",
        "chimap.inversion.direct:tsvd",
        "Division by the dipole kernel, small values left out",
        "Wharton et al. 2010, doi:10.1002/mrm.22334",
        ("local field", "mask"),
        "0.1 s",
    ),
    Method(
        "tikhonov",
        "inversion",
        "chimap.inversion.direct:tikhonov",
        "Closed form with a penalty on chi",
        "Bilgic et al. 2014, doi:10.1002/mrm.25029",
        ("local field", "mask"),
        "0.1 s",
    ),
    Method(
        "l2",
        "inversion",
        "chimap.inversion.direct:l2_gradient",
        "Closed form with a penalty on the gradient of chi",
        "Bilgic et al. 2014, doi:10.1002/mrm.25029",
        ("local field", "mask"),
        "0.1 s",
    ),
    Method(
        "tv",
        "inversion",
        "chimap.inversion.total_variation:total_variation",
        "Total variation by ADMM: piecewise smooth, few streaks",
        "Bilgic et al. 2014, doi:10.1002/mrm.25029; Milovic et al. 2018, doi:10.1002/mrm.27073",
        ("local field", "mask", "magnitude (optional)"),
        "2 s",
    ),
    Method(
        "fansi",
        "inversion",
        "chimap.inversion.fansi:fansi",
        "Total variation with the noise of phase as it is: whole turns and weak signal do less harm",
        "Milovic et al. 2018, doi:10.1002/mrm.27073; Milovic et al. 2019, doi:10.1002/mrm.27483",
        ("local field", "mask", "magnitude (optional)", "echo times (optional)", "field strength (optional)"),
        "5 s",
    ),
    Method(
        "lsqr",
        "inversion",
        "chimap.inversion.lsqr:lsqr",
        "Weighted least squares from TKD's map, stopped early: no prior, streaks where the field has errors",
        "Li et al. 2011, doi:10.1016/j.neuroimage.2010.11.088; Li et al. 2015, doi:10.1016/j.neuroimage.2014.12.043",
        ("local field", "mask", "magnitude (optional)"),
        "0.5 s",
    ),
    Method(
        "ilsqr",
        "inversion",
        "chimap.inversion.lsqr:ilsqr",
        "Weighted least squares less the streaks, which are estimated near the cone and away from edges",
        "Li et al. 2015, doi:10.1016/j.neuroimage.2014.12.043",
        ("local field", "mask", "magnitude (optional)"),
        "3 s",
    ),
    Method(
        "star",
        "inversion",
        "chimap.inversion.lsqr:star",
        "Total variation in two levels, strong sources first: fewer streaks around haemorrhages and calcifications",
        "Wei et al. 2015, doi:10.1002/nbm.3383",
        ("local field", "mask", "magnitude (optional)"),
        "4 s",
    ),
    Method(
        "rts",
        "inversion",
        "chimap.inversion.rts:rts",
        "What the field tells well is kept and the rest of k-space filled in with least variation; quick",
        "Kames et al. 2018, doi:10.1016/j.neuroimage.2017.11.018",
        ("local field", "mask"),
        "1.5 s",
    ),
    Method(
        "ndi",
        "inversion",
        "chimap.inversion.nonlinear:ndi",
        "Gradient descent on the phase factor, stopped early; a wrong turn does little harm",
        "Polak et al. 2020, doi:10.1002/nbm.4271",
        ("local field", "mask", "magnitude (optional)", "echo times (optional)", "field strength (optional)"),
        "4 s",
        slow=True,
    ),
    Method(
        "medi",
        "inversion",
        "chimap.inversion.nonlinear:medi",
        "Total variation that spares the edges of the magnitude, with the phase factor as data",
        "Liu et al. 2012, doi:10.1016/j.neuroimage.2011.08.082; Liu et al. 2013, doi:10.1002/mrm.24272",
        ("local field", "mask", "magnitude (optional)", "echo times (optional)", "field strength (optional)"),
        "8 s",
        slow=True,
    ),
    Method(
        "medi+0",
        "inversion",
        "chimap.inversion.nonlinear:medi_zero",
        "MEDI with the fluid of the ventricles all alike and its chi as zero",
        "Liu et al. 2018, doi:10.1002/mrm.26946; Liu et al. 2013, doi:10.1002/mrm.24272",
        ("local field", "mask", "CSF: found by R2* of several echoes, or --csf", "magnitude (optional)"),
        "10 s",
        slow=True,
    ),
    Method(
        "cosmos",
        "from orientations",
        "chimap.inversion.orientations:cosmos",
        "Several scans of one head, turned between them, as one least-squares problem: `chimap cosmos`",
        "Liu et al. 2009, doi:10.1002/mrm.21828",
        ("local fields of several scans", "masks", "magnitudes (optional)", "head positions"),
        "20 s",
    ),
    Method(
        "uqsm+",
        "inversion",
        "chimap.inversion.learned:by_network",
        "U-Net that learned from fields alone, with strong sources added; other frames are resampled to axial 1 mm",
        "Liu and Koch 2020, doi:10.48550/arXiv.2004.06259, and Liu's uQSM+",
        ("local field", "mask", "magnitude (optional)"),
        "2 s",
        weights="uqsm+",
    ),
    Method(
        "xqsm",
        "inversion",
        "chimap.inversion.learned:by_network",
        "xQSM+ for axial scans, not told B0: others are turned to it, or with --set xqsm.turn=no not",
        "Gao et al. 2021, doi:10.1002/nbm.4461",
        ("local field", "mask", "magnitude (optional)"),
        "9 s",
        weights="xqsm",
    ),
    Method(
        "xqsm+",
        "inversion",
        "chimap.inversion.learned:by_network",
        "Octave convolutions, told B0's direction, that learned from simulated chi: the same in every orientation",
        "Gao et al. 2021, doi:10.1002/nbm.4461; Gao et al. 2024, doi:10.1016/j.media.2024.103160",
        ("local field", "mask", "magnitude (optional)"),
        "13 s; 28 s without bfloat16",
        weights="xqsm+",
    ),
    Method(
        "qsmnet",
        "inversion",
        "chimap.inversion.learned:by_network",
        "U-Net that learned from simulated chi of healthy tissue; strong sources come out too weak, see qsmnet+",
        "Yoon et al. 2018, doi:10.1016/j.neuroimage.2018.06.030",
        ("local field", "mask", "magnitude (optional)"),
        "3 s",
        weights="qsmnet",
    ),
    Method(
        "qsmnet+",
        "inversion",
        "chimap.inversion.learned:by_network",
        "U-Net that learned from simulated chi, scaled and turned in sign; other frames are resampled to axial 1 mm",
        "Jung et al. 2020, doi:10.1016/j.neuroimage.2020.116619",
        ("local field", "mask", "magnitude (optional)"),
        "3 s",
        weights="qsmnet+",
    ),
    Method(
        "iqsm",
        "from phase",
        "chimap.inversion.single_step:from_phase",
        "iQSM+ for axial scans, not told B0: others are turned to it (Affined-iQSM), or with --set iqsm.turn=no not",
        "Gao et al. 2022, doi:10.1016/j.neuroimage.2022.119410",
        ("phase", "mask", "echo times", "magnitude (optional)"),
        "3 s",
        weights="iqsm",
    ),
    Method(
        "iqsm+",
        "from phase",
        "chimap.inversion.single_step:from_phase",
        "Network from the wrapped phase in one step, any direction of B0; other voxels resampled to 1 mm",
        "Gao et al. 2024, doi:10.1016/j.media.2024.103160",
        ("phase", "mask", "echo times", "magnitude (optional)"),
        "6 s for one echo, 8 s for five",
        weights="iqsm+",
    ),
    Method(
        "nextqsm",
        "from total field",
        "chimap.inversion.single_step:from_total_field",
        "Background by pdf-tv, then a variational network that steps towards the data; any direction of B0, at 1 mm",
        "Cognolato et al. 2023, doi:10.1016/j.media.2022.102700",
        ("total field", "mask"),
        "6 s",
        weights="nextqsm",
    ),
    Method(
        "tgv",
        "from phase",
        "chimap.inversion.tgv:tgv",
        "Background and chi of total generalised variation in one step from the wrapped phase; any direction of B0",
        "Langkammer et al. 2015, doi:10.1016/j.neuroimage.2015.02.041",
        ("phase", "mask", "echo times", "magnitude (optional)"),
        "2 min",
        slow=True,
    ),
    Method(
        "fine",
        "inversion",
        "chimap.inversion.learned:fine",
        "QSMnet+ with its weights edited until the field of its chi fits this field",
        "Zhang et al. 2020, doi:10.1016/j.neuroimage.2020.116579",
        ("local field", "mask", "magnitude (optional)"),
        "4 min",
        slow=True,
        weights="qsmnet+",
    ),
    Method(
        "dip",
        "inversion",
        "chimap.inversion.zero_shot:deep_image_prior",
        "An untrained network fitted to this field and stopped early; any orientation and voxel size",
        "Ulyanov et al. 2018, doi:10.1109/CVPR.2018.00984; Liu and Koch 2020, doi:10.48550/arXiv.2004.06259",
        ("local field", "mask", "magnitude (optional)"),
        "20 min",
        slow=True,
    ),
    Method(
        "zs-uqsm+",
        "inversion",
        "chimap.inversion.zero_shot:zero_shot_uqsm_plus",
        "A network that learns from this field alone, with strong sources added; any orientation and voxel size",
        "Liu and Koch 2020, doi:10.48550/arXiv.2004.06259, and Liu's uQSM+",
        ("local field", "mask", "magnitude (optional)"),
        "10 min",
        slow=True,
    ),
)


def names(*stages: Stage) -> list[str]:
    """Names that can be chosen for a stage, or for any of several."""
    return [method.name for method in METHODS if method.stage in stages]


def find(name: str, *stages: Stage) -> Method:
    """The row of a method of a stage, or of any of several.

    A file of one's own weights (best.safetensors) is a method of the stage that its network takes its input from.

    Raises:
        InputError: No such method has the name, or there is no such file.
    """
    if name.endswith(WEIGHTS) and not Path(name).is_file():
        raise InputError(f"there is no file {name}")
    called = _called(name)
    for method in called:
        if method.stage in stages:
            return method
    if called and called[0].stage == "from orientations":
        raise InputError(f"{called[0].label} takes the local fields of several scans: give them to `chimap cosmos`")
    if called and called[0].stage in TO_CHI and stages == ("inversion",):
        start = called[0].stage.removeprefix("from ")
        raise InputError(f"{called[0].label} takes the {start}, not a local field: give the scan to `chimap run`")
    if called and name.endswith(WEIGHTS):
        raise InputError(f"the network of {called[0].label} is for {called[0].stage}, not for {stages[0]}")
    raise InputError(f"no {stages[0]} method is called {name!r}; there are {', '.join(names(*stages))}")


def _called(name: str) -> list[Method]:
    if not name.endswith(WEIGHTS):
        return [method for method in METHODS if method.name == name]
    stage = _stage_of(name)
    own = Method(
        name,
        stage,
        _BY_NETWORK[stage],
        "A network of one's own training",
        "weights of one's own",
        (_TAKEN[stage], "mask", "magnitude (optional)"),
        "2 s",
        weights=name,
    )
    return [own]


_BY_NETWORK: dict[Stage, str] = {
    "background": "chimap.inversion.single_step:local_from_total_field",
    "background from phase": "chimap.inversion.single_step:from_phase",
    "inversion": "chimap.inversion.learned:by_network",
    "from total field": "chimap.inversion.single_step:from_total_field",
    "from phase": "chimap.inversion.single_step:from_phase",
}


_TAKEN: dict[Stage, str] = {
    "background": "total field",
    "background from phase": "phase",
    "inversion": "local field",
    "from total field": "total field",
    "from phase": "phase",
}


def _stage_of(file: str) -> Stage:
    """What part of the chain a weights file's network is; an inversion where it does not say, or is no such file."""
    try:
        with Path(file).open("rb") as content:
            # a safetensors file begins with the length of its header, which is JSON
            header = json.loads(content.read(min(int.from_bytes(content.read(8), "little"), 2**24)))
        settings = json.loads(header["__metadata__"]["settings"])
        stages = TO_LOCAL_FIELD if settings.get("gives") == "local field" else TO_CHI
        return next(stage for stage in stages if _TAKEN[stage] == settings["takes"])
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return "inversion"


def settings_from_text(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """Read "method.parameter=value" into {method: {parameter: value}}, values as the default's type.

    Raises:
        InputError: Unknown method or parameter, or a value that cannot be read.
    """
    settings: dict[str, dict[str, Any]] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        name, dot, parameter = key.strip().rpartition(".")
        if not (equals and dot):
            raise InputError(f"--set needs METHOD.PARAMETER=VALUE, such as tv.regularisation=1e-3; got {text!r}")
        rows = _called(name)
        if not rows:
            known = ", ".join(method.name for method in METHODS)
            raise InputError(f"--set {text}: no method is called {name!r}; there are {known}")
        defaults = rows[0].parameters()
        if parameter not in defaults:
            raise InputError(f"--set {text}: {name} has no parameter {parameter!r}; it has {', '.join(defaults)}")
        settings.setdefault(name, {})[parameter] = _value(value.strip(), defaults[parameter], text)
    return settings


def _value(text: str, default: Any, assignment: str) -> Any:
    try:
        if isinstance(default, bool):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if isinstance(default, int):
            return int(text)
        if isinstance(default, tuple):
            return tuple(float(part) for part in text.split(","))
        return float(text)
    except (KeyError, ValueError):
        raise InputError(f"--set {assignment}: {text!r} cannot be read like the default {default!r}") from None


def call(method: Method, settings: Mapping[str, Mapping[str, Any]], *arguments: Any) -> Any:
    """Run a method with the user's settings for it, if any."""
    learned = {} if method.weights is None else {"weights": method.weights}
    return method.load()(*arguments, **learned, **settings.get(method.name, {}))
