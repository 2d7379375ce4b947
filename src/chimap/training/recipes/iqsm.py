"""iQSM, iQFM and iQSM+: from wrapped phase to chi, or to the local field, in one step.

Gao et al. 2022, doi:10.1016/j.neuroimage.2022.119410; Gao et al. 2024, doi:10.1016/j.media.2024.103160.

iQSM learns from axial scans, iQSM-Mixed from those of any direction without being told which, and iQSM+ is told.
"""

import math
from dataclasses import replace

from chimap.networks.laplacian import IQSM, IQSM_PLUS
from chimap.training.recipes.supervised import DISTANCE
from chimap.training.recipes.supervised import loss as loss
from chimap.training.samples import SampleSettings
from chimap.training.settings import Settings

# The mask that is handed over is rarely cut as closely as the papers' by 3 voxels
_AXIAL = SampleSettings(tilt=0.0, snr=(15.0, 200.0), blobs=0.5)
_ANY = replace(_AXIAL, tilt=math.pi / 2)
_IQSM = Settings(
    recipe="iqsm",
    network=IQSM,
    samples=_AXIAL,
    takes="phase",
    batch=16,
    steps=6000,
    # of the Laplacian over radians per ppm; the authors scale to 3 T and 20 ms, 16 rad/ppm
    input_scale=30.0,
    output_scale=0.1,
    weights={"model": 0.1},
    choices={"distance": "absolute"},
    # from the Laplacian it learns four times slower once statistics are frozen
    freeze_norm=0.6,
)
_GPU = {
    "iqsm": _IQSM,
    "iqsm-mixed": replace(_IQSM, recipe="iqsm-mixed", samples=_ANY),
    "iqfm": replace(_IQSM, recipe="iqfm", gives="local field", weights={}, output_scale=0.03),
    # p and -p are one direction, which the tensor's numbers know; mirrored axes make the others fewer: decision 12
    "iqsm+": replace(
        _IQSM, recipe="iqsm+", samples=_ANY, network=replace(IQSM_PLUS, coding="tensor", standard_frame=True)
    ),
}
NEEDS_CHI = True
CHOICES = DISTANCE
SIZES = {name: {"gpu": gpu, "cpu": replace(gpu, batch=2, steps=4000)} for name, gpu in _GPU.items()}
