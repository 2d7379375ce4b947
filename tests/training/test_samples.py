"""Training samples: what they hold, that a seed decides them, and that their imports travel."""

import math
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch

from chimap.errors import InputError
from chimap.physics.dipole import DipoleModel
from chimap.training.samples import (
    UPRIGHT,
    SampleSettings,
    _direction,
    draw_batch,
    draw_sample,
    in_slices,
    scaled_positive,
)

SETTINGS = SampleSettings(shape=(24, 20, 28), voxel_sizes=((2.5, 2.5, 2.5),), blobs=0.0)


def test_a_sample_holds_what_it_says(label_map):
    sample = draw_sample([label_map], SETTINGS, 1)
    for name in ("chi", "local_field", "measured_local_field", "total_field", "phase", "magnitude", "mask"):
        assert getattr(sample, name).shape == SETTINGS.shape
        assert torch.isfinite(getattr(sample, name).float()).all()
    assert float(sample.phase.abs().max()) <= math.pi + 1e-5
    assert float(sample.b0_direction.norm()) == pytest.approx(1)
    assert float(sample.mask.float().mean()) > 0.2
    assert float(sample.chi.abs().max()) < 0.5


def test_the_local_field_is_that_of_the_sources_in_and_around_the_sample(label_map):
    """The field minus that of the sample's own chi is smooth: its sources are elsewhere."""
    sample = draw_sample([label_map], replace(SETTINGS, mask_error=(0.0, 0.0)), 3)
    b0 = tuple(float(value) for value in sample.b0_direction)
    own = DipoleModel(SETTINGS.shape, (2.5, 2.5, 2.5), (b0[0], b0[1], b0[2]), kernel="green")(sample.chi)
    rest = sample.local_field - own
    core = (slice(6, -6),) * 3
    laplacian = sum(
        (volume.roll(1, axis) + volume.roll(-1, axis) - 2 * volume)[core].std() / sample.local_field[core].std()
        for axis in range(3)
        for volume in (rest,)
    )
    assert float(laplacian) < 0.15


def test_errors_are_as_large_as_drawn(label_map):
    clean = replace(SETTINGS, field_error=(0.0, 0.0), snr=(1e6, 1e6))
    exact = draw_sample([label_map], clean, 5)
    inside = exact.mask
    assert float((exact.measured_local_field - exact.local_field)[inside].abs().max()) < 1e-4
    noisy = draw_sample([label_map], replace(SETTINGS, field_error=(0.5, 0.5), snr=(1e6, 1e6)), 5)
    error = (noisy.measured_local_field - noisy.local_field)[inside].std() / noisy.local_field[inside].std()
    assert 0.3 < float(error) < 0.8  # a half over the sample with its edge
    torch.testing.assert_close(noisy.local_field, exact.local_field)


def test_the_phase_is_that_of_total_field_and_offset(label_map):
    settings = replace(SETTINGS, field_error=(0.0, 0.0), snr=(1e6, 1e6), field_strengths=(3.0,))
    sample = draw_sample([label_map], settings, 7)
    left = torch.polar(torch.ones(SETTINGS.shape), sample.phase - sample.total_field * sample.radians_per_ppm)
    steps = (left[1:] * left[:-1].conj()).angle()[sample.mask[1:] & sample.mask[:-1]]
    assert float(steps.abs().max()) < 0.5  # a smooth offset of the coil is left


def test_upright_samples_have_b0_near_z_and_the_others_every_direction():
    def cosines(upright):
        settings = replace(SETTINGS, tilt=math.pi / 2, upright=upright)
        draws = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)).tolist()
        return torch.tensor([_direction(settings, tilt, about)[2] for tilt, about in draws])

    edge = math.cos(UPRIGHT)
    by_chance = 1 - edge  # uniform over the half sphere
    for upright in (0.0, 0.4, 1.0):
        share = float((cosines(upright) >= edge).float().mean())
        assert share == pytest.approx(upright + (1 - upright) * by_chance, abs=0.02)
    assert float(cosines(0.4).min()) < 0.01


def test_a_sample_in_thick_slices_has_lost_what_is_finer_and_nothing_else(label_map):
    """Along one axis the finest is gone, along the others all is there; the field still is that of the chi."""
    settings = replace(SETTINGS, field_error=(0.0, 0.0), snr=(1e6, 1e6), mask_error=(0.0, 0.0), whole_brain=False)
    sharp = draw_sample([label_map], settings, 7)
    thick = in_slices(sharp, 2, 2.5)

    def left(name, axis):
        before, after = (getattr(one, name)[5:-5, 5:-5, 5:-5].diff(dim=axis).std() for one in (sharp, thick))
        return float(after / before)

    for name in ("chi", "local_field"):
        assert left(name, 2) < 0.65 and left(name, 0) > 0.7
    torch.testing.assert_close(thick.phase.abs() <= math.pi, torch.ones_like(thick.mask))
    b0 = tuple(float(value) for value in sharp.b0_direction)
    of_chi = DipoleModel(SETTINGS.shape, (2.5, 2.5, 2.5), (b0[0], b0[1], b0[2]), padding=24)
    misfits = [
        (of_chi(one.chi) - one.local_field)[one.mask].std() / one.local_field[one.mask].std() for one in (sharp, thick)
    ]
    assert misfits[1] < misfits[0] + 0.1
    assert (thick.mask == sharp.mask).all() and (thick.chi[~thick.mask] == 0).all()


