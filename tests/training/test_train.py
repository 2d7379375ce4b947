"""The loop: every recipe learns, a killed training ends like one that was not, two processes are one."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from chimap.cli import main
from chimap.errors import InputError
from chimap.io.nifti import write_volume
from chimap.networks.build import build
from chimap.networks.weights import load_trained, read_trained
from chimap.simulation.labels import write_packed
from chimap.training.augmentation import flipped
from chimap.training.publish import publish
from chimap.training.recipes.fields import dipoles
from chimap.training.recipes.table import RECIPES, find
from chimap.training.samples import draw_batch
from chimap.training.settings import changed, from_json, to_json
from chimap.training.train import learning_rate, read_best, train, validation_samples

TINY = [
    "samples.shape=16,16,16", "samples.voxel_sizes=5,5,5", "batch=2",
    "samples.sources=0",  # pockets of air are smaller than such voxels
    "validate_every=4", "checkpoint_every=3", "validation_samples=2", "bf16=false",
]  # fmt: skip
OF_KIND = {
    "unet": ["network.base=2", "network.levels=3"],
    "instant": ["network.base=2", "network.pools=2", "network.kernels=2"],
    "proximal": ["network.base=4", "network.blocks=1"],
    "affine": ["network.base=2", "network.levels=3", "network.width=4", "network.growth=2"],
    "octave": ["network.base=4", "network.pools=1"],
    "variational": ["network.base=4", "network.levels=3", "network.prior_base=2", "network.steps=2"],
}
"""By the network's kind, to be small."""


def tiny(name, *more):
    settings = find(name).sizes["cpu"]
    kind = settings.network.kind
    return changed(settings, [*TINY, *OF_KIND[kind], *more])


def run(name, folder, label_map, settings, **options):
    options = {"device": torch.device("cpu"), "tell": lambda line: None} | options
    draw = partial(draw_batch, [label_map], settings.samples)
    return train(find(name), settings, draw, validation_samples([label_map], settings), folder, **options)


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_every_recipe_has_its_settings_in_two_sizes(name, size):
    settings = find(name).sizes[size]
    assert settings.recipe == name
    assert from_json(to_json(settings)) == settings


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_learns(name, label_map, tmp_path):
    """On one sample again and again, the loss falls and the map comes closer."""
    recipe, settings = find(name), tiny(name, "steps=30", "learning_rate=0.01", "samples.field_error=0,0")
    torch.manual_seed(0)
    network, sample = build(settings.network), draw_batch([label_map], settings.samples, [0, 1])
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    seen = []
    for _ in range(30):
        optimiser.zero_grad()
        # uQSM+ weighs its consistency by the step: held here, so that the loss is one function
        parts = recipe.loss(network, sample, settings, 10, torch.Generator().manual_seed(1))
        parts["loss"].backward()
        optimiser.step()
        seen.append(float(parts["loss"].detach()))
    assert seen[-1] < 0.8 * seen[0]


def test_a_training_writes_settings_log_checkpoint_and_best(label_map, tmp_path):
    settings = tiny("qsmnet+", "steps=8")
    best = run("qsmnet+", tmp_path, label_map, settings)
    assert from_json((tmp_path / "settings.json").read_text()) == settings
    entries = logged(tmp_path)
    assert [entry["step"] for entry in entries] == list(range(8))
    scores = [entry["validation"] for entry in entries if "validation" in entry]
    weights, read, record = read_best(best)
    assert read == settings and record["score"] == min(scores)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000008"]
    assert {path.name for path in (tmp_path / "step-00000008").iterdir()} == {
        "weights.safetensors",
        "optimiser.safetensors",
    }
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())


@pytest.mark.parametrize("name", ["uqsm+", "qsmnet"])
def test_a_stopped_training_ends_like_one_that_was_not(name, label_map, tmp_path):
    settings = tiny(name, "steps=8")
    whole = run(name, tmp_path / "whole", label_map, settings)
    # stopped after five steps, killed in the sixth: the log is longer than the checkpoint
    with pytest.raises(KeyboardInterrupt):
        run(name, tmp_path / "parts", label_map, settings, tell=interrupt_at(4))
    log = tmp_path / "parts" / "log.jsonl"
    log.write_text(log.read_text() + json.dumps({"step": 3}) + '\n{"step": 4, "lo')
    parts = run(name, tmp_path / "parts", label_map, settings, resume=True)
    expected, _, record = read_best(whole)
    found, _, again = read_best(parts)
    assert record["score"] == again["score"] and record["step"] == again["step"]
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    losses = [[entry["loss"] for entry in logged(tmp_path / folder)] for folder in ("whole", "parts")]
    assert losses[0] == losses[1]


