"""QSMnet: supervised by chi, its field and its gradient (Yoon et al. 2018, doi:10.1016/j.neuroimage.2018.06.030)."""

from dataclasses import replace

from chimap.networks.unet import QSMNET
from chimap.training.recipes.supervised import GRADIENT
from chimap.training.recipes.supervised import loss as loss
from chimap.training.samples import SampleSettings
from chimap.training.settings import Settings

# Axial fields, as in the paper: an oblique scan is brought into that frame and back (`inversion.learned`).
_SAMPLES = SampleSettings(tilt=0.0, blobs=0.0, scan=False, snr=(15.0, 200.0))
# The standard deviations of field and chi in the authors' norm_factor file, 0.0110 and 0.0280 ppm
_GPU = Settings(
    recipe="qsmnet",
    network=replace(QSMNET, base=16),
    samples=_SAMPLES,
    batch=12,
    steps=4000,
    input_scale=90.0,
    output_scale=0.028,
    weights={"model": 0.5, "gradient": 0.1},
    choices={"gradient": "axes"},
)
NEEDS_CHI = True
CHOICES = GRADIENT
# A level less and twice the width of what a fifth level would allow: as many parameters, and a CPU's vectors are full
SIZES = {"qsmnet": {"gpu": _GPU, "cpu": replace(_GPU, network=replace(QSMNET, base=16, levels=4), batch=2, steps=4000)}}
