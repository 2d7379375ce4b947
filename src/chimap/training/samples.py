"""Training samples, made on the fly: a small grid somewhere in somebody's brain, scanned somehow.

Every number is drawn from the sample's own seed, so the i-th sample of a training is the same on every run. Torch and
NumPy alone are needed, and it runs where the label maps lie.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from chimap.arrays import Shape, Triple
from chimap.errors import InputError
from chimap.physics.dipole import DipoleModel
from chimap.physics.random_sources import blob_source, external_sources, simple_shapes
from chimap.physics.shim import shim_field
from chimap.physics.signal import mean_in_slices, signal_through_slices, through_slices
from chimap.physics.units import radians_per_ppm
from chimap.simulation.acquisition import FieldKernels, field_kernels, fields_of, local_field_of, measure
from chimap.simulation.anatomy import brain_box, brain_share, hybrid_values, label_head, literature_values
from chimap.simulation.field_error import field_error
from chimap.simulation.head import Head, angles_for_b0, rotation_matrix
from chimap.simulation.labels import LabelMap
from chimap.simulation.mask_error import imperfect_mask

NOISIEST = 0.1
"""Most SD [ppm] of a voxel's field noise: that of a dark voxel has no bound."""

UPRIGHT = math.radians(20)
"""Largest angle between B0 and z of an upright sample."""

BLOB_R2STAR = 80.0
"""Rise of R2* at 3 T [1/s] for 1 ppm of a lesion: so much that late echoes are dark and early ones are not."""

Range = tuple[float, float]


@dataclass(frozen=True)
class SampleSettings:
    """What samples are drawn from. A pair is the least and the largest value of a uniform draw.

    Attributes:
        shape: Grid (x, y, z).
        voxel_sizes: One is drawn [mm]; the fields' kernels of each are kept in memory.
        tilt: Largest angle between B0 and the grid's z [rad]: pi / 2 for every direction, 0 for axial scans.
        upright: Share of the samples that have B0 within `UPRIGHT` of z, as most scans do; uniform up to `tilt`, they
            are few.
        slices: Thickness [voxels] of slices that a sample was resampled from, in half of the samples; in half of these
            along z. Two values of 1: never.
        field_strengths: B0 [T], one is drawn.
        echo_time: [s].
        snr: At the drawn echo; its logarithm is uniform.
        field_error: Share of the local field's SD that obeys no dipole model.
        mask_error: SD [mm] of the mask's surface.
        hybrid: Probability that chi's means ignore the literature.
        sources: So many ellipsoids like pockets of air in a litre of what lies around the brain of such a sample make
            its background field, instead of head and neck. 0: head and neck do.
        invert: Probability that chi changes sign.
        scale_positive: Factor for chi's positive part, as QSMnet+ has from 1 to 4; drawn in half of the samples.
        blobs: Mean number of haemorrhages and calcifications in a sample.
        haemorrhage: Of their chi [ppm].
        calcification: Of their -chi [ppm].
        blob_edge: Of the boxes that they fill most of [mm].
        spread: Of the values around the literature's.
        bend: SD of the elastic deformation [mm].
        least_brain: Share of the grid that the brain fills at least, about.
        whole_brain: Whether the local field is that of the whole brain. Without, it is that of the sample's own chi:
            for losses that compare it with the field of what a network finds in the sample.
        scan: Whether total field, phase and magnitude are wanted too: they take as long again as the rest.
        reach: How far from the middle of the brain those of the samples may lie, as a share of its half size: below 1
            for what lies deep inside.
        solids: So many cuboids, and as many spheres, fill the grid instead of a head; without error or noise. The rest
            then says nothing but size, voxels and directions.
    """

    shape: Shape = (64, 64, 64)
    voxel_sizes: tuple[Triple, ...] = ((1.0, 1.0, 1.0),)
    tilt: float = math.pi / 2
    upright: float = 0.0
    slices: Range = (1.0, 1.0)
    field_strengths: tuple[float, ...] = (1.5, 3.0, 7.0)
    echo_time: Range = (0.005, 0.035)
    snr: Range = (10.0, 200.0)
    field_error: Range = (0.0, 0.6)
    mask_error: Range = (0.0, 1.0)
    hybrid: float = 0.0
    sources: int = 0
    invert: float = 0.0
    scale_positive: Range = (1.0, 1.0)
    blobs: float = 0.4
    haemorrhage: Range = (0.4, 1.2)
    calcification: Range = (0.2, 0.3)
    blob_edge: Range = (12.0, 24.0)
    spread: float = 1.0
    bend: float = 2.0
    least_brain: float = 0.3
    whole_brain: bool = True
    scan: bool = True
    reach: float = 1.0
    solids: int = 0