def interrupt_at(step):
    def tell(line):
        if line.startswith(f"step {step} "):
            raise KeyboardInterrupt

    return tell


def test_a_folder_of_another_training_is_refused(label_map, tmp_path):
    settings = tiny("qsmnet", "steps=2")
    run("qsmnet", tmp_path, label_map, settings)
    with pytest.raises(InputError, match="holds a training already"):
        run("qsmnet", tmp_path, label_map, settings)
    with pytest.raises(InputError, match="other settings"):
        run("qsmnet", tmp_path, label_map, replace(settings, seed=5), resume=True)


def test_two_processes_are_one(label_map, tmp_path):
    """Two processes on loopback, half of each batch each, learn what one process learns."""
    write_packed(tmp_path / "heads.npz", [label_map, label_map])
    arguments = ["-m", "chimap.cli", "train", "qsmnet", "--data", str(tmp_path / "heads.npz"), "--device", "cpu"]
    # a network without batch normalisation, whose statistics each process has for itself
    arguments += [
        part for text in [*TINY, *OF_KIND["unet"], "steps=3", "network.norm=false"] for part in ("--set", text)
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *arguments, "--output", str(tmp_path / "one")], check=True, env=environment, timeout=120
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    more = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        subprocess.Popen(
            [sys.executable, *arguments, "--output", str(tmp_path / "two")],
            env=environment | more | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    expected, _, _ = read_best(tmp_path / "one" / "best.safetensors")
    found, _, _ = read_best(tmp_path / "two" / "best.safetensors")
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=2e-5, rtol=1e-3)


def test_the_command_trains_plots_and_goes_on(label_map, tmp_path, capsys):
    write_packed(tmp_path / "heads.npz", [label_map, label_map])
    command = [
        "train",
        "uqsm",
        "--data",
        str(tmp_path / "heads.npz"),
        "--output",
        str(tmp_path / "run"),
        "--steps",
        "4",
    ]
    command += [part for text in [*TINY, *OF_KIND["unet"]] for part in ("--set", text)]
    assert main([*command, "--minutes", "0"]) == 0
    assert len(logged(tmp_path / "run")) == 1
    assert main([*command, "--resume"]) == 0
    assert len(logged(tmp_path / "run")) == 4
    assert (tmp_path / "run" / "log.png").stat().st_size > 1000
    assert "Best weights" in capsys.readouterr().out
    assert main(command) == 2
    assert "holds a training already" in capsys.readouterr().err


def write_scan(folder, seed, *, chi):
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    mask = torch.zeros(20, 22, 24, dtype=torch.bool)
    mask[2:-2, 2:-2, 2:-2] = True
    volumes = {"local_field": 0.01 * torch.randn(mask.shape, generator=generator), "mask": mask}
    if chi:
        volumes["chi"] = 0.03 * torch.randn(mask.shape, generator=generator)
    for name, volume in volumes.items():
        write_volume(folder / f"{name}.nii.gz", volume, affine, description=name)


