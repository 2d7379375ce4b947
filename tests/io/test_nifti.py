import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from chimap.errors import InputError
from chimap.io import nifti
from chimap.scan import Scan

SHAPE = (7, 9, 11)
AFFINE = np.diag([0.8, 1.0, 2.0, 1.0])


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, **sidecar) -> Path:
    image = nibabel.nifti1.Nifti1Image(data, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nibabel.loadsave.save(image, path)
    if sidecar:
        (path.parent / (path.name.split(".")[0] + ".json")).write_text(json.dumps(sidecar))
    return path


def wrapped(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-math.pi, math.pi, shape).astype(np.float32)


def rotation(axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def affines() -> list[np.ndarray]:
    """Voxel axes permuted, flipped and rotated by 35 degrees, voxels of 0.8 x 1 x 2 mm."""
    found = []
    for order in [(0, 1, 2), (1, 2, 0), (2, 0, 1)]:
        for flips in [(1, 1, 1), (-1, 1, 1), (1, -1, -1)]:
            for degrees in (0, 35):
                matrix = np.eye(4)
                axes = np.eye(3)[:, order] * flips
                matrix[:3, :3] = rotation((1, -2, 0.5), degrees) @ axes * (0.8, 1.0, 2.0)
                matrix[:3, 3] = (-60, 20, 7)
                found.append(matrix)
    return found


@pytest.mark.parametrize("affine", affines())
def test_a_scan_written_and_read_is_the_same_on_any_grid(tmp_path, affine):
    phase = torch.from_numpy(wrapped(shape=(3, *SHAPE)))
    magnitude = phase.abs() + 1
    mask = phase[0] > 0
    nifti.write_volume(tmp_path / "phase.nii.gz", phase, affine, description="phase [rad]")
    nifti.write_volume(tmp_path / "magnitude.nii.gz", magnitude, affine, description="magnitude")
    nifti.write_volume(tmp_path / "mask.nii.gz", mask, affine, description="mask")
    about = {"EchoTime": [0.005, 0.010, 0.015], "MagneticFieldStrength": 3, "Units": "rad"}
    (tmp_path / "phase.json").write_text(json.dumps(about))
    scan = nifti.read_scan([tmp_path / "phase.nii.gz"], [tmp_path / "magnitude.nii.gz"], mask=tmp_path / "mask.nii.gz")
    torch.testing.assert_close(scan.phase, phase, rtol=0, atol=0)
    torch.testing.assert_close(scan.magnitude, magnitude, rtol=0, atol=0)
    assert scan.mask is not None and torch.equal(scan.mask, mask)
    assert scan.echo_times == (0.005, 0.010, 0.015) and scan.field_strength == 3
    assert scan.voxel_size == pytest.approx((0.8, 1.0, 2.0), abs=2e-6)
    np.testing.assert_allclose(scan.affine, affine, atol=1e-5)
    # B0 in voxel axes, taken back to the scanner, is the scanner's z
    to_scanner = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(to_scanner @ scan.b0_direction, (0, 0, 1), atol=1e-5)
    assert scan.warnings == ()


def test_b0_of_known_affines():
    assert nifti.b0_from_affine(np.diag([-1.0, 1, 1, 1])) == (0, 0, 1)  # LAS
    coronal = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 3, 0, 0], [0, 0, 0, 1]])
    assert nifti.b0_from_affine(coronal) == (0, 1, 0)
    tilted = np.eye(4)
    tilted[:3, :3] = rotation((1, 0, 0), 35)  # slices tilted about the left-right axis
    expected = (0, math.sin(math.radians(35)), math.cos(math.radians(35)))
    assert nifti.b0_from_affine(tilted) == pytest.approx(expected)
    tilted[:3, :3] = tilted[:3, :3] @ np.diag([-0.8, 1, 2])  # left-handed, other voxel sizes: y and z stay
    assert nifti.b0_from_affine(tilted) == pytest.approx(expected)


def test_b0_of_a_sheared_affine_is_that_of_the_nearest_rotation(tmp_path):
    shear = np.eye(4)
    shear[0, 2] = shear[2, 0] = 0.1  # symmetric, so the rotation in it is none
    assert nifti.b0_from_affine(shear) == pytest.approx((0, 0, 1), abs=1e-6)
    image = nibabel.nifti1.Nifti1Image(wrapped(), None)
    image.set_sform(shear, 1)
    nibabel.loadsave.save(image, tmp_path / "p.nii")
    scan = nifti.read_scan([tmp_path / "p.nii"], echo_times=[0.01], field_strength=3.0)
    assert any("sheared" in sentence for sentence in scan.warnings)