@dataclass(frozen=True)
class Sample:
    """One sample, or several stacked along a first axis. Volumes (*batch, x, y, z), fields and chi in ppm.

    Attributes:
        chi: True, of the brain; zero outside.
        local_field: True, of the whole brain's sources.
        measured_local_field: With structured error and noise.
        total_field: True, shimmed; like phase and magnitude None where no scan was asked for.
        phase: Wrapped [rad], one echo.
        magnitude: Of that echo.
        field_noise: SD of the measured field.
        mask: As a tool might draw it.
        b0_direction: Unit vectors, (*batch, 3).
        voxel_size: [mm], (*batch, 3).
        radians_per_ppm: Of the phase, (*batch,).
        labels: Tissue that fills most of each voxel, numbers of `tissues.TISSUES`; None where there is no head.
        brain: Middle and half size of the whole brain's box [mm], from the grid's middle and along its axes,
            (*batch, 2, 3); None where there is no head.
    """

    chi: Tensor
    local_field: Tensor
    measured_local_field: Tensor
    total_field: Tensor | None
    phase: Tensor | None
    magnitude: Tensor | None
    field_noise: Tensor
    mask: Tensor
    b0_direction: Tensor
    voxel_size: Tensor
    radians_per_ppm: Tensor
    labels: Tensor | None = None
    brain: Tensor | None = None


def draw_batch(label_maps: Sequence[LabelMap], settings: SampleSettings, seeds: Sequence[int]) -> Sample:
    """One sample for each seed, stacked."""
    return stacked([draw_sample(label_maps, settings, seed) for seed in seeds])


def stacked(samples: Sequence[Sample]) -> Sample:
    """Samples along a first axis; what they do not hold stays None."""
    volumes: dict[str, Any] = {}
    for name in (field.name for field in fields(Sample)):
        column = [getattr(sample, name) for sample in samples]
        volumes[name] = None if column[0] is None else torch.stack(column)
    return Sample(**volumes)


def draw_sample(label_maps: Sequence[LabelMap], settings: SampleSettings, seed: int) -> Sample:
    """Make a sample.

    Args:
        label_maps: Of the people to draw from, all on one device, which is the result's.
        settings: What to draw from.
        seed: Of everything.

    Raises:
        InputError: No label map, or no place in them holds enough brain.
    """
    if not label_maps:
        raise InputError("there are no label maps to draw samples from")
    host = torch.Generator().manual_seed(seed)
    device = label_maps[0].classes.device
    generator = torch.Generator(device).manual_seed(seed)
    if settings.solids:
        return _solids(settings, host, generator)
    label_map = label_maps[_choice(len(label_maps), host)]
    voxel_size = settings.voxel_sizes[_choice(len(settings.voxel_sizes), host)]
    tesla = settings.field_strengths[_choice(len(settings.field_strengths), host)]
    echo_time = _uniform(settings.echo_time, host)
    shape = settings.shape
    head, brain, hybrid = _place(label_map, settings, shape, voxel_size, host, seed)
    head = _changed(head, settings, host, generator)

    kernels = _kernels(shape, voxel_size, str(device))
    inside = head.mask.float()
    pockets = settings.sources if hybrid and not head.mask.all() else 0
    of_head = settings.scan and not pockets
    total, local = fields_of(head, whole_brain=settings.whole_brain, total=of_head, kernels=kernels)
    shimmed = _uniform((0.3, 1.0), host)
    if settings.scan:
        if pockets:
            total = local + _field_around(head, pockets, seed, kernels)
        total = total - shimmed * shim_field(total, inside, voxel_size)
        total -= (total * inside).sum() / inside.sum()
    mask = imperfect_mask(head.mask, voxel_size, amount_mm=_uniform(settings.mask_error, host), generator=generator)
    share = _uniform(settings.field_error, host)
    where = (head.labels, head.mask | mask, voxel_size, head.b0_direction)
    error = field_error(*where, share=share, local_field=local, generator=generator)
    snr = math.exp(_uniform((math.log(settings.snr[0]), math.log(settings.snr[1])), host))
    signal, noise = measure(
        head,
        total + error,
        echo_times=[echo_time],
        field_strength=tesla,
        snr=snr,
        dephasing=settings.scan,
        generator=generator,
    )
    white = torch.randn(shape, generator=generator, device=device)
    sample = Sample(
        chi=head.chi * inside,
        local_field=local,
        measured_local_field=local + error + white * noise.clamp_max(NOISIEST),
        total_field=total if settings.scan else None,
        phase=signal[0].angle() if settings.scan else None,
        magnitude=signal[0].abs() if settings.scan else None,
        field_noise=noise,
        mask=mask,
        b0_direction=torch.tensor(head.b0_direction, device=device),
        voxel_size=torch.tensor(voxel_size, device=device),
        radians_per_ppm=torch.tensor(radians_per_ppm(echo_time, tesla), device=device),
        labels=head.labels,
        brain=brain.to(device),
    )
    thinnest, thickest = settings.slices
    if thickest > 1 and float(torch.rand(1, generator=host)) < 0.5:
        axis = (2, 2, 1, 0)[_choice(4, host)]
        return in_slices(sample, axis, _uniform((thinnest, thickest), host))
    return sample


