"""From a scan to its maps, in the order of a methods section."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from chimap import methods
from chimap.arrays import Mask, Volume
from chimap.errors import InputError
from chimap.fields import echoes, evidence
from chimap.fields.combination import from_around
from chimap.fields.csf import ventricles
from chimap.fields.mask import drop_noisy, erode, with_holes
from chimap.from_local_field import (
    check_choosable,
    chosen_regularisation,
    invert,
    note_on_frame,
    signal_of,
    with_settings,
)
from chimap.parcellation import hardly_found, segment
from chimap.physics.dipole import DipoleModel
from chimap.physics.phase import wrap
from chimap.plan import Plan, plan_named
from chimap.reference import check_reference, finds_csf, is_region, referred
from chimap.scan import Finding, Maps, Scan
from chimap.swi import weighted_images

STAGES = ("mask", "unwrapping", "echo combination", "checks", "background removal", "inversion")
ON_REQUEST = ("regions", "susceptibility-weighted images")

Report = Callable[[str], None]


@dataclass
class Record:
    """What a reconstruction says of itself as it goes: seconds of its stages, notes and warnings, a sentence each."""

    on_stage: Report | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    settings: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and take its time."""
        if self.on_stage is not None:
            self.on_stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


@dataclass(frozen=True)
class Chosen:
    """The methods of a plan, each found to be what it is used for."""

    mask: methods.Method
    unwrap: methods.Method
    combination: methods.Method
    relaxation: methods.Method
    background: methods.Method
    inversion: methods.Method


def reconstruct(
    scan: Scan, plan: Plan | str = "default", *, method: str | None = None, on_stage: Report | None = None
) -> Maps:
    """All maps of a scan.

    Args:
        scan: What was measured.
        plan: What to do with it, or the name of a plan of `chimap.plan.PLANS`.
        method: What gives chi, a name in `chimap.methods` or a file of weights, instead of the plan's.
        on_stage: Called with the name of each stage (of `STAGES`, then `ON_REQUEST`) as it begins.

    Returns:
        Maps on the scan's grid.

    Raises:
        InputError: The scan is unusable (every problem is named), or a plan or method is unknown.
    """
    plan = plan_named(plan) if isinstance(plan, str) else plan
    plan = plan if method is None else replace(plan, inversion=method)
    scan.check()
    chosen = _chosen(plan)
    _check_wishes(scan, plan, chosen)
    by_csf = finds_csf(scan, plan.reference, chosen.inversion)
    record = Record(on_stage)
    with record.stage("mask"):
        brain = _brain(scan, plan, chosen, record)
    with record.stage("unwrapping"):
        phase = _without_offsets(scan, brain, record)
        arguments = (phase, scan.magnitude, brain, scan.echo_times, scan.voxel_size)
        unwrapped = methods.call(chosen.unwrap, plan.settings, *arguments)
    with record.stage("echo combination"):
        total_field, noise, brain, unknown = _total_field(scan, unwrapped, brain, plan, chosen, record)
        r2star = None
        if scan.magnitude is not None and len(scan.echo_times) > 1:
            r2star = methods.call(chosen.relaxation, plan.settings, scan.magnitude, brain, scan.echo_times)
            use = "it tells where the fluid is whose chi is zero" if by_csf else "chi does not depend on it"
            record.notes.append(f"R2* was fitted to the magnitude of the echoes; {use}.")
        csf = ventricles(r2star, brain, scan.voxel_size) if by_csf and r2star is not None else None
    with record.stage("checks"):
        findings = findings_of(scan, total_field, brain)
        record.warnings += [finding.sentence for finding in findings if finding.doubtful]
    local_field, chi, mask = _local_field_and_chi(scan, phase, total_field, noise, brain, csf, plan, chosen, record)
    if (mask & unknown).any():
        mask = mask & ~unknown
        local_field, chi = local_field * mask, chi * mask
    segmentation = scan.segmentation
    if segmentation is None and (plan.regions or is_region(plan.reference)):
        with record.stage("regions"):
            segmentation = segment(scan.magnitude, chi, mask, scan.voxel_size, scan.affine)
            record.notes.append(
                "The regions were found by a network that has learned from simulated heads alone: look at their "
                "outlines before their values are used."
            )
            lacking = hardly_found(segmentation, scan.voxel_size)
            if lacking:
                record.warnings.append(
                    f"The network found hardly any {', '.join(lacking)}: unless the scan leaves them out, the affine "
                    "may not say how the head lies, and then the outlines of the other regions are wrong, too."
                )
    chi, reference = referred(chi, mask, scan.voxel_size, plan.reference, csf=csf, segmentation=segmentation)
    record.notes.append(
        "chi is as the inversion gave it: its sum over the whole grid is zero before masking."
        if reference is None
        else f"{reference.sentence}."
    )
    pictures = {}
    if plan.swi and scan.magnitude is not None:
        with record.stage("susceptibility-weighted images"):
            pictures = weighted_images(scan.phase, scan.magnitude, chi, brain, mask, scan.voxel_size, scan.b0_direction)
    return Maps(
        brain_mask=brain,
        total_field=total_field,
        field_noise=noise,
        local_field=local_field,
        chi=chi,
        mask=mask,
        unwrapped_phase=unwrapped,
        r2star=r2star,
        segmentation=segmentation,
        reference=reference,
        swi=pictures,
        seconds=record.seconds,
        notes=tuple(record.notes),
        warnings=tuple(record.warnings),
        settings=record.settings,
        findings=tuple(findings),
    )


