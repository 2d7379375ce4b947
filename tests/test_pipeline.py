from dataclasses import replace

import pytest
import torch

import chimap
from chimap import metrics
from chimap.errors import InputError
from chimap.fields.csf import ventricles
from chimap.fields.mask import with_holes
from chimap.from_local_field import invert, missing_margin, signal_of
from chimap.physics.phase import wrap
from chimap.physics.units import radians_per_ppm
from chimap.pipeline import STAGES, joined, reconstruct
from chimap.plan import PLANS, Plan
from chimap.simulation.acquisition import acquire
from chimap.simulation.head import built_in_head


@pytest.fixture(scope="module")
def simulated():
    """A head in an oblique slab with voxels that are not cubes and sizes that are odd."""
    head = built_in_head((57, 67, 45), (3.2, 3.2, 4.0), grid_rotation=(0.6, -0.1, 0.0), seed=1)
    scan, truth = acquire(head, snr=80.0, seed=1)
    return replace(scan, mask=truth.mask), truth


@pytest.mark.parametrize("name", list(PLANS))
def test_every_plan_finds_chi(simulated, name):
    scan, truth = simulated
    seen = []
    maps = reconstruct(scan, PLANS[name], on_stage=seen.append)
    assert tuple(seen) == STAGES == tuple(maps.seconds)
    assert metrics.correlation(maps.chi, truth.chi, maps.mask) > 0.55
    assert 0.3 < metrics.slope(maps.chi, truth.chi, maps.mask) < 1.3
    assert abs(float(maps.chi[maps.mask].mean())) < 1e-5  # the reference
    assert maps.chi[~maps.mask].abs().max() == 0
    assert not (maps.mask & ~scan.mask).any()


def test_the_total_field_is_right_in_ppm(simulated):
    scan, truth = simulated
    maps = reconstruct(scan, Plan(inversion="tkd"))
    difference = (maps.total_field - truth.total_field)[truth.mask]
    difference = difference - difference.median()
    assert difference.abs().median() < 0.03 * truth.total_field[truth.mask].std()


def test_r2star_is_found_beside_chi_and_only_where_echoes_have_a_magnitude():
    head = built_in_head((57, 67, 45), (3.2, 3.2, 4.0), seed=1)
    scan, truth = acquire(head, snr=80.0, dephasing=False, seed=1)
    plan = Plan(unwrap="laplacian", background="vsharp", inversion="tkd")
    maps = reconstruct(replace(scan, mask=truth.mask), plan)
    off = (maps.r2star - head.r2star)[truth.mask]
    assert abs(off.median()) < 0.1 and (off.quantile(0.84) - off.quantile(0.16)) / 2 < 1.5
    assert (maps.r2star[~maps.brain_mask] == 0).all()
    without = reconstruct(replace(scan, mask=truth.mask, magnitude=None), plan)
    one = replace(scan, phase=scan.phase[2:3], magnitude=scan.magnitude[2:3], echo_times=scan.echo_times[2:3])
    assert without.r2star is None is reconstruct(replace(one, mask=truth.mask), plan).r2star


@pytest.mark.parametrize("background", ["pdf-tv", "vsharp"])
def test_voxels_with_damaged_echoes_leave_the_mask_and_spoil_nothing_else(simulated, background):
    scan, truth = simulated
    scan = replace(scan, mask=None)
    plan = Plan(background=background, settings={"tv": {"iterations": 15}})
    sound = reconstruct(scan, plan)
    x, y, z = (int(middle) for middle in truth.mask.nonzero().float().mean(dim=0))
    rim = int(sound.brain_mask[x, y].nonzero().max())  # the uppermost voxel of this column
    damaged = torch.zeros_like(truth.mask)
    damaged[x : x + 2, y : y + 2, z : z + 2] = True
    damaged[x, y, rim] = True
    phase = scan.phase.clone()
    phase[1::2, damaged] += 2.5
    hurt = reconstruct(replace(scan, phase=wrap(phase)), plan)
    assert not (hurt.mask & damaged).any() and not hurt.brain_mask[x, y, rim]
    assert (hurt.chi[damaged] == 0).all() and (hurt.local_field[damaged] == 0).all()
    both = sound.mask & hurt.mask
    assert both.sum() > 0.99 * sound.mask.sum()
    assert (hurt.chi - sound.chi)[both].abs().max() < 0.3 * sound.chi[both].abs().max()
    assert any("contradict each other" in note for note in hurt.notes)
    assert not any("contradict each other" in note for note in sound.notes)


