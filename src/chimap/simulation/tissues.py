"""Tissues of a simulated head, their numbers and their values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tissue:
    """One tissue.

    Attributes:
        label: Its number in a label map: up to 16 those of the 2019 reconstruction challenge.
        chi: Susceptibility relative to water [ppm].
        m0: Magnitude at TE = 0, 1 for water.
        r2star: Decay rate at 3 T [1/s].
        variation: Standard deviation of chi within the tissue [ppm].
        t1: Longitudinal relaxation time at 3 T [s].
        brain: Whether a brain mask holds it.
    """

    label: int
    chi: float
    m0: float
    r2star: float
    variation: float
    t1: float
    brain: bool = True


AIR_CHI = 9.2
"""Susceptibility of air relative to water [ppm]."""

# Numbers and chi: Marques et al. 2021, doi:10.1002/mrm.28716, relative to water; tissues that it does not name lie
# between their components: the marrow of diploe between bone and fat, brain stem and internal capsule beside
# white matter. m0, R2* and T1 are round values at 3 T; the T1 of arteries is short for their inflow. Bone's R2* is
# far higher in truth; its signal is nil either way, and this keeps a rim voxel that is a tenth bone from decaying like
# bone.
TISSUES: dict[str, Tissue] = {
    "air": Tissue(0, AIR_CHI, 0.0, 0.0, 0.0, 1.00, brain=False),
    "caudate": Tissue(1, 0.044, 0.78, 24.0, 0.010, 1.25),
    "pallidum": Tissue(2, 0.1305, 0.70, 45.0, 0.018, 1.00),
    "putamen": Tissue(3, 0.038, 0.77, 28.0, 0.012, 1.20),
    "red nucleus": Tissue(4, 0.100, 0.72, 38.0, 0.012, 1.00),
    "dentate nucleus": Tissue(5, 0.152, 0.70, 40.0, 0.015, 1.05),
    "substantia nigra": Tissue(6, 0.111, 0.70, 42.0, 0.015, 1.05),
    "thalamus": Tissue(7, 0.020, 0.76, 21.0, 0.010, 1.15),
    "white matter": Tissue(8, -0.030, 0.70, 21.5, 0.006, 0.85),
    "grey matter": Tissue(9, 0.020, 0.80, 18.0, 0.008, 1.35),
    "csf": Tissue(10, 0.019, 0.95, 4.0, 0.002, 4.00),
    "blood": Tissue(11, 0.190, 0.75, 40.0, 0.010, 1.30),
    "fat": Tissue(12, 0.019, 1.20, 25.0, 0.010, 0.38, brain=False),
    "bone": Tissue(13, -2.1, 0.04, 250.0, 0.05, 0.40, brain=False),
    "muscle": Tissue(15, 0.0, 0.60, 35.0, 0.010, 1.40, brain=False),
    "calcification": Tissue(16, -3.3, 0.30, 120.0, 0.0, 1.00),
    "haemorrhage": Tissue(17, 0.8, 0.60, 90.0, 0.05, 1.10),
    "microbleed": Tissue(18, 0.6, 0.55, 110.0, 0.0, 1.10),
    "subthalamic nucleus": Tissue(20, 0.111, 0.70, 40.0, 0.012, 1.05),
    "brain stem": Tissue(21, -0.010, 0.75, 20.0, 0.008, 0.95),
    "internal capsule": Tissue(22, -0.045, 0.72, 21.0, 0.006, 0.85),
    "hippocampus": Tissue(23, 0.010, 0.82, 17.0, 0.008, 1.40),
    "amygdala": Tissue(24, 0.012, 0.82, 17.0, 0.008, 1.40),
    "accumbens": Tissue(25, 0.035, 0.79, 22.0, 0.008, 1.35),
    "ventral diencephalon": Tissue(26, -0.010, 0.75, 21.0, 0.008, 1.00),
    "cerebellar white matter": Tissue(27, -0.025, 0.71, 21.0, 0.006, 0.85),
    "cerebellar cortex": Tissue(28, 0.015, 0.80, 19.0, 0.008, 1.30),
    "spinal cord": Tissue(39, -0.010, 0.72, 21.0, 0.006, 0.95, brain=False),
    "outer fluid": Tissue(40, 0.019, 0.95, 4.0, 0.002, 4.00, brain=False),
    "dura": Tissue(41, 0.0, 0.45, 60.0, 0.005, 1.00, brain=False),
    "venous sinus": Tissue(42, 0.19, 0.75, 40.0, 0.010, 1.30, brain=False),
    "artery": Tissue(43, -0.03, 1.10, 12.0, 0.005, 0.80, brain=False),
    "skin": Tissue(44, 0.0, 0.70, 45.0, 0.005, 0.90, brain=False),
    "diploe": Tissue(45, -0.8, 0.40, 110.0, 0.05, 0.45, brain=False),
    "eye": Tissue(46, 0.010, 1.00, 3.0, 0.0, 4.00, brain=False),
    "lens": Tissue(47, 0.0, 0.45, 40.0, 0.0, 1.20, brain=False),
    "mucosa": Tissue(48, 0.0, 0.75, 45.0, 0.010, 1.30, brain=False),
}

NAMES: dict[int, str] = {tissue.label: name for name, tissue in TISSUES.items()}
BRAIN_LABELS: tuple[int, ...] = tuple(tissue.label for tissue in TISSUES.values() if tissue.brain)
