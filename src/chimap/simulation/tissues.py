"""Tissues of a simulated head and their values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tissue:
    """One tissue.

    Attributes:
        label: Its number in a label map.
        chi: Susceptibility relative to water [ppm].
        m0: Magnitude at TE = 0, 1 for water.
        r2star: Decay rate at 3 T [1/s].
        variation: Standard deviation of chi within the tissue [ppm].
    """

    label: int
    chi: float
    m0: float
    r2star: float
    variation: float


AIR_CHI = 9.2
"""Susceptibility of air relative to water [ppm]."""

# chi: Marques et al. 2021, doi:10.1002/mrm.28716, relative to water; tissues that it does not name lie
# between their components: the marrow of diploe between bone and fat, brain stem and internal capsule beside
# white matter. m0 and R2* are round values of gradient echoes at 3 T. Bone's R2* is far higher in truth; its
# signal is nil either way, and this keeps a rim voxel that is a tenth bone from decaying like bone.
TISSUES: dict[str, Tissue] = {
    "air": Tissue(0, AIR_CHI, 0.0, 0.0, 0.0),
    "grey matter": Tissue(1, 0.020, 0.80, 18.0, 0.008),
    "white matter": Tissue(2, -0.030, 0.70, 21.5, 0.006),
    "csf": Tissue(3, 0.019, 0.95, 4.0, 0.002),
    "caudate": Tissue(4, 0.044, 0.78, 24.0, 0.010),
    "putamen": Tissue(5, 0.038, 0.77, 28.0, 0.012),
    "pallidum": Tissue(6, 0.1305, 0.70, 45.0, 0.018),
    "thalamus": Tissue(7, 0.020, 0.76, 21.0, 0.010),
    "red nucleus": Tissue(8, 0.100, 0.72, 38.0, 0.012),
    "substantia nigra": Tissue(9, 0.111, 0.70, 42.0, 0.015),
    "subthalamic nucleus": Tissue(10, 0.111, 0.70, 40.0, 0.012),
    "dentate nucleus": Tissue(11, 0.152, 0.70, 40.0, 0.015),
    "brain stem": Tissue(12, -0.010, 0.75, 20.0, 0.008),
    "internal capsule": Tissue(13, -0.045, 0.72, 21.0, 0.006),
    "blood": Tissue(14, 0.190, 0.75, 40.0, 0.010),
    "muscle": Tissue(20, 0.0, 0.60, 35.0, 0.010),
    "fat": Tissue(21, 0.019, 1.20, 25.0, 0.010),
    "skin": Tissue(22, 0.0, 0.70, 45.0, 0.005),
    "bone": Tissue(23, -2.1, 0.04, 250.0, 0.05),
    "diploe": Tissue(24, -0.8, 0.40, 110.0, 0.05),
    "eye": Tissue(25, 0.010, 1.00, 3.0, 0.0),
    "lens": Tissue(26, 0.0, 0.45, 40.0, 0.0),
}

NAMES: dict[int, str] = {tissue.label: name for name, tissue in TISSUES.items()}
