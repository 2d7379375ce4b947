"""Folders with more than one acquisition: the table of them, and the choice."""

from pathlib import Path

import pytest
import torch
from dicom_files import TIMES, write_series

from chimap.commands import dicom as command
from chimap.errors import InputError
from chimap.io import dicom


def write_session(folder: Path) -> None:
    """Localizer, two gradient-echo scans of one protocol, a third of another one, its SWI, and a text file."""
    write_series(folder, "M", {1: 0.004}, number=1, protocol="localizer", ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    for number in (4, 14):
        write_series(folder, "M", TIMES, number=number)
        write_series(folder, "P", TIMES, number=number + 1)
    write_series(folder, "M", {1: 0.02}, number=20, protocol="swi")
    write_series(folder, "P", {1: 0.02}, number=21, protocol="swi")
    write_series(folder, "M", {1: 0.02}, number=22, protocol="swi", ImageType=["DERIVED", "SECONDARY", "M", "SWI"])
    (folder / "protocol.txt").write_text("no image")


def test_the_table_says_what_becomes_of_every_series(tmp_path):
    write_session(tmp_path)
    rows = [(row.series, row.kind, row.use) for row in dicom.survey(tmp_path)]
    assert rows == [
        (1, "magnitude", "not used: other voxels than the phase"),
        (4, "magnitude", "magnitude of 5"),
        (5, "phase", "phase, --series 5"),
        (14, "magnitude", "magnitude of 15"),
        (15, "phase", "phase, --series 15"),
        (20, "magnitude", "magnitude of 21"),
        (21, "phase", "phase, --series 21"),
        (22, "derived", "not used: computed on the scanner (mosaic, projection, SWI, field map)"),
        (None, "", "not used: 1 file, no DICOM file"),
    ]
    phase = dicom.survey(tmp_path)[2]
    assert phase.echo_times == pytest.approx(tuple(TIMES.values()))
    assert phase.shape == (10, 12, 6) and phase.spacing == pytest.approx((2.0, 1.5, 3.0)) and phase.usable


def test_a_number_chooses_one_of_several(tmp_path):
    write_session(tmp_path)
    with pytest.raises(InputError, match=r"series 5 .*series 15 .*series 21 .*choose one of them with --series NUMBER"):
        dicom.read_scan(tmp_path)
    scan = dicom.read_scan(tmp_path, series=[15])
    assert scan.notes[0] == "Phase was read from DICOM series 15, magnitude from series 14."
    assert dicom.read_scan(tmp_path, series=[21]).echo_times == (0.02,)
    other = dicom.read_scan(tmp_path, series=[15, 4])  # the magnitude is chosen, too
    assert other.notes[0] == "Phase was read from DICOM series 15, magnitude from series 4."
    torch.testing.assert_close(other.phase, scan.phase)
    with pytest.raises(InputError, match="there is no series 7"):
        dicom.read_scan(tmp_path, series=[7])
    with pytest.raises(InputError, match="no phase images were found in series 4, but"):
        dicom.read_scan(tmp_path, series=[4])


def test_echoes_in_series_of_their_own_are_chosen_together(tmp_path):
    for first in (7, 17):
        for number, (echo, time) in enumerate(TIMES.items(), start=first):
            write_series(tmp_path, "P", {echo: time}, number=number)
    with pytest.raises(InputError, match="choose one of them with --series NUMBER"):
        dicom.read_scan(tmp_path)
    assert dicom.read_scan(tmp_path, series=[17, 18, 19]).echo_times == pytest.approx(tuple(TIMES.values()))


def test_two_studies_are_never_mixed(tmp_path):
    for study in ("1.2.3", "1.2.4"):
        for kind, number in (("M", 4), ("P", 5)):
            write_series(
                tmp_path / study, kind, TIMES, number=number, series_uid=f"{study}.{number}", StudyInstanceUID=study
            )
    with pytest.raises(InputError, match="put the series of one study into a folder of its own"):
        dicom.read_scan(tmp_path, series=[5])
    rows = dicom.survey(tmp_path)
    assert [row.use for row in rows if row.kind == "phase"] == 2 * ["phase, in a folder of its own"]
    for file in (tmp_path / "1.2.4").glob("5_*"):
        file.unlink()
    for file in (tmp_path / "1.2.3").glob("4_*"):
        file.unlink()
    assert [row.use for row in dicom.survey(tmp_path)] == ["not used: another study than the phase", "phase"]
    assert dicom.read_scan(tmp_path).magnitude is None


def test_what_cannot_be_used_is_listed_with_the_reason(tmp_path):
    write_series(tmp_path / "gap", "P", TIMES, number=5, left_out=2)
    write_series(tmp_path / "gap", "M", TIMES, number=4)
    rows = {row.series: row.use for row in dicom.survey(tmp_path / "gap")}
    assert rows[5].startswith("cannot be used: slices are 3 to 6 mm apart, so some are missing")
    write_series(tmp_path / "channels", "P", {channel: 0.01 for channel in range(1, 5)}, number=5)
    (row,) = dicom.survey(tmp_path / "channels")
    assert (
        "24 images at 6 places" in row.use
        and "repetitions" in row.use
        and "channels of a coil" in row.use
        and not row.usable
    )
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.txt").write_text("no image")
    (tmp_path / "junk" / "b.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    assert len(dicom.survey(tmp_path / "junk")) == 2
    with pytest.raises(InputError, match="is empty"):
        (tmp_path / "nothing").mkdir()
        dicom.survey(tmp_path / "nothing")
    with pytest.raises(InputError, match="is a file; needed the folder .*unpacked"):
        dicom.survey(tmp_path / "gap" / "4_M_1_0.dcm")


def test_the_printed_table_names_no_person_and_no_place(tmp_path, capsys):
    write_session(tmp_path)
    command.survey(tmp_path)
    printed = capsys.readouterr().out
    assert "gre P" in printed and "4, 8.5, 13" in printed and "phase, --series 15" in printed
    assert len(printed.splitlines()) == 10  # one for each row and the heading: no line is broken
    for word in ("Doe", "Jane", "Nowhere", "STATION", "12345"):
        assert word not in printed


def test_the_real_folder_in_the_table(shared_data):
    rows = dicom.survey(shared_data / "real" / "siemens-dicom")
    found = [(row.series, row.kind, row.use) for row in rows]
    assert found == [(2, "magnitude", "magnitude"), (3, "phase", "phase difference, 2.46 ms"), (None, "", found[2][2])]
