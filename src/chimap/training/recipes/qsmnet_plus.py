"""QSMnet+: QSMnet on chi that is scaled and turned too (Jung et al. 2020, doi:10.1016/j.neuroimage.2020.116619).

The paper multiplies the positive part by 4 in half of its maps and adds the negative of each; here the factor is drawn
from 1 to 4 and the sign turned in half of the samples. Lesions are drawn as well, as far as it is to be linear.
"""

from dataclasses import replace

from chimap.training.recipes import qsmnet
from chimap.training.recipes.supervised import GRADIENT
from chimap.training.recipes.supervised import loss as loss

NEEDS_CHI = True
CHOICES = GRADIENT
SIZES = {
    "qsmnet+": {
        size: replace(
            settings,
            recipe="qsmnet+",
            samples=replace(
                settings.samples,
                scale_positive=(1.0, 4.0),
                invert=0.5,
                blobs=0.5,
                haemorrhage=(0.2, 1.6),
                calcification=(0.2, 1.6),
            ),
        )
        for size, settings in qsmnet.SIZES["qsmnet"].items()
    }
}