def test_scans_of_ones_own_are_learned_from(label_map, tmp_path, capsys):
    write_packed(tmp_path / "heads.npz", [label_map])
    for index in range(2):
        write_scan(tmp_path / "scans" / f"sub-{index}", index, chi=index == 0)
    command = ["train", "uqsm+", "--data", str(tmp_path / "scans"), "--steps", "2"]
    command += [part for text in [*TINY, *OF_KIND["unet"]] for part in ("--set", text)]
    assert main([*command, "--output", str(tmp_path / "none")]) == 2
    assert "--validation" in capsys.readouterr().err
    command += ["--validation", str(tmp_path / "heads.npz")]
    assert main([*command, "--output", str(tmp_path / "run")]) == 0
    assert "2 people to learn from" in capsys.readouterr().out
    assert main(["train", "qsmnet", *command[2:], "--output", str(tmp_path / "other")]) == 2
    assert "sub-1 holds no chi.nii.gz" in capsys.readouterr().err
    for name, needed in (("iqsm+", "wrapped phase"), ("nextqsm", "total fields")):
        assert main(["train", name, "--data", str(tmp_path / "scans"), "--output", str(tmp_path / "other")]) == 2
        assert f"{name} learns from {needed}" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("batch", "NAME=VALUE"),
        ("depth=3", "no setting 'depth'"),
        ("network=3", "of its own"),
        ("batch=two", "two"),
        ("weights.varation=1", "there are variation"),
        ("choices.augmentation=none", "there are fidelity"),
    ],
)
def test_settings_that_do_not_fit_are_refused(assignment, words):
    with pytest.raises(InputError, match=words):
        changed(find("uqsm").sizes["cpu"], [assignment])


def test_settings_reach_inside():
    settings = changed(
        find("uqsm").sizes["cpu"],
        ["network.base=7", "samples.snr=3,4", "weights.variation=0.5", "samples.voxel_sizes=1,1,1,1,1,2", "bf16=false"],
    )
    assert settings.network.base == 7 and settings.samples.snr == (3.0, 4.0) and settings.weights["variation"] == 0.5
    assert settings.samples.voxel_sizes == ((1.0, 1.0, 1.0), (1.0, 1.0, 2.0)) and settings.bf16 is False


def test_learning_rates_by_hand():
    settings = replace(find("uqsm").sizes["cpu"], steps=1000, learning_rate=1.0)
    assert learning_rate(0, settings) == pytest.approx(0.01)
    assert learning_rate(500, settings) == pytest.approx(0.5)
    stairs = replace(settings, schedule="exponential", decay=0.9, decay_steps=200)
    assert learning_rate(650, stairs) == pytest.approx(0.9**3)


def test_validation_has_the_error_of_real_fields(label_map):
    settings = tiny("qsmnet+")
    samples = validation_samples([label_map], settings)
    again = validation_samples([label_map], settings)
    assert len(samples) == 2 and torch.equal(samples[0].chi, again[0].chi)
    for sample in samples:
        error = (sample.measured_local_field - sample.local_field)[sample.mask].std()
        assert 0.3 < float(error / sample.local_field[sample.mask].std()) < 0.8


def test_a_choice_that_does_not_exist_is_refused_before_anything_is_written(label_map, tmp_path, capsys):
    write_packed(tmp_path / "heads.npz", [label_map, label_map])
    command = ["train", "uqsm+", "--data", str(tmp_path / "heads.npz"), "--output", str(tmp_path / "run")]
    assert main([*command, "--set", "choices.solid=cube"]) == 2
    assert "cuboid" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def one_loss(recipe, settings, sample):
    torch.manual_seed(0)
    network = build(settings.network)
    return float(find(recipe).loss(network, sample, settings, 10, torch.Generator().manual_seed(1))["loss"].detach())


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_choice_is_another_loss(recipe, label_map):
    settings = tiny(recipe, "weights.noise=0.02") if recipe == "uqsm+" else tiny(recipe)
    sample = draw_batch([label_map], settings.samples, [0, 1])
    for name, values in find(recipe).choices.items():
        found = {one_loss(recipe, changed(settings, [f"choices.{name}={value}"]), sample) for value in values}
        assert len(found) == len(values)


def test_a_mirrored_sample_obeys_the_dipole_model_as_before(label_map):
    settings = tiny("uqsm", "samples.tilt=1.2", "samples.field_error=0,0", "samples.snr=1e6,1e6", "samples.blobs=0")
    sample = draw_batch([label_map], settings.samples, [3, 4])

    def misfit(one):
        fields = torch.stack([model(chi) for model, chi in zip(dipoles(one), one.chi, strict=True)])
        return float(((fields - one.local_field) * one.mask).norm())

    generators = [torch.Generator().manual_seed(seed) for seed in range(6)]
    mirrored = [flipped(sample, generator) for generator in generators]
    assert len({tuple(one.b0_direction[0].sign().tolist()) for one in mirrored}) == 4  # either axis, both, neither
    for one in mirrored:
        assert misfit(one) == pytest.approx(misfit(sample), rel=1e-3)
    wrong = replace(mirrored[0], b0_direction=mirrored[0].b0_direction * torch.tensor([-1.0, 1.0, 1.0]))
    assert misfit(wrong) > 1.1 * misfit(sample)