VENDORS = [
    # stored values of one turn from -pi on, integer or not, Units, what the record says
    ("float rad", lambda p: p, None, "radians"),
    ("float 0 to 2 pi", lambda p: np.mod(p, 2 * np.pi).astype(np.float32), None, "0 to 2 pi"),
    (
        "Siemens 0 to 4095",
        lambda p: np.floor((p / np.pi + 1) * 2048).clip(0, 4095).astype(np.int16),
        None,
        "12 bit",
    ),
    (
        "Siemens slope 2",
        lambda p: (2 * np.floor(p / np.pi * 2048)).clip(-4096, 4094).astype(np.int16),
        None,
        "-4096",
    ),
    (
        "GE milliradians",
        lambda p: np.floor(p * 1000).clip(-3142, 3141).astype(np.int16),
        None,
        "milliradians",
    ),
    ("Philips milliradians", lambda p: (p * 1000).astype(np.float32), None, "milliradians"),
    ("scaled to 0.00367", lambda p: (p / np.pi * 0.0036743).astype(np.float64), None, "filled to both ends"),
    (
        "16 bit",
        lambda p: np.floor(p / np.pi * 32768).clip(-32768, 32767).astype(np.int16),
        None,
        "filled to both",
    ),
    (
        "unsigned 16 bit",
        lambda p: np.floor((p / np.pi + 1) * 32768).clip(0, 65535).astype(np.uint16),
        None,
        "both",
    ),
]


@pytest.mark.parametrize(("store", "said"), [row[1::2] for row in VENDORS], ids=[row[0] for row in VENDORS])
def test_every_vendors_scale_is_guessed_and_the_guess_announced(tmp_path, store, said):
    phase = wrapped(shape=(16, 16, 16))
    path = save(tmp_path / "p.nii.gz", store(phase))
    scan = nifti.read_scan([path], echo_times=[0.02], field_strength=3.0)
    apart = np.angle(np.exp(1j * (scan.phase[0].numpy() - phase)))
    assert np.abs(apart).max() < 4e-3
    guesses = [sentence for sentence in scan.warnings if sentence.startswith("Guessed:")]
    assert len(guesses) == 1 and said in guesses[0]


def test_slope_and_intercept_of_the_file_are_applied(tmp_path):
    phase = wrapped()
    stored = np.floor((phase / np.pi + 1) * 2048).clip(0, 4095).astype(np.int16)
    image = nibabel.nifti1.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(2 * np.pi / 4096, -np.pi)
    nibabel.loadsave.save(image, tmp_path / "p.nii")
    (tmp_path / "p.json").write_text(json.dumps({"EchoTime": 0.02, "MagneticFieldStrength": 3, "Units": "rad"}))
    scan = nifti.read_scan([tmp_path / "p.nii"])
    np.testing.assert_allclose(scan.phase[0], phase, atol=2e-3)
    assert not any(sentence.startswith("Guessed") for sentence in scan.warnings)


def test_the_users_range_wins_over_units_and_guess(tmp_path):
    path = save(tmp_path / "p.nii", wrapped() * 100, EchoTime=0.02, MagneticFieldStrength=3, Units="rad")
    with pytest.raises(InputError, match="the sidecar says rad"):
        nifti.read_scan([path])
    scan = nifti.read_scan([path], phase_range=(-100 * math.pi, 100 * math.pi))
    np.testing.assert_allclose(scan.phase[0], wrapped(), atol=1e-5)
    assert scan.warnings == ()
    with pytest.raises(InputError, match="--phase-range is 0 1"):
        nifti.read_scan([path], phase_range=(0.0, 1.0))
    with pytest.raises(InputError, match="needed a low and a higher value"):
        nifti.read_scan([path], phase_range=(1.0, 1.0))