def test_two_passes_take_the_holes_from_the_second(simulated):
    scan, truth = simulated
    magnitude, phase = scan.magnitude.clone(), scan.phase
    x, y, z = (int(middle) for middle in truth.mask.nonzero().float().mean(dim=0))
    source = torch.zeros_like(truth.mask)
    source[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = True
    magnitude[:, source] *= 0.05
    dark = replace(scan, phase=phase, magnitude=magnitude)
    plan = Plan(settings={"tv": {"iterations": 10}}, reference="none")
    once, seen = reconstruct(dark, plan), []
    twice = reconstruct(dark, replace(plan, two_pass=True), on_stage=seen.append)
    assert tuple(seen) == STAGES == tuple(twice.seconds)
    assert torch.equal(twice.mask, once.mask)  # holes stay filled
    holes = source & once.mask
    assert holes.any()
    torch.testing.assert_close(twice.chi[holes], once.chi[holes])
    elsewhere = with_holes(twice.brain_mask, twice.field_noise) & once.mask
    assert not (elsewhere & source).any()
    assert (twice.chi - once.chi)[elsewhere].abs().max() > 1e-4  # the first pass had no field there
    assert metrics.correlation(twice.chi, once.chi, elsewhere) > 0.9
    assert abs(float((twice.chi - once.chi)[elsewhere].mean())) < 1e-5
    with pytest.raises(InputError, match="two passes need .* got pdf-tv and iqsm"):
        reconstruct(dark, Plan(two_pass=True, inversion="iqsm+"))


def test_joined_passes_are_one_map_on_one_level():
    first, second = torch.full((4, 4, 4), 1.0), torch.full((4, 4, 4), 3.0)
    mask = torch.ones(4, 4, 4, dtype=torch.bool)
    sure = mask.clone()
    sure[2, 2, 2] = False
    first[0], second[0], second[2, 2, 2] = 1.5, 3.4, 9.0
    chi, holes = joined(first, sure, second, mask)
    assert float(chi[2, 2, 2]) == 9 and int(holes.sum()) == 1
    assert float(chi[sure].mean()) == pytest.approx(float(second[sure].mean()))
    assert float(chi[0, 0, 0] - chi[1, 0, 0]) == pytest.approx(0.5)
    nowhere, holes = joined(first, ~mask, second, mask)
    assert torch.equal(nowhere, second) and torch.equal(holes, mask)


def test_a_mask_without_signal_is_refused(simulated):
    scan, _ = simulated
    with pytest.raises(InputError, match="zero everywhere in the mask"):
        reconstruct(replace(scan, magnitude=scan.magnitude * ~scan.mask))


def test_a_wrong_direction_of_b0_makes_chi_worse(simulated):
    scan, truth = simulated
    right = reconstruct(scan, Plan(inversion="tkd"))
    wrong = reconstruct(replace(scan, b0_direction=(1.0, 0.0, 0.0)), Plan(inversion="tkd"))
    error = [metrics.dnrmse(maps.chi, truth.chi, maps.mask) for maps in (right, wrong)]
    assert error[1] > 1.5 * error[0]


def test_flipping_the_image_flips_chi(simulated):
    """An x axis that runs the other way: the first component of B0 changes sign with it, and so does chi's axis."""
    scan, _ = simulated
    x, y, z = scan.b0_direction
    plan = Plan(unwrap="laplacian", inversion="tkd")
    once = reconstruct(scan, plan).chi
    flipped = replace(
        scan,
        phase=scan.phase.flip(1),
        magnitude=scan.magnitude.flip(1),
        mask=scan.mask.flip(0),
        b0_direction=(-x, y, z),
    )
    again = reconstruct(flipped, plan).chi.flip(0)
    assert metrics.correlation(again, once, scan.mask) > 0.999


def test_one_echo_gives_a_warning_unless_it_is_a_difference(simulated):
    scan, _ = simulated
    one = replace(scan, phase=scan.phase[2:3], magnitude=scan.magnitude[2:3], echo_times=scan.echo_times[2:3])
    assert any("one echo" in warning for warning in reconstruct(one, Plan(inversion="tkd")).warnings)
    difference = replace(one, phase_difference=True)
    assert reconstruct(difference, Plan(inversion="tkd")).warnings == ()


def test_a_plan_and_a_method_can_be_named(simulated):
    scan, _ = simulated
    named = chimap.reconstruct(scan, "quick", method="tsvd")
    written = reconstruct(scan, replace(PLANS["quick"], inversion="tsvd"))
    assert torch.equal(named.chi, written.chi)
    with pytest.raises(InputError, match="no plan is called 'slow'"):
        chimap.reconstruct(scan, "slow")


def test_an_unusable_scan_and_unknown_methods_are_refused(simulated):
    scan, truth = simulated
    with pytest.raises(InputError, match="milliseconds"):
        reconstruct(replace(scan, echo_times=tuple(1000 * time for time in scan.echo_times)))
    with pytest.raises(InputError, match="no background method"):
        reconstruct(scan, Plan(background="magic"))
    with pytest.raises(InputError, match="nothing of the mask is left"):
        reconstruct(scan, Plan(erosion=500.0))
    with pytest.raises(InputError, match="the mask is empty"):
        invert(truth.local_field, torch.zeros_like(truth.mask), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))