def in_slices(sample: Sample, axis: int, thickness: float) -> Sample:
    """A sample as it comes from a scan of thick slices [voxels], resampled: without what is finer.

    Signal and fields are the means over a slice; chi, which is to be found, that of the brain in it. Most scans of
    people are such: a network that has only seen voxels of 1 mm makes artefacts of what is missing.
    """

    found = {"chi": mean_in_slices(sample.chi, sample.mask, axis, thickness)}
    for name in ("local_field", "measured_local_field", "total_field"):
        if getattr(sample, name) is not None:
            found[name] = through_slices(getattr(sample, name), axis, thickness)
    if sample.phase is not None and sample.magnitude is not None:
        phase, magnitude = signal_through_slices(sample.phase, sample.magnitude, axis, thickness)
        found |= {"phase": phase, "magnitude": magnitude}
    return replace(sample, **found)


def _place(
    label_map: LabelMap,
    settings: SampleSettings,
    shape: Shape,
    voxel_size: Triple,
    host: torch.Generator,
    seed: int,
) -> tuple[Head, Tensor, bool]:
    """A part of a head, turned, deformed and anywhere, that holds enough brain; that brain's box; whether chi is
    hybrid.
    """
    hybrid = float(torch.rand(1, generator=host)) < settings.hybrid
    values = hybrid_values(host) if hybrid else literature_values(host, spread=settings.spread)
    for _ in range(50):
        tilt, about, follows, *place = torch.rand(6, generator=host).tolist()
        scale = (0.88 + 0.24 * torch.rand(3, generator=host)).tolist()
        grid_rotation = angles_for_b0(_direction(settings, tilt, about))
        # half of the grids follow a tilted head, the others lie oblique in one that is nearly straight
        nod = [0.2 * angle for angle in torch.randn(3, generator=host).tolist()]
        head_rotation = grid_rotation if follows < 0.5 else (nod[0], nod[1], nod[2])
        sides = zip(place, label_map.half_size, scale, strict=True)
        middle = torch.tensor([(2 * share - 1) * settings.reach * half * factor for share, half, factor in sides])
        x, y, z = (-rotation_matrix(head_rotation) @ middle).tolist()
        placement: dict[str, Any] = {
            "grid_rotation": grid_rotation,
            "head_rotation": head_rotation,
            "head_shift": (x, y, z),
            "head_scale": (scale[0], scale[1], scale[2]),
        }
        extent = (shape[0] * voxel_size[0], shape[1] * voxel_size[1], shape[2] * voxel_size[2])
        if brain_share(label_map, extent, **placement) < settings.least_brain:
            continue
        head = label_head(label_map, shape, voxel_size, **placement, bend=settings.bend, values=values, seed=seed)
        if head.mask.any():
            return head, brain_box(label_map, **placement), hybrid
    raise InputError(f"{label_map.name}: no place of {shape} voxels holds {100 * settings.least_brain:.0f} % brain")


