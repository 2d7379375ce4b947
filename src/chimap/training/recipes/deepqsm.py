"""DeepQSM and SHARQnet: plain U-Nets, one for the inversion and one for the background, which NeXtQSM is compared with.

Bollmann et al. 2019, doi:10.1016/j.neuroimage.2019.03.060; Bollmann et al. 2019, doi:10.1016/j.zemedi.2019.01.001.

DeepQSM has never seen a brain: it learns from cuboids and spheres without noise. SHARQnet learns to take away the
fields of what lies outside of a brain.
"""

from dataclasses import replace

from chimap.networks.unet import DEEPQSM
from chimap.training.recipes.supervised import DISTANCE
from chimap.training.recipes.supervised import loss as loss
from chimap.training.samples import SampleSettings
from chimap.training.settings import Settings

_DEEPQSM = Settings(
    recipe="deepqsm",
    network=DEEPQSM,
    samples=SampleSettings(tilt=0.0, solids=50, scan=False),
    batch=16,
    steps=4000,
    input_scale=90.0,
    output_scale=0.028,
    choices={"distance": "squared"},
)
_SHARQNET = replace(
    _DEEPQSM,
    recipe="sharqnet",
    samples=SampleSettings(tilt=0.0, snr=(15.0, 200.0)),
    takes="total field",
    gives="local field",
    # total fields are some ten times as strong as local ones
    input_scale=10.0,
    output_scale=0.01,
    # a voxel beside the sinuses would outweigh the rest of a brain
    choices={"distance": "absolute"},
)
NEEDS_CHI = True
CHOICES = DISTANCE
SIZES = {one.recipe: {"gpu": one, "cpu": replace(one, batch=4, steps=3000)} for one in (_DEEPQSM, _SHARQNET)}
