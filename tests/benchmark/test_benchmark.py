"""The benchmark on a coarse head: cases are what they say, tables are whole, failures stay where they are."""

import json
import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chimap import methods, metrics
from chimap.benchmark import cases, inputs, memory, run, tables
from chimap.cli import main
from chimap.errors import InputError
from chimap.lesion_metrics import LESION_CHI
from chimap.simulation.head import angles_for_b0, built_in_head

SHAPE = (40, 48, 40)
NAMES = [case.name for case in cases.CASES]
BY_NAME = {case.name: case for case in cases.CASES}


@pytest.fixture(scope="module")
def person():
    """The built-in head, made once for each grid."""
    (one,) = cases.people([])
    return replace(one, make=cache(one.make))


@pytest.fixture(scope="module")
def simulator(person):
    return cases.Simulator(person, SHAPE)


def read(path):
    """Refuses what strict JSON does not know: NaN and infinities."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_the_cases_are_those_of_the_plan():
    wanted = {"axial", "oblique", "anisotropic", "low-snr", "haemorrhage", "calcification", "calcification-low-snr"}
    wanted |= {"7t", "single-echo", "linearity", *(f"orientation-{angle:02d}" for angle in range(0, 91, 10))}
    wanted |= {f"{name}-real" for name in ("axial", "oblique", "anisotropic", "haemorrhage", "calcification")}
    assert set(NAMES) == wanted
    assert all((case.field_error > 0) == case.name.endswith("-real") for case in cases.CASES)
    assert BY_NAME["oblique"].angle == pytest.approx(45)
    chi = [lesion.chi for lesion in BY_NAME["calcification"].lesions]
    assert min(chi) == -3.3 and max(chi) == -2.0
    assert BY_NAME["calcification"].snr > BY_NAME["calcification-low-snr"].snr


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("orientation")])
def test_every_case_can_be_made(simulator, name):
    case = BY_NAME[name]
    subject = simulator(case)
    scan, truth = subject.scan, subject.truth
    assert scan.problems() == [] and scan.echo_times == case.echo_times and scan.field_strength == case.field_strength
    np.testing.assert_allclose(scan.b0_direction, case.b0, atol=1e-6)
    extent = [n * size for n, size in zip(scan.shape, scan.voxel_size, strict=True)]
    np.testing.assert_allclose(extent, cases.FIELD_OF_VIEW)
    assert truth.mask.float().mean() > 0.15  # the brain fills the grid as it should
    low, high = float(truth.chi.min()), float(truth.chi.max())
    if case.lesions:
        assert (low < -1.0) == ("calcification" in name) and (high > 0.7) == ("haemorrhage" in name)
    shares = float(truth.field_error[truth.mask].std()) / float(truth.local_field[truth.mask].std())
    if case.lesions and case.field_error:
        assert 0 < shares < 0.8 * case.field_error  # lesions make the field, but not its error
    else:
        assert shares == pytest.approx(case.field_error, rel=1e-3)


def test_the_field_error_is_that_of_the_head_without_lesions(simulator):
    spread = [
        float(truth.field_error[truth.mask].std())
        for truth in (simulator(BY_NAME[name]).truth for name in ("axial-real", "calcification-real"))
    ]
    assert spread[0] == pytest.approx(spread[1], rel=1e-3)


def test_orientations_turn_b0_and_keep_chi(simulator):
    first, field = None, None
    for angle in (0, 40, 90):
        subject = simulator(BY_NAME[f"orientation-{angle:02d}"])
        b0 = subject.scan.b0_direction
        assert math.degrees(math.acos(b0[2])) == pytest.approx(angle, abs=0.1)
        first = subject.truth.chi if first is None else first
        assert torch.equal(subject.truth.chi, first)
        assert field is None or not torch.allclose(subject.truth.local_field, field, atol=1e-3)
        field = subject.truth.local_field


def test_a_turned_head_is_the_one_made_with_grid_and_head_turned():
    b0 = BY_NAME["orientation-40"].b0
    straight = built_in_head((20, 24, 20), (8.0, 8.0, 8.0), seed=3)
    angles = angles_for_b0(b0)
    made = built_in_head((20, 24, 20), (8.0, 8.0, 8.0), grid_rotation=angles, head_rotation=angles, seed=3)
    turned = cases.turned(straight, b0)
    np.testing.assert_allclose(turned.affine, made.affine, atol=1e-5)
    assert float((turned.chi - made.chi).abs().max()) < 0.01 * float(made.chi.abs().max())
    np.testing.assert_allclose(turned.b0_direction, b0, atol=1e-6)


def test_spots_have_their_values_and_keep_apart(simulator):
    subject = simulator(BY_NAME["linearity"])
    assert sorted(spot.chi for spot in subject.spots) == sorted(LESION_CHI)
    size = np.asarray(subject.scan.voxel_size)
    middles = np.asarray([spot.centre for spot in subject.spots]) * size
    apart = np.linalg.norm(middles[:, None] - middles, axis=2) + 1e3 * np.eye(len(middles))
    assert apart.min() > 4 * cases.TEST_RADIUS
    regions = [cases.spot_region(subject.head, spot) for spot in subject.spots]
    assert int(torch.stack(regions).sum(dim=0).max()) == 1
    means = [float(subject.truth.chi[where].mean()) for where in regions]
    line = np.polyfit([spot.chi for spot in subject.spots], means, 1)
    assert np.corrcoef([spot.chi for spot in subject.spots], means)[0, 1] > 0.99
    assert 0.6 < line[0] < 1.0  # of voxels of 4 mm that a sphere of 5 mm fills in part


def test_names_beginnings_and_patterns_choose_cases():
    def named(*patterns):
        return [case.name for case in cases.chosen(patterns)]

    assert named("axial") == ["axial"]
    assert named("*-real") == [name for name in NAMES if name.endswith("-real")]
    assert named("orientation") == [name for name in NAMES if name.startswith("orientation-")]
    assert named("7t", "axial") == ["axial", "7t"]
    assert [case.name for case in cases.chosen(None)] == NAMES


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (("--cases", "axail"), "no case is called 'axail'; there are axial-real"),
        (("--methods", "tkd", "vsharp"), "no method for the benchmark is called 'vsharp'; there are tkd"),
        (("--methods", "none/best.safetensors"), "there is no file none/best.safetensors"),
        (("--shape", "4", "4", "4"), "needed three lengths"),
        (("--device", "abacus"), "--device abacus cannot be used"),
        (("--labels", "missing.npz"), "missing.npz does not exist"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(tmp_path, capsys, extra, sentence):
    assert main(["benchmark", *extra, "--output", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tables_have_a_row_for_every_method_case_and_track(person, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cases, "people", lambda label_maps: [person])
    names = ["calcification-real", "axial", "linearity", "orientation-00", "orientation-90"]
    wanted = ["tkd", "tikhonov"]
    arguments = ["benchmark", "--shape", *map(str, SHAPE), "--methods", *wanted, "--cases", *names]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert "full chain" in capsys.readouterr().out
    found = read(tmp_path / "out" / "benchmark.json")
    keys = {(row["case"], row["track"], row["method"]) for row in found["rows"]}
    assert keys == {(case, track, method) for case in names for track in inputs.TRACKS for method in wanted}
    assert len(found["rows"]) == len(keys)
    assert all(row["failure"] is None and row["seconds"] > 0 for row in found["rows"])
    assert all(one["failure"] is None and one["true mask kept [%]"] > 50 for one in found["field stages"])
    for one in found["speed"]["methods"].values():
        assert len(one["seconds"]) == run.ROUNDS and one["peak memory [MiB]"] > 0.3  # one volume is 0.3 MiB
    values = {(row["case"], row["track"], row["method"]): row["values"] for row in found["rows"]}
    assert values["calcification-real", "inversion", "tkd"]["calcification: deviation of the moment [%]"] > 0
    assert 0.4 < values["linearity", "inversion", "tkd"]["lesions: slope"] < 1
    assert found["machine"]["threads"] == torch.get_num_threads()

    text = (tmp_path / "out" / "benchmark.md").read_text(encoding="utf-8")
    assert "Not full scale" in text and str(tmp_path) not in text
    for case in names:
        section = text.split(f"## {case}\n")[1].split("\n## ")[0]
        for track in inputs.TRACKS:
            for method in wanted:
                assert section.count(f"| {track} | {method} |") == 1
    pictures = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert pictures == {*names, "bars-nrmse", "bars-xsim", "orientation", "spots"}


def test_a_value_in_the_table_is_that_of_the_metric(person, simulator, tmp_path):
    case = BY_NAME["axial-real"]
    (tkd,) = inputs.chosen(["tkd"])
    study = run.run([case], [tkd], [person], shape=SHAPE, pictures=tmp_path)
    row = next(row for row in study.rows if row.track == "inversion")
    truth = simulator(case).truth
    assert (tmp_path / "axial-real.png").stat().st_size > 10_000
    given = run._of_truth(simulator(case), person.seed)
    error = (given.local_field - truth.local_field)[truth.mask].std() / truth.local_field[truth.mask].std()
    assert 0.5 < float(error) < 0.7  # field error and noise are there
    chi, valid = inputs.ENTRIES["inversion"].call(given, "tkd")
    assert torch.equal(valid, given.mask)
    assert row.values["NRMSE [%]"] == pytest.approx(metrics.nrmse(chi, truth.chi, truth.mask, demean=True), rel=1e-4)
    assert study.timed == "axial-real"  # "axial" was not chosen


def test_a_method_that_fails_costs_its_own_rows_only(person, tmp_path, monkeypatch):
    tkd = methods.find("tkd", "inversion")
    broken, refuses = replace(tkd, name="broken"), replace(tkd, name="refuses")
    entry = inputs.ENTRIES["inversion"]

    def call(given, name):
        if name == "broken":
            raise ValueError("a | b\nc")
        if name == "refuses":
            raise InputError("this field is not for me")
        return entry.call(given, name)

    monkeypatch.setitem(inputs.ENTRIES, "inversion", replace(entry, call=call))
    case = BY_NAME["axial"]
    chosen = [broken, tkd, refuses]
    study = run.run([case], chosen, [person], shape=SHAPE, pictures=tmp_path)
    failures = {row.method: row.failure for row in study.rows}
    assert failures == {"broken": "ValueError: a | b c", "tkd": None, "refuses": "this field is not for me"}
    assert {one.method for one in study.speed if one.failure} == {"broken", "refuses"}
    machine = tables.machine_record("cpu")
    text = tables.markdown(study, [case], chosen, shape=SHAPE, command="chimap benchmark", machine=machine)
    assert "failed: ValueError: a \\| b c |" in text and "failed: this field is not for me |" in text
    section = text.split("## axial\n")[1]
    widths = {line.replace("\\|", "").count("|") for line in section.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_a_map_that_is_not_finite_is_a_failure(person, tmp_path, monkeypatch):
    tkd = methods.find("tkd", "inversion")
    entry = replace(inputs.ENTRIES["inversion"], call=lambda given, name: (given.local_field / 0, given.mask))
    monkeypatch.setitem(inputs.ENTRIES, "inversion", entry)
    study = run.run([BY_NAME["axial"]], [tkd], [person], shape=SHAPE, pictures=tmp_path)
    assert all(row.failure == "chi is not finite everywhere in the mask" for row in study.rows)
    text = tables.record(
        study, [BY_NAME["axial"]], [tkd], shape=SHAPE, command=["chimap"], machine=tables.machine_record("cpu")
    )
    assert "NaN" not in text and "Infinity" not in text


def test_a_case_that_cannot_be_made_is_reported(person, tmp_path):
    case = BY_NAME["haemorrhage"]
    huge = replace(case, lesions=(replace(case.lesions[0], radius=60.0),))
    (tkd,) = inputs.chosen(["tkd"])
    study = run.run([huge, BY_NAME["axial"]], [tkd], [person], shape=SHAPE, pictures=tmp_path)
    failed = [row for row in study.rows if row.failure]
    assert {row.case for row in failed} == {"haemorrhage"} and len(failed) == 2
    assert "no place for a haemorrhage" in str(failed[0].failure)
    assert [path.stem for path in tmp_path.iterdir()] == ["axial"]
    text = tables.markdown(
        study,
        [huge, BY_NAME["axial"]],
        [tkd],
        shape=SHAPE,
        command="chimap benchmark",
        machine=tables.machine_record("cpu"),
    )
    assert "figures/axial.png" in text and "figures/haemorrhage.png" not in text


def test_of_several_heads_the_table_has_means_and_the_record_each(person, tmp_path):
    case = BY_NAME["axial"]
    (tkd,) = inputs.chosen(["tkd"])
    other = replace(person, name="another", seed=person.seed + 1)
    study = run.run([case], [tkd], [person, other], shape=SHAPE, pictures=tmp_path)
    assert [(row.head, row.track) for row in study.rows] == [
        (one.name, track) for one in (person, other) for track in inputs.TRACKS
    ]
    assert {path.stem for path in tmp_path.iterdir()} == {"axial", "axial-head2"}
    rows = [row for row in study.rows if row.track == "inversion"]
    low, high = sorted(row.values["NRMSE [%]"] for row in rows)
    assert low < tables.typical(rows, "NRMSE [%]") < high
    machine = tables.machine_record("cpu")
    text = tables.markdown(study, [case], [tkd], shape=SHAPE, command="chimap benchmark", machine=machine)
    assert "2 heads (built-in head, another)" in text and "axial-head2.png" in text
    assert text.count("| inversion | tkd |") == 2  # overview and case


def test_memory_is_that_of_the_method_and_not_of_its_parent():
    ballast = torch.ones(60, 2**20)  # 240 MiB that the child must not count
    grid = torch.zeros(SHAPE)
    grid[10:30, 10:30, 10:30] = 1.0
    given = inputs.Inputs(grid * 0.1, grid > 0, (1.0, 1.0, 1.0), (0.0, 0.0, 1.0), echo_times=(0.01,))
    (tkd,) = inputs.chosen(["tkd"])
    peak = memory.peak_memory(given, tkd, torch.device("cpu"))
    assert 0.3 < peak < 100 and ballast.sum() > 0


def test_a_child_that_ends_badly_says_why(monkeypatch):
    answer = SimpleNamespace(returncode=-9, stdout="", stderr="")
    monkeypatch.setattr(memory.subprocess, "run", lambda *arguments, **options: answer)
    grid = torch.ones(8, 8, 8)
    given = inputs.Inputs(grid, grid > 0, (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))
    with pytest.raises(RuntimeError, match="ended with status -9"):
        memory.peak_memory(given, methods.find("tkd", "inversion"), torch.device("cpu"))


def test_inputs_survive_the_way_to_another_process(tmp_path):
    grid = torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(0))
    given = inputs.Inputs(
        grid,
        grid > 0.5,
        (1.0, 1.5, 2.0),
        (0.0, 0.6, 0.8),
        phase=grid[None],
        echo_times=(0.01,),
        field_strength=7.0,
    )
    inputs.write_inputs(tmp_path, given)
    back = inputs.read_inputs(tmp_path)
    for name, tensor in given.tensors().items():
        assert torch.equal(back.tensors()[name], tensor)
    assert (back.voxel_size, back.b0_direction, back.echo_times) == ((1.0, 1.5, 2.0), (0.0, 0.6, 0.8), (0.01,))
    assert back.field_strength == 7.0 and back.total_field is None


def test_one_dnrmse_out_of_bounds_does_not_make_the_table():
    rows = [run.Row("a", "h", "inversion", "m", {"dNRMSE [%]": value, "slope": value}) for value in (1.0, 2.0, 1e6)]
    assert tables.typical(rows, "dNRMSE [%]") == 2.0
    assert tables.typical(rows, "slope") == pytest.approx(1000003 / 3)
    assert math.isnan(tables.typical(rows, "XSIM"))