def _direction(settings: SampleSettings, tilt: float, about: float) -> Triple:
    """Uniform over the directions up to the tilt, but for the upright ones; for two numbers uniform in [0, 1)."""
    limit, tilt = (
        (min(UPRIGHT, settings.tilt), tilt / settings.upright)
        if tilt < settings.upright
        else (settings.tilt, (tilt - settings.upright) / (1 - settings.upright))
    )
    cosine, about = 1 - tilt * (1 - math.cos(limit)), 2 * math.pi * about
    sine = math.sqrt(1 - cosine**2)
    return sine * math.cos(about), sine * math.sin(about), cosine


def _field_around(head: Head, each_litre: int, seed: int, kernels: FieldKernels) -> Tensor:
    """Field [ppm] of ellipsoids like pockets of air around the brain; a draw of its own."""
    generator = torch.Generator(head.mask.device).manual_seed(2**62 + seed)
    litres = 1e-6 * math.prod(head.voxel_size) * int((~head.mask).sum())
    count = math.ceil(each_litre * litres)
    chi = external_sources(head.mask, head.voxel_size, count=count, generator=generator)
    return local_field_of(replace(head, chi=chi, mask=torch.ones_like(head.mask)), kernels=kernels)


def _solids(settings: SampleSettings, host: torch.Generator, generator: torch.Generator) -> Sample:
    """Cuboids and spheres of random chi, their field, and nothing else, as DeepQSM learned from."""
    tilt, about = torch.rand(2, generator=host).tolist()
    b0 = _direction(settings, tilt, about)
    size = settings.voxel_sizes[_choice(len(settings.voxel_sizes), host)]
    chi = simple_shapes(
        settings.shape, generator=generator, cuboids=settings.solids, spheres=settings.solids, spread=0.1
    )
    device = chi.device
    field = DipoleModel(settings.shape, size, b0, padding=max(settings.shape) // 2).to(device)(chi)
    return Sample(
        chi=chi,
        local_field=field,
        measured_local_field=field,
        total_field=None,
        phase=None,
        magnitude=None,
        field_noise=torch.zeros_like(chi),
        mask=torch.ones_like(chi, dtype=torch.bool),
        b0_direction=torch.tensor(b0, device=device),
        voxel_size=torch.tensor(size, device=device),
        radians_per_ppm=torch.tensor(1.0, device=device),
    )


def _changed(head: Head, settings: SampleSettings, host: torch.Generator, generator: torch.Generator) -> Head:
    """A head with chi's sign and its positive part changed, and lesions, as the settings ask."""
    chi, around = head.chi, head.brain_around
    if float(torch.rand(1, generator=host)) < settings.invert:
        chi, around = -chi, -around
    low, high = settings.scale_positive
    if high > 1 and float(torch.rand(1, generator=host)) < 0.5:
        factor = _uniform((low, high), host)
        chi, around = scaled_positive(chi, factor), scaled_positive(around, factor)
    r2star = head.r2star
    for _ in range(int(torch.poisson(torch.tensor(settings.blobs), generator=host))):
        blob, _ = blob_source(
            head.shape,
            head.voxel_size,
            generator=generator,
            edge=settings.blob_edge,
            positive=settings.haemorrhage,
            negative=settings.calcification,
        )
        chi, r2star = chi + blob, r2star + BLOB_R2STAR * blob.abs()
    return replace(
        head,
        chi=torch.where(head.mask, chi, head.chi),
        r2star=r2star,
        surroundings=head.surroundings + around - head.brain_around,
        brain_around=around,
    )


def scaled_positive(chi: Tensor, factor: float) -> Tensor:
    """chi [ppm] with its positive part multiplied: how QSMnet+ learns chi beyond that of healthy tissue.

    References:
        Jung et al. 2020, doi:10.1016/j.neuroimage.2020.116619.
    """
    return chi + (factor - 1) * chi.clamp_min(0)


@lru_cache(maxsize=8)
def _kernels(shape: Shape, voxel_size: Triple, device: str) -> FieldKernels:
    return field_kernels(shape, voxel_size, device=torch.device(device))


def _choice(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (1,), generator=generator))


def _uniform(bounds: Range, generator: torch.Generator) -> float:
    low, high = bounds
    return low + (high - low) * float(torch.rand(1, generator=generator))