def test_frozen_statistics_let_a_strong_field_be_strong(label_map, tmp_path):
    """With the statistics of its own batch a network would give ten times the field the same chi."""
    settings = tiny("qsmnet+", "steps=6", "freeze_norm=0.5", "samples.invert=0", "validate_every=100")
    run("qsmnet+", tmp_path / "frozen", label_map, settings)
    run("qsmnet+", tmp_path / "free", label_map, replace(settings, freeze_norm=1.0))
    frozen, free = (
        {
            key: value
            for key, value in load_file(tmp_path / name / "step-00000006" / "weights.safetensors").items()
            if key.startswith("network.") and key.endswith("num_batches_tracked")
        }
        for name in ("frozen", "free")
    )
    assert {int(value) for value in frozen.values()} == {3}
    assert {int(value) for value in free.values()} == {6}


def test_a_network_of_ones_own_scans_is_used_in_their_frame(label_map, tmp_path):
    write_packed(tmp_path / "heads.npz", [label_map])
    write_scan(tmp_path / "scans" / "sub-0", 0, chi=False)
    command = ["train", "uqsm+", "--data", str(tmp_path / "scans"), "--validation", str(tmp_path / "heads.npz")]
    command += [part for text in [*TINY, *OF_KIND["unet"]] if "voxel" not in text for part in ("--set", text)]
    assert main([*command, "--steps", "1", "--output", str(tmp_path / "run")]) == 0
    weights = tmp_path / "run" / "best.safetensors"
    assert read_trained(weights).voxel_sizes == ((5.0, 5.0, 5.0),)
    scan, chi = tmp_path / "scans" / "sub-0", tmp_path / "chi.nii.gz"
    invert = ["invert", "--local-field", str(scan / "local_field.nii.gz"), "--mask", str(scan / "mask.nii.gz")]
    invert += ["--output", str(chi), "--method", str(weights)]
    assert main([*invert, "--set", f"{weights}.refinement=1"]) == 0
    record = json.loads((tmp_path / "chi.json").read_text())
    assert record["method"] == "best.safetensors" and record["parameters"]["refinement"] == 1
    assert record["frame"] == "the scan's own" and str(tmp_path) not in json.dumps(record)


