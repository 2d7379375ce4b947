"""The how-tos' commands on real acquisitions, where those lie beside the checkout."""

import json
import re

import nibabel
import numpy as np
import pytest

from chimap.cli import main


def maps_in(folder):
    def load(name):
        return np.asarray(nibabel.nifti1.load(folder / f"{name}.nii.gz").dataobj)

    return {name: load(name) for name in ("chi", "local_field", "total_field", "mask", "brain_mask")}


def record_in(folder):
    return json.loads((folder / "provenance.json").read_text())


@pytest.mark.parametrize("masked", [True, False])
def test_a_single_echo_of_a_whole_brain(shared_data, tmp_path, masked):
    source = shared_data / "real" / "epi-whole-brain"
    arguments = ["run", "--phase", source / "part-phase_T2starw.nii.gz", "--output", tmp_path / "out"]
    arguments += ["--magnitude", source / "part-mag_T2starw.nii.gz"]
    arguments += ["--mask", source / "brain_mask.nii.gz"] if masked else []
    assert main([str(word) for word in arguments]) == 0
    maps = maps_in(tmp_path / "out")
    mask, given = maps["mask"] > 0, np.asarray(nibabel.nifti1.load(source / "brain_mask.nii.gz").dataobj) > 0
    assert mask.sum() > 0.7 * given.sum()
    if masked:
        assert (maps["brain_mask"] > 0).tobytes() == given.tobytes()  # the user's mask is not altered
    assert 0.03 < maps["chi"][mask].std() < 0.09
    assert maps["local_field"][mask].std() < 0.3 * maps["total_field"][mask].std()
    # caudate and putamen, bright as iron is, on both sides of the midline in a middle slice
    middle = maps["chi"][:, :, 12:20]
    assert np.percentile(middle[mask[:, :, 12:20]], 99) > 0.08


def test_a_phase_difference_from_a_scanner(shared_data, tmp_path):
    source = shared_data / "real" / "siemens-dicom"
    assert main(["run", "--dicom", str(source), "--output", str(tmp_path / "out")]) == 0
    record = record_in(tmp_path / "out")
    assert record["acquisition"]["echo_times_s"] == pytest.approx([0.00246])
    assert record["acquisition"]["voxel_size_mm"] == pytest.approx([3.25, 3.25, 3.6])
    assert not any("Guessed" in sentence for sentence in record["warnings"])
    assert not any("one echo" in sentence for sentence in record["warnings"])
    page = (tmp_path / "out" / "report.html").read_text()
    # pictures and the viewer's volumes hold any three letters by chance
    text = re.sub(r"base64,[\w+/=]+|(?<=>)[\w+/=]{1000,}(?=</script>)", "", page) + json.dumps(record)
    assert "USC" not in text and "67060" not in text
    maps = maps_in(tmp_path / "out")
    assert np.abs(maps["chi"][maps["mask"] > 0]).mean() < 0.1  # a bottle of water


def test_a_block_with_echo_times_from_the_command_line(shared_data, tmp_path):
    source = shared_data / "real" / "multi-echo-block"
    arguments = ["run", "--phase", str(source / "Phase.nii"), "--magnitude", str(source / "Mag.nii")]
    arguments += ["--echo-times", "0.004", "0.008", "0.012", "--field-strength", "3"]
    assert main([*arguments, "--output", str(tmp_path / "guess")]) == 0
    assert sum("Guessed" in sentence for sentence in record_in(tmp_path / "guess")["warnings"]) == 1
    stated = ["--phase-range", "-0.0036744", "0.0036744"]
    assert main([*arguments, *stated, "--output", str(tmp_path / "stated")]) == 0
    assert not any("Guessed" in sentence for sentence in record_in(tmp_path / "stated")["warnings"])
    guess, said = maps_in(tmp_path / "guess"), maps_in(tmp_path / "stated")
    np.testing.assert_allclose(guess["total_field"], said["total_field"], atol=1e-3)


@pytest.mark.parametrize("method", ["tkd", "tv"])
def test_the_local_field_of_a_person(shared_data, tmp_path, method):
    source = shared_data / "real" / "challenge-2016"
    output = tmp_path / "chi.nii.gz"
    arguments = ["invert", "--local-field", source / "local_field_ppm.nii.gz", "--mask", source / "mask.nii.gz"]
    assert main([str(word) for word in [*arguments, "--method", method, "--output", output]]) == 0
    chi = np.asarray(nibabel.nifti1.load(output).dataobj)
    mask = np.asarray(nibabel.nifti1.load(source / "mask.nii.gz").dataobj) > 0
    assert 0.02 < chi[mask].std() < 0.06
    assert (chi[~mask] == 0).all()