def test_room_is_added_only_where_the_mask_is_near_its_own_image():
    mask = torch.zeros(40, 40, 10, dtype=torch.bool)
    mask[10:30, 2:38, :] = True
    assert missing_margin(mask, (1.0, 1.0, 3.0)) == (0, 6, 4)  # 10 mm wanted; 20, 4 and 0 voxels are there


def test_one_echo_stands_for_all():
    """The field's precision is the sum over echoes of (magnitude TE)^2."""
    times, mask = (0.005, 0.012, 0.03), torch.ones(6, 5, 4, dtype=torch.bool)
    mask[0] = False
    magnitude = torch.stack([torch.full(mask.shape, 100.0 * (1 - 20 * time)) for time in times])
    together, rate = signal_of(magnitude, mask, times, 7.0)
    precision = sum((float(echo[1, 1, 1]) * time) ** 2 for echo, time in zip(magnitude, times, strict=True))
    assert (float(together[1, 1, 1]) * rate / radians_per_ppm(1.0, 7.0)) ** 2 == pytest.approx(precision, rel=1e-5)
    without, rate = signal_of(None, mask, times, 7.0)
    assert without is None and rate == pytest.approx(
        radians_per_ppm((sum(time**2 for time in times) / 3) ** 0.5, 7.0), rel=1e-6
    )
    assert signal_of(None, mask, (0.02,), 3.0)[1] == pytest.approx(radians_per_ppm(0.02, 3.0))


def test_methods_of_the_phase_factor_get_the_magnitude_and_echo_time_of_the_scan(simulated):
    scan, truth = simulated
    maps = reconstruct(scan, Plan(inversion="medi", reference="none"))
    magnitude, rate = signal_of(scan.magnitude, maps.brain_mask, scan.echo_times, scan.field_strength)
    where = scan.voxel_size, scan.b0_direction
    alone = invert(maps.local_field, maps.mask, *where, method="medi", magnitude=magnitude, radians_per_ppm=rate)
    torch.testing.assert_close(maps.chi, alone * maps.mask)
    assert any(f"is a phase of {rate:.2f} rad" in note for note in maps.notes)
    assert metrics.correlation(maps.chi, truth.chi, maps.mask) > 0.7
    assert (invert(maps.local_field, maps.mask, *where, method="medi") - alone).abs().max() > 1e-3
    own = invert(
        maps.local_field,
        maps.mask,
        *where,
        method="medi",
        magnitude=magnitude,
        radians_per_ppm=rate,
        settings={"medi": {"radians_per_ppm": 100.0}},
    )
    assert (own - alone).abs().max() > 1e-5  # what the user sets comes first


def test_without_magnitude_medi_says_what_it_lacks(simulated):
    scan, truth = simulated
    maps = reconstruct(replace(scan, magnitude=None), Plan(inversion="medi"))
    assert any("no magnitude" in warning and "edges" in warning for warning in maps.warnings)
    assert metrics.correlation(maps.chi, truth.chi, maps.mask) > 0.6
    with pytest.raises(InputError, match="the magnitude of two echoes or more is needed"):
        reconstruct(replace(scan, magnitude=None), Plan(inversion="medi+0"))


def test_medi_zero_refers_chi_to_fluid(simulated):
    scan, truth = simulated
    maps = reconstruct(scan, Plan(inversion="medi+0"))
    fluid = ventricles(maps.r2star, maps.brain_mask, scan.voxel_size) & maps.mask
    assert abs(float(maps.chi[fluid].mean())) < 1e-6
    assert any("relative to its mean in the cerebrospinal fluid" in note for note in maps.notes)
    assert not any("relative to its mean in the mask" in note for note in maps.notes)
    assert not any("does not depend on it" in note for note in maps.notes)
    off = (maps.chi - truth.chi)[maps.mask].mean() + truth.chi[fluid].mean()
    assert abs(float(off)) < 0.3 * float(truth.chi[maps.mask].std())