def _chosen(plan: Plan) -> Chosen:
    chosen = Chosen(
        mask=methods.find(plan.mask, "mask"),
        unwrap=methods.find(plan.unwrap, "unwrap"),
        combination=methods.find(plan.combination, "combination"),
        relaxation=methods.find("r2star", "relaxation"),
        background=methods.find(plan.background, *methods.TO_LOCAL_FIELD),
        inversion=methods.find(plan.inversion, *methods.TO_CHI),
    )
    if plan.choose_regularisation is not None:
        check_choosable(chosen.inversion)
    if plan.two_pass and (chosen.background.stage, chosen.inversion.stage) != ("background", "inversion"):
        raise InputError(
            "two passes need a background removal from the total field and an inversion of the local field, got "
            f"{chosen.background.label} and {chosen.inversion.label}"
        )
    return chosen


def _check_wishes(scan: Scan, plan: Plan, chosen: Chosen) -> None:
    """Refuse what cannot be made of this scan before anything is computed."""
    if not plan.erosion >= 0:
        raise InputError(f"--erosion is {plan.erosion:g}, needed millimetres, 0 or more")
    if plan.noise_limit is not None and not plan.noise_limit > 0:
        raise InputError(f"--noise-limit is {plan.noise_limit:g}, needed how many times the median noise, above 0")
    check_reference(scan, plan.reference, chosen.inversion)
    if plan.swi and scan.magnitude is None:
        raise InputError("susceptibility-weighted images are made of the magnitude, and there is none")


def _brain(scan: Scan, plan: Plan, chosen: Chosen, record: Record) -> Mask:
    """The user's mask or the package's, eroded if asked."""
    if scan.mask is not None:
        brain = scan.mask
        record.notes.append("The mask is the user's.")
    else:
        arguments = (scan.phase, scan.magnitude, scan.echo_times, scan.voxel_size)
        brain = methods.call(chosen.mask, plan.settings, *arguments)
        record.notes.append("The mask was made from magnitude and phase quality.")
    if plan.erosion > 0:
        brain = erode(brain, plan.erosion, scan.voxel_size)
        record.notes.append(f"The mask was eroded by {plan.erosion:g} mm before anything else, as asked.")
        if not brain.any():
            raise InputError(f"nothing of the mask is left after an erosion by {plan.erosion:g} mm")
    if scan.magnitude is not None and not scan.magnitude[:, brain].any():
        raise InputError("the magnitude is zero everywhere in the mask: do the two belong together?")
    return brain