def test_a_training_begins_with_the_weights_of_another(label_map, tmp_path, capsys):
    write_packed(tmp_path / "heads.npz", [label_map, label_map])
    small = [part for text in [*TINY, *OF_KIND["unet"]] for part in ("--set", text)]
    command = ["train", "qsmnet", "--data", str(tmp_path / "heads.npz"), "--steps", "2", *small, "--output"]
    assert main([*command, str(tmp_path / "first")]) == 0
    first = tmp_path / "first" / "best.safetensors"
    more = [str(tmp_path / "second"), "--start", str(first), "--set", "learning_rate=0"]
    assert main([*command, *more, "--set", "freeze_norm=0"]) == 0
    expected, _, before = read_best(first)
    found, settings, record = read_best(tmp_path / "second" / "best.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert record["begun"]["seconds"] == before["seconds"] and len(settings.start) == 16
    publish(tmp_path / "second", "mine", [label_map], tmp_path / "weights")
    assert "weights of `qsmnet`, step 2 of 2" in (tmp_path / "weights" / "mine.md").read_text()
    with pytest.raises(InputError, match="is not what the training began with"):
        publish(tmp_path / "second", "mine", [label_map], tmp_path / "weights", start=tmp_path / "heads.npz")
    capsys.readouterr()
    for extra, words in [
        (["--start", str(first), "--set", "network.base=4"], "is not the"),
        (["--start", str(first), "--set", "input_scale=3"], "other scales"),
        (["--start", str(tmp_path / "no.safetensors")], "no such file"),
        (["--start", "nobody"], "no weights of 'nobody'"),
    ]:
        assert main([*command, str(tmp_path / "third"), *extra]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "third").exists()


def test_published_weights_may_be_the_mean_of_what_was_and_what_became(label_map, tmp_path):
    write_packed(tmp_path / "heads.npz", [label_map, label_map])
    small = [part for text in [*TINY, *OF_KIND["unet"]] for part in ("--set", text)]
    command = ["train", "qsmnet", "--data", str(tmp_path / "heads.npz"), "--steps", "1", *small, "--output"]
    assert main([*command, str(tmp_path / "first")]) == 0
    start = tmp_path / "first" / "best.safetensors"
    assert main([*command, str(tmp_path / "second"), "--start", str(start), "--seed", "5"]) == 0
    path = publish(tmp_path / "second", "mine", [label_map], tmp_path / "weights", start=start, share=0.25)
    before, after, found = (read_best(one)[0] for one in (start, tmp_path / "second" / "best.safetensors", path))
    moved = 0.0
    for name, value in found.items():
        if not value.is_floating_point():
            continue
        expected = 0.25 * before[name] + 0.75 * after[name]
        torch.testing.assert_close(value, expected, atol=0.01 * float(expected.abs().max()) + 1e-6, rtol=0)
        moved += float((after[name] - before[name]).abs().sum())
    assert moved > 0
    assert "step 1, by 75%, and of what it was begun with, by 25%" in path.with_suffix(".md").read_text()


def test_xqsm_begins_as_xqsm_plus_is_on_axial_scans(label_map, tmp_path):
    write_packed(tmp_path / "heads.npz", [label_map, label_map])
    small = [part for text in [*TINY, *OF_KIND["octave"]] for part in ("--set", text)]
    command = ["--data", str(tmp_path / "heads.npz"), "--steps", "1", *small, "--output"]
    assert main(["train", "xqsm+", *command, str(tmp_path / "told")]) == 0
    start = tmp_path / "told" / "best.safetensors"
    more = ["--start", str(start), "--set", "learning_rate=0", "--set", "freeze_norm=0"]
    assert main(["train", "xqsm", *command, str(tmp_path / "plain"), *more]) == 0
    weights, settings, _ = read_best(start)
    told = build(settings.network).eval()
    told.load_state_dict(weights)
    weights, settings, _ = read_best(tmp_path / "plain" / "best.safetensors")
    plain = build(settings.network).eval()
    plain.load_state_dict(weights)
    volumes, b0, size = torch.rand(1, 1, 16, 16, 16), torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1, 3)
    torch.testing.assert_close(plain(volumes, b0, size), told(volumes, b0, size), rtol=1e-3, atol=1e-4)
    start = tmp_path / "plain" / "best.safetensors"
    assert main(["train", "xqsm+", *command, str(tmp_path / "back"), "--start", str(start)]) == 2


@pytest.mark.parametrize("name", ["qsmnet", "iqsm+", "nextqsm"])
def test_published_weights_are_checked_and_say_where_they_come_from(name, label_map, tmp_path, capsys):
    write_packed(tmp_path / "heads.npz", [label_map, label_map])
    command = ["train", name, "--data", str(tmp_path / "heads.npz"), "--output", str(tmp_path / "run")]
    settings = tiny(name)
    small = [part for text in [*TINY, *OF_KIND[settings.network.kind]] for part in ("--set", text)]
    assert main([*command, "--steps", "2", *small]) == 0
    path = publish(tmp_path / "run", "mine", [label_map], tmp_path / "weights")
    assert sorted(one.name for one in path.parent.iterdir()) == ["SHA256SUMS", "mine.md", "mine.safetensors"]
    trained = load_trained("mine", path.parent)
    assert trained.recipe == name and trained.takes == settings.takes
    card = (path.parent / "mine.md").read_text()
    assert "Stored** in" in card and f"chimap train {name} --data heads.npz" in card
    angle = "0 degrees" if name == "qsmnet" else "90 degrees"
    assert f"5 x 5 x 5 mm, B0 up to {angle}" in card and ("told to the network" in card) == (name != "qsmnet")
    assert str(tmp_path) not in card
