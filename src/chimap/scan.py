"""What was measured (`Scan`) and what was made of it (`Maps`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from chimap.arrays import Echoes, Mask, Shape, Triple, Volume
from chimap.errors import InputError
from chimap.segmentation import Segmentation


@dataclass(frozen=True)
class Scan:
    """One gradient-echo acquisition, in the package's units, sign and axes, whatever file it came from.

    Attributes:
        phase: Wrapped phase [rad], shape (echo, x, y, z), growing where the field is stronger.
        magnitude: Same shape, any unit, or None where none was recorded.
        echo_times: One per echo [s], ascending. A phase-difference image has one, the difference.
        field_strength: B0 [T].
        voxel_size: Along x, y, z [mm].
        b0_direction: Unit vector of B0 in voxel axes.
        affine: Voxel index to scanner coordinates [mm], 4 x 4; results are written with it.
        mask: The user's brain mask, shape (x, y, z), or None.
        segmentation: The user's regions, on the same grid, or None.
        phase_difference: The phase is that of one echo minus that of another, so it holds no offset of the coils.
        notes: What was read and converted on the way in, one sentence each.
        warnings: What was assumed without being stated by the input, one sentence each.
        files: Input files, for checksums.
    """

    phase: Tensor  # not `Echoes`: a wrong shape is found by `check`, which says it in a sentence
    magnitude: Tensor | None
    echo_times: tuple[float, ...]
    field_strength: float
    voxel_size: Triple
    b0_direction: Triple = (0.0, 0.0, 1.0)
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    mask: Tensor | None = None
    segmentation: Segmentation | None = None
    phase_difference: bool = False
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def shape(self) -> Shape:
        """Grid (x, y, z)."""
        x, y, z = self.phase.shape[-3:]
        return x, y, z

    def problems(self) -> list[str]:
        """Everything that makes this scan unusable, one sentence each; empty where it is sound."""
        found = []
        if self.phase.ndim != 4:
            return [f"phase has shape {tuple(self.phase.shape)}, needed (echo, x, y, z)"]
        if min(self.shape) < 4:
            found.append(f"the grid {self.shape} is too small, at least 4 voxels are needed along every axis")
        if not torch.isfinite(self.phase).all():
            found.append("phase holds values that are not finite")
        elif self.phase.abs().max() == 0:
            found.append("phase is zero everywhere")
        if self.magnitude is not None:
            if self.magnitude.shape != self.phase.shape:
                found.append(
                    f"magnitude has shape {tuple(self.magnitude.shape)}, phase {tuple(self.phase.shape)}: "
                    "they must be equal"
                )
            if not torch.isfinite(self.magnitude).all():
                found.append("magnitude holds values that are not finite")
            elif self.magnitude.min() < 0:
                found.append("magnitude holds negative values: are phase and magnitude exchanged?")
            elif self.magnitude.max() == 0:
                found.append("magnitude is zero everywhere")
        if self.mask is not None:
            if tuple(self.mask.shape) != self.shape:
                found.append(f"the mask has shape {tuple(self.mask.shape)}, phase {self.shape}: they must be equal")
            elif not self.mask.any():
                found.append("the mask is empty")
        if self.segmentation is not None and tuple(self.segmentation.labels.shape) != self.shape:
            found.append(
                f"the segmentation has shape {tuple(self.segmentation.labels.shape)}, phase {self.shape}: "
                "they must be equal"
            )
        found += _problems_of_echo_times(self.echo_times, self.phase.shape[0])
        if not 0.05 <= self.field_strength <= 25:
            found.append(f"field strength is {self.field_strength:g}, needed tesla, such as 3")
        if len(self.voxel_size) != 3 or not all(0.05 <= size <= 20 for size in self.voxel_size):
            found.append(f"voxel size is {self.voxel_size}, needed three lengths in mm")
        norm = math.sqrt(sum(component**2 for component in self.b0_direction))
        if not abs(norm - 1) < 1e-3:
            found.append(f"B0 direction {self.b0_direction} has length {norm:.4g}, needed a unit vector")
        return found

    def check(self) -> None:
        """Refuse an unusable scan.

        Raises:
            InputError: Names every problem at once.
        """
        found = self.problems()
        if found:
            raise InputError("; ".join(found))


def _problems_of_echo_times(echo_times: tuple[float, ...], echoes: int) -> list[str]:
    listed = ", ".join(f"{time:g}" for time in echo_times)
    found = []
    if len(echo_times) != echoes:
        found.append(f"{len(echo_times)} echo times ({listed}) came with {echoes} echoes of phase")
    if not all(math.isfinite(time) and time > 0 for time in echo_times):
        found.append(f"echo times are {listed}: every one must be above 0")
    elif any(time > 0.5 for time in echo_times):
        found.append(f"echo times are {listed}: those are milliseconds, needed seconds")
    elif any(later <= earlier for earlier, later in zip(echo_times, echo_times[1:], strict=False)):
        found.append(f"echo times are {listed}: they must ascend")
    return found


@dataclass(frozen=True)
class Finding:
    """One thing about a measurement that was compared with what its header says.

    Attributes:
        name: Of what could be wrong.
        sentence: What was found, with its numbers; where it is doubtful, why and what to do.
        doubtful: Whether it speaks against the header.
    """

    name: str
    sentence: str
    doubtful: bool


@dataclass(frozen=True)
class Reference:
    """Where chi's mean was made zero. The field does not depend on a constant added to chi.

    Attributes:
        region: Such as "the valid mask" or "csf in the ventricles".
        voxels: Of it.
        volume: [ml].
        mean: Of chi as the inversion gave it, which was subtracted [ppm].
        sd: Of chi among the voxels [ppm].
    """

    region: str
    voxels: int
    volume: float
    mean: float
    sd: float

    @property
    def sentence(self) -> str:
        """For notes, methods sections and records."""
        return (
            f"chi is relative to its mean in {self.region} ({self.voxels} voxels, {self.volume:.1f} ml), which was "
            f"{self.mean:+.4f} ppm after the inversion; its SD there is {self.sd:.4f} ppm"
        )


@dataclass(frozen=True)
class Maps:
    """What was made of a scan. All volumes (x, y, z); fields and chi in ppm.

    Attributes:
        brain_mask: Where the phase was used.
        total_field: Field of all sources, valid in `brain_mask`.
        field_noise: Standard deviation of `total_field` up to one common factor; infinite outside.
        local_field: Field of the sources inside, valid in `mask`.
        chi: Susceptibility, valid in `mask`, zero outside.
        mask: Where `local_field` and `chi` are valid; never larger than `brain_mask`.
        unwrapped_phase: [rad], (echo, x, y, z).
        r2star: Decay rate R2* [1/s] in `brain_mask`, zero outside; None for one echo or without magnitude.
        segmentation: The user's regions, or those that a network found; None where there are none.
        reference: Where chi's mean was made zero; None where chi is as the inversion gives it.
        swi: Susceptibility-weighted images by name, where they were asked for: see `chimap.swi`.
        seconds: Time taken by each stage, in order.
        notes: What each stage did, one sentence each.
        warnings: What a reader should doubt, one sentence each.
        settings: Parameters that were chosen from the data, as {method: {parameter: value}}.
        findings: What was looked at to see whether the measurement fits its header; doubtful ones are warnings too.
    """

    brain_mask: Mask
    total_field: Volume
    field_noise: Volume
    local_field: Volume
    chi: Volume
    mask: Mask
    unwrapped_phase: Echoes | None = None
    r2star: Volume | None = None
    segmentation: Segmentation | None = None
    reference: Reference | None = None
    swi: Mapping[str, Volume] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