def _without_offsets(scan: Scan, brain: Mask, record: Record) -> Tensor:
    """The phase (echo, x, y, z) without what does not grow with echo time, as far as several echoes tell."""
    phase = scan.phase
    if len(scan.echo_times) > 1:
        readout = echoes.readout_phase(phase, scan.magnitude, brain, scan.echo_times, scan.voxel_size)
        if readout is not None:
            phase = echoes.without_readout_phase(phase, readout)
            record.notes.append(
                "Even and odd echoes were read in opposite directions; the phase by which they differed, up to "
                f"{float(readout[brain].abs().max()):.1f} rad, was estimated and removed."
            )
        offset = echoes.phase_offset(phase, scan.magnitude, brain, scan.echo_times, scan.voxel_size)
        phase = wrap(phase - offset)
        record.notes.append("A smooth phase offset common to all echoes was estimated and removed.")
    elif not scan.phase_difference:
        record.warnings.append(
            "There is one echo: the part of the phase that does not grow with echo time (coils, eddy "
            "currents) cannot be told from field, and background removal has to take it out."
        )
    return phase


def _total_field(
    scan: Scan, unwrapped: Tensor, brain: Mask, plan: Plan, chosen: Chosen, record: Record
) -> tuple[Volume, Volume, Mask, Mask]:
    """Total field [ppm], its noise, the mask that is left, and those of its voxels in which the field is a guess."""
    arguments = (unwrapped, scan.magnitude, brain, scan.echo_times, scan.field_strength)
    total_field, noise = methods.call(chosen.combination, plan.settings, *arguments)
    limit = plan.noise_limit_for(own_mask=scan.mask is None)
    if limit is not None:
        reliable = drop_noisy(brain, noise, limit)
        lost = 1 - float(reliable.sum() / brain.sum())
        brain, total_field = reliable, total_field * reliable
        noise = noise.masked_fill(~reliable, torch.inf)
        record.notes.append(
            f"Of that mask, {100 * lost:.1f} % of the voxels were given up: their field is more than "
            f"{limit:g} times as noisy as the median."
        )
    unknown = brain & torch.isinf(noise)
    if unknown.any():
        total_field = from_around(total_field, unknown, brain)
        record.notes.append(
            f"In {int(unknown.sum())} voxels of that mask the echoes contradict each other or hold no signal: the "
            "field was taken from around them, and they are not in the mask in which chi is valid."
        )
    return total_field, noise, brain, unknown