def test_what_is_no_wrapped_phase_is_refused(tmp_path):
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 41, 42)), indexing="ij")
    r = np.sqrt(x**2 + y**2 + z**2)
    unwrapped = (9 * np.exp(-6 * r) - 5 * np.exp(-6 * np.sqrt((x - 0.4) ** 2 + y**2 + z**2))).astype(np.float32)
    cases = {
        "unwrapped": (unwrapped, "--phase-range LOW HIGH"),
        "magnitude": ((4095 * (unwrapped / unwrapped.max()).clip(0)).astype(np.int16), "--phase-range"),
        "zero": (np.zeros(SHAPE, np.float32), "phase is 0 in every voxel"),
        "constant": (np.full(SHAPE, 5, np.int16), "phase is 5 in every voxel"),
    }
    for name, (data, message) in cases.items():
        path = save(tmp_path / f"{name}.nii", data)
        with pytest.raises(InputError, match=message) as caught:
            nifti.read_scan([path], echo_times=[0.02], field_strength=3.0)
        assert name in str(caught.value)
    path = save(tmp_path / "hertz.nii", wrapped(), Units="Hz")
    with pytest.raises(InputError, match="Units 'Hz'"):
        nifti.read_scan([path], echo_times=[0.02], field_strength=3.0)


def test_masked_phase_is_recognised_by_the_voxels_that_are_not_zero(tmp_path):
    phase = wrapped(shape=(20, 20, 20))
    phase[:, 3:] = 0
    phase /= 1000
    scan = nifti.read_scan([save(tmp_path / "p.nii", phase)], echo_times=[0.02], field_strength=3.0)
    np.testing.assert_allclose(scan.phase[0], phase * 1000, atol=0.01)


def echo_files(folder: Path, times: list[float], part: str) -> list[Path]:
    scale = 1 if part == "phase" else 0
    return [
        save(
            folder / f"{part}_{n}.nii.gz",
            wrapped(n) if scale else np.full(SHAPE, 1000 * time, np.float32),
            EchoTime=time,
            MagneticFieldStrength=2.89,
            **({"Units": "rad"} if scale else {}),
        )
        for n, time in enumerate(times)
    ]


def test_echoes_are_put_in_order_and_magnitude_follows_its_own_times(tmp_path):
    phases = echo_files(tmp_path, [0.012, 0.004, 0.008], "phase")
    magnitudes = echo_files(tmp_path, [0.004, 0.012, 0.008], "magnitude")
    scan = nifti.read_scan(phases, magnitudes)
    assert scan.echo_times == (0.004, 0.008, 0.012) and scan.field_strength == 2.89
    for echo, file in enumerate([1, 2, 0]):
        np.testing.assert_array_equal(scan.phase[echo], wrapped(file))
    assert scan.magnitude is not None
    torch.testing.assert_close(scan.magnitude[:, 0, 0, 0], torch.tensor([4.0, 8.0, 12.0]))
    assert any("order" in note for note in scan.notes)
    assert scan.files == tuple(str(path) for path in phases + magnitudes)


def test_the_users_words_win_and_a_disagreement_is_a_warning(tmp_path):
    phases = echo_files(tmp_path, [0.004, 0.008], "phase")
    magnitudes = echo_files(tmp_path, [0.004, 0.008], "magnitude")
    b0 = (0.0, 3.0, 4.0)
    scan = nifti.read_scan(phases, magnitudes, echo_times=[0.02, 0.01], field_strength=7.0, b0_direction=b0)
    assert scan.echo_times == (0.01, 0.02) and scan.field_strength == 7
    np.testing.assert_array_equal(scan.phase[0], wrapped(1))
    assert scan.magnitude is not None and scan.magnitude[0, 0, 0, 0] == pytest.approx(8)
    scan = nifti.read_scan(phases, magnitudes[::-1], echo_times=[0.02, 0.01], field_strength=7.0, b0_direction=b0)
    assert scan.magnitude is not None and scan.magnitude[0, 0, 0, 0] == pytest.approx(8)  # its file says which
    assert scan.b0_direction == pytest.approx((0, 0.6, 0.8))
    assert [next(word for word in ("--echo", "--field", "--b0") if word in text) for text in scan.warnings] == [
        "--echo",
        "--field",
        "--b0",
    ]
    agreeing = nifti.read_scan(phases, echo_times=[0.004, 0.008], field_strength=2.89, b0_direction=(0.0, 0.01, -1.0))
    assert agreeing.warnings == ()


