"""LPCNN: an unrolled proximal gradient method with a learned proximal map (Lai et al. 2020,
doi:10.1007/978-3-030-59713-9_13).

The dipole model is inside the network, so it learns from any direction of B0 and knows it without being told otherwise.
"""

import math
from dataclasses import replace

from chimap.networks.proximal import LPCNN
from chimap.training.recipes.supervised import DISTANCE
from chimap.training.recipes.supervised import loss as loss
from chimap.training.samples import SampleSettings
from chimap.training.settings import Settings

# What lies in a sample has to explain its field, which each step compares with that of what was found so far
_GPU = Settings(
    recipe="lpcnn",
    network=LPCNN,
    samples=SampleSettings(tilt=math.pi / 2, snr=(15.0, 200.0), whole_brain=False, scan=False),
    batch=4,
    steps=4000,
    learning_rate=3e-4,
    # the SD of chi in its authors' data: in and out, as the steps have no other unit
    input_scale=1 / 0.0289,
    output_scale=0.0289,
    choices={"distance": "squared"},
    freeze_norm=0.6,
)
NEEDS_CHI = True
CHOICES = DISTANCE
SIZES = {
    "lpcnn": {"gpu": _GPU, "cpu": replace(_GPU, batch=2, steps=2000, samples=replace(_GPU.samples, shape=(48,) * 3))}
}