def _local_field_and_chi(
    scan: Scan,
    phase: Tensor,
    total_field: Volume,
    noise: Volume,
    brain: Mask,
    csf: Mask | None,
    plan: Plan,
    chosen: Chosen,
    record: Record,
) -> tuple[Volume, Volume, Mask]:
    """Local field and chi [ppm], and the mask in which they are valid, from the stage at which the method begins."""
    background, to_chi = chosen.background, chosen.inversion
    where = scan.voxel_size, scan.b0_direction
    measured = (phase, scan.magnitude, brain, scan.echo_times, scan.field_strength, *where)
    for method in (to_chi,) if to_chi.stage == "from total field" else (background, to_chi):
        resampled = note_on_frame(method, *where, scan.shape, plan.settings)
        if resampled is not None:
            record.notes.append(resampled)
    if to_chi.stage == "from total field":
        with record.stage("inversion"):
            chi, local_field = methods.call(to_chi, plan.settings, total_field, brain, *where)
            record.notes.append(f"Background removal and inversion were one step, {to_chi.label}.")
        return local_field, chi, brain

    def removed(inside: Mask) -> tuple[Volume, Mask]:
        if background.stage == "background from phase":
            return methods.call(background, plan.settings, *measured)
        grid = DipoleModel(scan.shape, *where, padding=0).to(total_field.device)
        known = total_field * inside, noise.masked_fill(~inside, torch.inf)
        return methods.call(background, plan.settings, *known, inside, grid)

    given: dict[str, Any] = {"csf": csf}
    if to_chi.stage == "inversion" and to_chi.takes("radians_per_ppm"):
        magnitude, rate = signal_of(scan.magnitude, brain, scan.echo_times, scan.field_strength)
        given |= {"magnitude": magnitude, "radians_per_ppm": rate}
        if "radians_per_ppm" not in plan.settings.get(to_chi.name, {}):
            record.notes.append(f"To {to_chi.label} a field of 1 ppm is a phase of {rate:.2f} rad, that of all echoes.")
        if magnitude is None:
            record.warnings.append(
                f"There is no magnitude: {to_chi.label} takes all voxels of the mask for equally noisy"
                + (" and knows of no edges." if to_chi.takes("edges") else ".")
            )

    def inverted(field: Volume, inside: Mask) -> Volume:
        settings = with_settings(plan.settings, record.settings)
        return invert(field, inside, *where, method=plan.inversion, settings=settings, **given)

    with record.stage("background removal"):
        local_field, mask = removed(brain)
        sure = removed(with_holes(brain, noise)) if plan.two_pass else None
        kept = float(mask.sum() / brain.sum())
        record.notes.append(f"Background removal kept {100 * kept:.0f} % of the mask's voxels.")
        if kept < 0.6:
            record.warnings.append(f"Background removal kept only {100 * kept:.0f} % of the mask's voxels.")
    with record.stage("inversion"):
        if to_chi.stage == "from phase":
            chi, mask = methods.call(to_chi, plan.settings, *measured)
            local_field = local_field * mask
            record.notes.append(
                f"chi comes from the wrapped phase by {to_chi.label}; the unwrapped phase and the fields had no "
                "part in it and are there for comparison."
            )
        else:
            if plan.choose_regularisation is not None:
                choice = chosen_regularisation(
                    local_field,
                    mask,
                    *where,
                    method=plan.inversion,
                    criterion=plan.choose_regularisation,
                    settings=plan.settings,
                    **given,
                )
                record.settings = {plan.inversion: {"regularisation": choice.regularisation}}
                (record.notes if choice.reached else record.warnings).append(f"{to_chi.label}: {choice.sentence}.")
            chi = inverted(local_field, mask)
        if sure is not None:
            chi, holes = joined(inverted(*sure), sure[1], chi, mask)
            record.notes.append(
                f"chi was computed in two passes; {100 * float(holes.sum() / mask.sum()):.1f} % of its voxels, where "
                "the field is unreliable, have that of the second, which used them."
            )
    return local_field, chi, mask


def findings_of(scan: Scan, total_field: Volume, mask: Mask) -> list[Finding]:
    """What speaks for or against the scan's header: see `fields.evidence`.

    Args:
        scan: What was measured.
        total_field: [ppm], (x, y, z).
        mask: Where it is known.
    """
    findings = evidence.of_scan(scan.phase, scan.magnitude, scan.voxel_size)
    coarse = evidence.coarse_local_field(total_field, mask, scan.voxel_size, scan.b0_direction)
    if coarse is not None:
        local_field, inside, size = coarse
        findings += evidence.of_field(local_field, inside, size, scan.b0_direction)
        # TKD is odd in the field: networks may have learned that strong sources are positive
        chi = invert(local_field, inside, size, scan.b0_direction, method="tkd")
        sign = evidence.phase_sign(chi, inside, size)
        findings += [] if sign is None else [sign]
    return findings


def joined(first: Volume, sure: Mask, second: Volume, mask: Mask) -> tuple[Volume, Mask]:
    """chi of two passes as one: that of the first where it holds, that of the second in the holes.

    The first does without the field of strong, unreliable sources and takes what they throw around them for background;
    the second gives the sources themselves. Each is relative, so the first is moved to the second's mean where both
    hold.

    Args:
        first: chi [ppm] of the first pass, shape (x, y, z).
        sure: Where it holds.
        second: chi of the second pass.
        mask: Where that holds.

    Returns:
        chi in `mask`, and the voxels of it that the first pass lacks.

    References:
        Stewart et al. 2022, doi:10.1002/mrm.29048.
    """
    both = sure & mask
    if not both.any():
        return second, mask
    return torch.where(both, first + (second[both].mean() - first[both].mean()), second), mask & ~both