def test_a_phase_difference_has_the_difference_of_its_echo_times(tmp_path):
    about = {"EchoTime1": 0.00519, "EchoTime2": 0.00765, "MagneticFieldStrength": 2.89, "Units": "rad"}
    path = save(tmp_path / "phasediff.nii.gz", wrapped(), **about)
    magnitudes = echo_files(tmp_path, [0.00519, 0.00765], "magnitude")
    scan = nifti.read_scan([path], magnitudes)
    assert scan.echo_times == (0.00246,)
    assert scan.magnitude is not None and scan.magnitude.shape == (1, *SHAPE)
    assert scan.magnitude[0, 0, 0, 0] == pytest.approx(math.sqrt((5.19**2 + 7.65**2) / 2))
    assert any("difference" in note for note in scan.notes)
    # the same two fields beside an image of the first echo do not make it a difference
    path = save(tmp_path / "first.nii.gz", wrapped(), EchoTime=0.00519, **about)
    assert nifti.read_scan([path]).echo_times == (0.00519,)


def test_the_phase_sign_of_ge_is_reversed_as_an_assumption(tmp_path):
    about = {"EchoTime": 0.02, "MagneticFieldStrength": 3, "Units": "rad"}
    path = save(tmp_path / "p.nii", wrapped(), Manufacturer="GE MEDICAL SYSTEMS", **about)
    scan = nifti.read_scan([path])
    np.testing.assert_array_equal(scan.phase[0], -wrapped())
    assert any(sentence.startswith("Assumed:") for sentence in scan.warnings)
    for sign in (1, -1):
        scan = nifti.read_scan([path], phase_sign=sign)
        np.testing.assert_array_equal(scan.phase[0], sign * wrapped())
        assert sum("Phase sign" in note for note in scan.notes) == 1 and scan.warnings == ()
    with pytest.raises(InputError, match="--phase-sign is 2"):
        nifti.read_scan([path], phase_sign=2)
    path = save(tmp_path / "s.nii", wrapped(), Manufacturer="Siemens", **about)
    np.testing.assert_array_equal(nifti.read_scan([path]).phase[0], wrapped())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_second_slice_half_a_turn_off_is_undone_unless_another_maker_is_named(tmp_path, axis):
    x, y, z = np.meshgrid(*(np.linspace(-2, 2, count) for count in SHAPE), indexing="ij")
    phase = np.angle(np.exp(1j * (x + 0.7 * y * z)))
    turns = np.moveaxis(np.broadcast_to(np.arange(SHAPE[axis]) % 2, np.moveaxis(phase, axis, -1).shape), -1, axis)
    stored = np.angle(np.exp(1j * (phase + np.pi * turns))).astype(np.float32)
    for maker, undone in (("GE", True), (None, True), ("Siemens", False)):
        about = {} if maker is None else {"Manufacturer": maker}
        path = save(tmp_path / f"{maker}.nii", stored, EchoTime=0.01, MagneticFieldStrength=3, Units="rad", **about)
        scan = nifti.read_scan([path])
        assert any(f"along {'xyz'[axis]} is half a turn off" in sentence for sentence in scan.warnings) == undone
        sign = -1 if maker == "GE" else 1
        off = np.exp(1j * (sign * scan.phase[0].numpy() - (phase if undone else stored)))
        np.testing.assert_allclose(off, np.full(SHAPE, off[0, 0, 0]), atol=1e-5)
        assert scan.phase.abs().max() <= math.pi + 1e-5


REFUSED = {
    "no echo time": ({"MagneticFieldStrength": 3}, {}, "give --echo-times in seconds"),
    "no field strength": ({"EchoTime": 0.02}, {}, "give --field-strength in tesla"),
    "ms in the file": ({"EchoTime": 20, "MagneticFieldStrength": 3}, {}, r"p\.json.*milliseconds"),
    "ms from the user": ({"MagneticFieldStrength": 3}, {"echo_times": [20.0]}, "--echo-times.*milliseconds"),
    "two times for one echo": ({"MagneticFieldStrength": 3}, {"echo_times": [0.01, 0.02]}, "holds 1 echoes"),
    "negative time": ({"EchoTime": -0.02, "MagneticFieldStrength": 3}, {}, "above 0"),
    "echo time as text": ({"EchoTime": "0.02", "MagneticFieldStrength": 3}, {}, 'EchoTime is "0.02"'),
    "field in gauss": ({"EchoTime": 0.02, "MagneticFieldStrength": 30000}, {}, "needed tesla"),
    "no direction": (
        {"EchoTime": 0.02, "MagneticFieldStrength": 3},
        {"b0_direction": (0.0, 0.0, 0.0)},
        "--b0-dir",
    ),
}