def test_half_of_the_samples_are_in_slices_and_none_if_not_asked(label_map):
    settings = replace(SETTINGS, scan=False, slices=(2.0, 3.0))
    changed = [
        not torch.equal(
            draw_sample([label_map], settings, seed).chi,
            draw_sample([label_map], replace(settings, slices=(1.0, 1.0)), seed).chi,
        )
        for seed in range(12)
    ]
    assert 2 <= sum(changed) <= 10


@pytest.mark.parametrize("tilt", [0.0, math.pi / 2])
def test_b0_lies_within_the_tilt(label_map, tilt):
    settings = replace(SETTINGS, tilt=tilt, scan=False)
    directions = torch.stack([draw_sample([label_map], settings, seed).b0_direction for seed in range(12)])
    cosines = directions[:, 2]
    if tilt == 0:
        torch.testing.assert_close(cosines, torch.ones(12))
    else:
        assert float(cosines.min()) >= -1e-6 and float(cosines.min()) < 0.35 and float(cosines.max()) > 0.65


def test_without_a_scan_the_rest_is_the_same(label_map):
    whole, part = (draw_sample([label_map], replace(SETTINGS, scan=scan), 2) for scan in (True, False))
    assert part.phase is None and part.total_field is None and part.magnitude is None
    torch.testing.assert_close(part.chi, whole.chi)
    torch.testing.assert_close(part.local_field, whole.local_field)


def test_sources_around_a_hybrid_brain_make_its_background(label_map):
    drawn = replace(SETTINGS, hybrid=1.0, mask_error=(0.0, 0.0), field_error=(0.0, 0.0), whole_brain=False)
    head, sources = (draw_sample([label_map], replace(drawn, sources=count), 4) for count in (0, 600))
    for name in ("chi", "local_field", "mask"):
        torch.testing.assert_close(getattr(sources, name), getattr(head, name))
    assert not torch.allclose(sources.phase, head.phase)
    # what is not local comes from outside: inside it has no Laplacian, as far as the grid tells
    background = sources.total_field - sources.local_field
    laplacian = sum(background.roll(1, axis) + background.roll(-1, axis) - 2 * background for axis in range(3))
    inside = torch.zeros_like(sources.mask)
    inside[2:-2, 2:-2, 2:-2] = sources.mask[2:-2, 2:-2, 2:-2]
    for axis in range(3):
        inside &= sources.mask.roll(2, axis) & sources.mask.roll(-2, axis)
    assert inside.sum() > 200
    assert float(background[inside].std()) > float(sources.local_field[inside].std())
    assert float(laplacian[inside].std()) < 0.1 * float(background[inside].std())
    plain = draw_sample([label_map], replace(drawn, hybrid=0.0, sources=600), 4)
    other = draw_sample([label_map], replace(drawn, hybrid=0.0), 4)
    torch.testing.assert_close(plain.total_field, other.total_field)  # of a brain as in the literature the head is kept


def test_batches_are_samples_and_seeds_decide(label_map):
    batch = draw_batch([label_map], SETTINGS, [4, 9])
    again = draw_sample([label_map], SETTINGS, 9)
    for field in fields(again):
        assert torch.equal(getattr(batch, field.name)[1], getattr(again, field.name)), field.name
    assert not torch.equal(batch.chi[0], batch.chi[1])


def test_sign_scale_and_blobs_change_chi_alone(label_map):
    plain = draw_sample([label_map], replace(SETTINGS, scan=False), 6)
    inverted = draw_sample([label_map], replace(SETTINGS, scan=False, invert=1.0), 6)
    torch.testing.assert_close(inverted.chi, -plain.chi)
    torch.testing.assert_close(inverted.local_field, -plain.local_field, atol=1e-5, rtol=1e-2)
    blobs = draw_sample([label_map], replace(SETTINGS, scan=False, blobs=6.0), 6)
    assert float((blobs.chi - plain.chi).abs().max()) > 0.15


def test_scaling_of_the_positive_part_by_hand():
    torch.testing.assert_close(scaled_positive(torch.tensor([-1.0, 0.0, 0.5]), 3.0), torch.tensor([-1.0, 0.0, 1.5]))


def test_where_there_is_no_brain_a_sentence_says_so(label_map):
    empty = replace(label_map, classes=torch.zeros_like(label_map.classes))
    with pytest.raises(InputError, match="ball: no place"):
        draw_sample([empty], SETTINGS, 0)
    with pytest.raises(InputError, match="no label maps"):
        draw_sample([], SETTINGS, 0)


def test_training_needs_torch_and_its_few_companions_only():
    code = (
        "import sys\n"
        "for name in ('nibabel', 'nilearn', 'pydicom', 'matplotlib', 'jaxtyping', 'jinja2'):\n"
        "    sys.modules[name] = None\n"
        "import chimap.training.samples, chimap.physics.random_sources, chimap.simulation.lesions\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
