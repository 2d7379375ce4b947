"""xQSM, xQSM-Mixed and xQSM+: from local field to chi with octave convolutions.

Gao et al. 2021, doi:10.1002/nbm.4461; Gao et al. 2024, doi:10.1016/j.media.2024.103160.

xQSM learns from axial fields, xQSM-Mixed from those of any direction without being told which, and xQSM+ is told. The
noise that every sample has is the first paper's regulariser.
"""

import math
from dataclasses import replace

from chimap.networks.octave import XQSM, XQSM_PLUS
from chimap.training.recipes.supervised import DISTANCE
from chimap.training.recipes.supervised import loss as loss
from chimap.training.samples import SampleSettings
from chimap.training.settings import Settings

_AXIAL = SampleSettings(tilt=0.0, snr=(15.0, 200.0), blobs=0.5, scan=False)
_ANY = replace(_AXIAL, tilt=math.pi / 2)
_XQSM = Settings(
    recipe="xqsm",
    network=XQSM,
    samples=_AXIAL,
    batch=12,
    steps=4000,
    input_scale=90.0,
    output_scale=0.028,
    weights={},
    choices={"distance": "absolute"},
    freeze_norm=0.6,
)
_GPU = {
    "xqsm": _XQSM,
    "xqsm-mixed": replace(_XQSM, recipe="xqsm-mixed", samples=_ANY),
    # the direction is an even function, and the model loss comes with it: as iQSM+
    "xqsm+": replace(
        _XQSM,
        recipe="xqsm+",
        samples=_ANY,
        network=replace(XQSM_PLUS, coding="tensor", standard_frame=True),
        weights={"model": 0.1},
    ),
}
NEEDS_CHI = True
CHOICES = DISTANCE
# Half of the width: the fine grid's convolutions are what takes time
SIZES = {
    name: {"gpu": gpu, "cpu": replace(gpu, network=replace(gpu.network, base=32), batch=2)}
    for name, gpu in _GPU.items()
}