@pytest.mark.parametrize(("about", "options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_missing_or_impossible_values_are_refused(tmp_path, about, options, message):
    path = save(tmp_path / "p.nii", wrapped(), Units="rad", **about)
    with pytest.raises(InputError, match=message):
        nifti.read_scan([path], **options)


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    good = save(tmp_path / "good.nii.gz", wrapped(shape=(20, 20, 20)))
    (tmp_path / "short.nii.gz").write_bytes(good.read_bytes()[:9000])
    plain = save(tmp_path / "plain.nii", wrapped(shape=(20, 20, 20)))
    (tmp_path / "cut.nii").write_bytes(plain.read_bytes()[:9000])
    (tmp_path / "header.nii").write_bytes(plain.read_bytes()[:100])
    (tmp_path / "text.nii").write_text("no image")
    (tmp_path / "text.nii.gz").write_text("no image")
    (tmp_path / "empty.nii").write_bytes(b"")
    (tmp_path / "folder.nii").mkdir()
    nibabel.loadsave.save(nibabel.freesurfer.MGHImage(wrapped(), np.eye(4)), tmp_path / "other.mgz")
    save(tmp_path / "complex.nii", wrapped().astype(np.complex64))
    save(tmp_path / "flat.nii", wrapped(shape=(8, 8)))
    holes = wrapped()
    holes[2, 3, 4] = np.nan
    save(tmp_path / "nan.nii", holes)
    for name, message in {
        "missing.nii": "does not exist",
        "short.nii.gz": "damaged or cut short|cannot be read",
        "cut.nii": "damaged or cut short",
        "header.nii": "cannot be read as NIfTI",
        "text.nii": "cannot be read as NIfTI",
        "text.nii.gz": "cannot be read",
        "empty.nii": "cannot be read as NIfTI",
        "folder.nii": "is a folder",
        "other.mgz": "needed NIfTI",
        "complex.nii": "complex",
        "flat.nii": r"needed \(x, y, z\)",
        "nan.nii": "1 values that are not finite",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            nifti.read_volume(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_sidecar_that_is_no_json_object_is_refused_by_name(tmp_path):
    path = save(tmp_path / "p.nii.gz", wrapped())
    for text in ("{EchoTime: 0.02}", "[1, 2]", "", "\xff"):
        (tmp_path / "p.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=r"p\.json"):
            nifti.read_scan([path], echo_times=[0.02], field_strength=3.0)


def test_images_on_different_grids_are_refused_by_name(tmp_path):
    path = save(tmp_path / "p.nii", wrapped(), EchoTime=0.02, MagneticFieldStrength=3, Units="rad")
    ones = np.ones(SHAPE, np.uint8)
    moved, flipped = AFFINE.copy(), AFFINE @ np.diag([-1, 1, 1, 1])
    moved[1, 3] += 0.5
    save(tmp_path / "smaller.nii", ones[1:])
    save(tmp_path / "moved.nii", ones, moved)
    save(tmp_path / "flipped.nii", ones, flipped)
    for name, message in {"smaller": "has the grid", "moved": "0.5 voxels", "flipped": "LAS"}.items():
        file = tmp_path / f"{name}.nii"
        for arguments in ({"mask": file}, {"magnitude": [file]}):
            with pytest.raises(InputError, match=message) as caught:
                nifti.read_scan([path], **arguments)
            assert f"{name}.nii" in str(caught.value)
    rounded = AFFINE.copy()
    rounded[0, 3] += 1e-4  # as other programs round it
    nifti.read_scan([path], mask=save(tmp_path / "rounded.nii", ones, rounded))


def test_masks_may_hold_other_values_than_one_but_not_be_empty(tmp_path):
    labels = np.zeros(SHAPE, np.int16)
    labels[2:5] = 17
    mask, notes = nifti.read_mask(save(tmp_path / "labels.nii", labels), AFFINE, SHAPE, "phase")
    assert torch.equal(mask, torch.from_numpy(labels > 0)) and "labels.nii" in notes[0]
    ones, notes = nifti.read_mask(save(tmp_path / "m.nii", (labels > 0).astype(float)), AFFINE, SHAPE, "phase")
    assert torch.equal(ones, mask) and notes == ()
    with pytest.raises(InputError, match="empty"):
        nifti.read_mask(save(tmp_path / "empty.nii", 0 * labels), AFFINE, SHAPE, "phase")


def test_counts_of_echoes_that_do_not_fit_are_refused(tmp_path):
    phases = echo_files(tmp_path, [0.004, 0.008], "phase")
    magnitudes = echo_files(tmp_path, [0.004, 0.009], "magnitude")
    with pytest.raises(InputError, match="1 echoes of magnitude, the phase has 2"):
        nifti.read_scan(phases, magnitudes[:1])
    with pytest.raises(InputError, match="0.004, 0.009 s, those of the phase 0.004, 0.008"):
        nifti.read_scan(phases, magnitudes)
    with pytest.raises(InputError, match="the same echo time"):
        nifti.read_scan([phases[0], phases[0]])
    with pytest.raises(InputError, match="no phase"):
        nifti.read_scan([])
    both = save(tmp_path / "both.nii", wrapped(shape=(*SHAPE, 2)))
    with pytest.raises(InputError, match="one of 2 phase files"):
        nifti.read_scan([both, phases[0]], echo_times=[0.01, 0.02, 0.03])


def test_headers_that_say_too_little_about_space_are_a_warning(tmp_path):
    image = nibabel.nifti1.Nifti1Image(wrapped(), None)
    image.header.set_zooms((0.8, 1, 2))
    nibabel.loadsave.save(image, tmp_path / "p.nii")
    scan = nifti.read_scan([tmp_path / "p.nii"], echo_times=[0.02], field_strength=3.0)
    assert any("third axis" in sentence for sentence in scan.warnings) and scan.b0_direction == (0, 0, 1)
    assert scan.voxel_size == (0.8, 1, 2)
    image = nibabel.nifti1.Nifti1Image(wrapped(), AFFINE)
    image.header["pixdim"][1:4] = (1, 1, 2)
    nibabel.loadsave.save(image, tmp_path / "q.nii")
    scan = nifti.read_scan([tmp_path / "q.nii"], echo_times=[0.02], field_strength=3.0)
    assert any("voxel size" in sentence for sentence in scan.warnings) and scan.voxel_size == (0.8, 1, 2)


def test_trailing_axes_of_length_one_do_not_matter(tmp_path):
    save(tmp_path / "p.nii", wrapped()[..., None, None])
    volume, affine = nifti.read_volume(tmp_path / "p.nii")
    np.testing.assert_array_equal(volume, wrapped())
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
    save(tmp_path / "q.nii", wrapped(shape=(*SHAPE, 1, 2)))
    scan = nifti.read_scan([tmp_path / "q.nii"], echo_times=[0.01, 0.02], field_strength=3.0)
    assert scan.phase.shape == (2, *SHAPE)
    with pytest.raises(InputError, match="holds 2 volumes"):
        nifti.read_volume(tmp_path / "q.nii")


def test_the_same_volume_gives_the_same_bytes_in_mm_with_both_forms(tmp_path):
    volume = torch.from_numpy(wrapped())
    affine = affines()[1]
    for name in ("a.nii.gz", "b.nii.gz"):
        nifti.write_volume(tmp_path / name, volume, affine, description="susceptibility [ppm]")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert (tmp_path / "a.nii.gz").read_bytes()[4:8] == bytes(4)  # gzip's time stamp
    image = nibabel.loadsave.load(tmp_path / "a.nii.gz")
    header = image.header
    assert header["qform_code"] == header["sform_code"] == 1 and header.get_xyzt_units()[0] == "mm"
    assert header["descrip"].item() == b"susceptibility [ppm]" and header.get_data_dtype() == np.float32
    np.testing.assert_allclose(header.get_qform(), affine, atol=1e-4)
    np.testing.assert_allclose(header.get_sform(), affine, atol=1e-5)
    nifti.write_volume(tmp_path / "m.nii", volume > 0, affine, description="mask")
    assert nibabel.loadsave.load(tmp_path / "m.nii").get_data_dtype() == np.uint8
    with pytest.raises(InputError, match="has to end in"):
        nifti.write_volume(tmp_path / "a.mgz", volume, affine, description="")


def test_the_real_whole_brain_is_read_as_its_sidecar_says(shared_data):
    folder = shared_data / "real" / "epi-whole-brain"
    scan = nifti.read_scan(
        [folder / "part-phase_T2starw.nii.gz"],
        [folder / "part-mag_T2starw.nii.gz"],
        mask=folder / "brain_mask.nii.gz",
    )
    assert isinstance(scan, Scan)
    assert scan.echo_times == (0.03,) and scan.field_strength == 3 and scan.voxel_size == (1.8, 1.8, 3)
    assert scan.phase.abs().max() <= math.pi * 1.0001 and scan.warnings == ()


def test_the_real_multi_echo_block_is_rescaled_by_an_announced_guess(shared_data):
    folder = shared_data / "real" / "multi-echo-block"
    arguments = {"echo_times": [0.004, 0.008, 0.012], "field_strength": 7.0}
    scan = nifti.read_scan([folder / "Phase.nii"], [folder / "Mag.nii"], **arguments)
    assert scan.phase.shape == (3, 51, 51, 41) and scan.phase.abs().max() == pytest.approx(math.pi, abs=1e-4)
    assert len(scan.warnings) == 1 and scan.warnings[0].startswith("Guessed:")
    told = nifti.read_scan([folder / "Phase.nii"], phase_range=(-0.0036743774, 0.0036743774), **arguments)
    torch.testing.assert_close(told.phase, scan.phase, rtol=0, atol=1e-5)
    assert told.warnings == ()


@pytest.mark.parametrize(
    ("shape", "times", "said"),
    [
        ((*SHAPE, 3, 8), [0.004, 0.008, 0.012], "3 x 8 volumes"),  # (x, y, z, echo, channel)
        ((*SHAPE, 1, 3, 8), [0.004, 0.008, 0.012], "1 x 3 x 8 volumes"),
        ((*SHAPE, 24), [0.004, 0.008, 0.012], "gives 3 echo times, .*p.nii holds 24 volumes"),
        ((*SHAPE, 8), 0.004, "gives 1 echo times, .*p.nii holds 8 volumes"),
        ((*SHAPE, 1, 8), 0.004, "gives 1 echo times, .*p.nii holds 8 volumes"),
    ],
)
def test_channels_of_a_coil_are_refused_with_what_to_do(tmp_path, shape, times, said):
    phase = save(tmp_path / "p.nii", wrapped(shape=shape), EchoTime=times, MagneticFieldStrength=3)
    with pytest.raises(InputError, match=f"{said}.*repetitions.*channels of a coil, combine them first") as refused:
        nifti.read_scan([phase])
    assert str(refused.value).count("; if they are") == 1 and "p.nii" in str(refused.value)


def test_channels_beside_echo_times_of_the_user_or_a_combined_phase_are_refused(tmp_path):
    many = save(tmp_path / "many.nii", wrapped(shape=(*SHAPE, 24)))
    one = save(tmp_path / "one.nii", wrapped(shape=(*SHAPE, 3)))
    known = {"echo_times": [0.004, 0.008, 0.012], "field_strength": 3.0}
    combine = "repetitions of one measurement, give one.*channels of a coil, combine them first"
    with pytest.raises(InputError, match=f"--echo-times gives 3 .*many.nii holds 24 echoes; .*{combine}"):
        nifti.read_scan([many], **known)
    magnitude = save(tmp_path / "m.nii", np.abs(wrapped(shape=(*SHAPE, 24))))
    with pytest.raises(InputError, match=f"m.nii holds 24 echoes of magnitude, the phase has 3.*{combine}"):
        nifti.read_scan([one], [magnitude], **known)
    each = [save(tmp_path / f"e{echo}.nii", wrapped(shape=(*SHAPE, 8))) for echo in (1, 2, 3)]
    with pytest.raises(InputError, match=f"e1.nii holds 8 volumes and is one of 3 phase files.*{combine}"):
        nifti.read_scan(each, **known)
    channels = [save(tmp_path / f"c{n}.nii", wrapped(n), EchoTime=0.01, MagneticFieldStrength=3) for n in range(4)]
    with pytest.raises(InputError, match=f"the same echo time.*{combine}"):
        nifti.read_scan(channels)
    # one echo too few or too many is another mistake
    with pytest.raises(InputError, match="holds 3 echoes$"):
        nifti.read_scan([one], echo_times=[0.004, 0.008], field_strength=3.0)
