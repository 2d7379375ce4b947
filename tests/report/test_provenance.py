"""Enough to do it again, and nothing about who did it."""

import hashlib
import json
import math
import platform
from dataclasses import replace

import pytest

from chimap.report.provenance import provenance, write_provenance

COMMAND = [
    "chimap",
    "run",
    "--phase",
    "/home/jane doe/p.nii",
    "--output=/home/jane doe/out",
    r"C:\jane\m.nii",
]


def test_inputs_are_named_with_their_checksum(scan, maps, plan):
    record = provenance(scan, maps, plan, command=COMMAND)
    assert record["inputs"] == [{"name": "sub-1_phase.nii.gz", "sha256": hashlib.sha256(b"abc").hexdigest()}]


def test_no_folder_user_or_host_is_recorded(scan, maps, plan, tmp_path):
    write_provenance(tmp_path / "p.json", scan, maps, plan, command=COMMAND)
    text = (tmp_path / "p.json").read_text()
    assert json.loads(text)["command"][3:] == ["p.nii", "--output=out", "m.nii"]
    assert "The phase of sub-1_phase.nii.gz was scaled" in text
    for secret in ("jane", "private folder", str(tmp_path.parent), platform.node() or "no host name"):
        assert secret not in text


def test_a_file_that_is_gone_costs_no_maps(scan, maps, plan):
    record = provenance(replace(scan, files=("gone.nii",)), maps, plan, command=[])
    assert record["inputs"] == [{"name": "gone.nii", "sha256": None}]


def test_every_parameter_is_recorded_with_the_users_settings_over_the_defaults(scan, maps, plan):
    tv = provenance(scan, maps, plan, command=[])["methods"]["inversion"]
    assert tv["name"] == "tv" and "doi:10.1002/mrm.25029" in tv["reference"]
    assert tv["parameters"]["regularisation"] == 7e-4
    assert tv["parameters"]["iterations"] > 0
    assert list(tv["changed_from_default"]) == ["regularisation"]


def test_the_file_reads_back_sorted_with_units_in_the_names(scan, maps, plan, tmp_path):
    path = tmp_path / "out" / "provenance.json"
    noted = replace(scan, warnings=("Rows\n[\n1,\n  2] stay.",))
    write_provenance(path, noted, maps, plan, command=["chimap"], seed=7)
    record = json.loads(path.read_text())
    assert list(record) == sorted(record)
    assert record["seed"] == 7
    assert record["acquisition"]["echo_times_s"] == [0.005, 0.01, 0.0175]
    assert record["acquisition"]["affine_mm"][3] == [0, 0, 0, 1]
    assert record["warnings"] == ["Rows\n[\n1,\n  2] stay."]
    assert record["seconds"] == {"mask": 0.5, "inversion": 1.25}
    assert record["created_utc"].endswith("+00:00")
    assert {"chimap", "python", "torch", "numpy", "scipy", "nibabel"} <= set(record["versions"])
    assert '"shape": [33, 40, 27]' in path.read_text()


def test_infinity_has_a_name_in_json(scan, maps, plan, tmp_path):
    endless = replace(plan, settings={"tv": {"tolerance": math.inf}})
    write_provenance(tmp_path / "p.json", scan, maps, endless, command=[])
    record = json.loads((tmp_path / "p.json").read_text())
    assert record["methods"]["inversion"]["parameters"]["tolerance"] == "inf"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(scan, maps, plan, tmp_path):
    path = tmp_path / "provenance.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_provenance(path, scan, replace(maps, notes=("new \ud800",)), plan, command=[])
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["provenance.json"]
