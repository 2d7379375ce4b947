"""The weights that come with the package: small, with a card each, and better than TKD on a head nobody trained on."""

from dataclasses import replace

import pytest
import torch

from chimap import from_local_field, methods, metrics, pipeline
from chimap.networks.weights import FOLDER, SUMS, load_trained
from chimap.plan import Plan
from chimap.simulation.acquisition import acquire, local_field_of
from chimap.simulation.field_error import field_error
from chimap.simulation.head import angles_for_b0, built_in_head

NAMES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
STAGES = {"local field": "inversion", "total field": "from total field", "phase": "from phase"}
FROM_FIELD = [name for name in NAMES if load_trained(name).takes == "local field"]
EARLIER = [name for name in NAMES if load_trained(name).takes in ("total field", "phase")]


def test_all_weights_together_still_travel():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 44 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_weights_load_and_have_a_card_and_a_method(name):
    trained = load_trained(name)
    assert not any(parameter.requires_grad for parameter in trained.network.parameters())
    card = (FOLDER / f"{name}.md").read_text()
    for word in ("Recipe", "Command", "Data", "Seed", "Steps", "Time", "Score", "Limits", "First losses"):
        assert word in card
    if trained.takes in STAGES:  # the others are no stage on the way to chi: see tests/test_parcellation.py
        assert methods.find(name, *methods.TO_CHI).stage == STAGES[trained.takes]


def test_every_sum_belongs_to_a_file():
    if not NAMES:
        pytest.skip("no weights are shipped")
    files = [line.split()[1] for line in (FOLDER / SUMS).read_text().splitlines()]
    assert files == sorted(f"{name}.safetensors" for name in NAMES)


@pytest.fixture(scope="module")
def scene():
    """The middle of the built-in head, its field with the error of a real one."""
    head = built_in_head((112, 120, 96), (1.0, 1.0, 1.0), seed=3)
    local = local_field_of(head)
    where = (head.labels, head.mask, head.voxel_size, head.b0_direction)
    error = field_error(*where, share=0.5, local_field=local, generator=torch.Generator().manual_seed(0))
    noise = 5e-4 * torch.randn(head.shape, generator=torch.Generator().manual_seed(1))
    return head, (local + error + noise) * head.mask


def errors(chi, mask, truth):
    return metrics.nrmse(chi, truth, mask, demean=True), metrics.xsim(chi, truth * mask, mask)


@pytest.mark.parametrize("name", FROM_FIELD)
def test_a_learned_method_beats_tkd_where_fields_are_as_on_people(scene, name):
    head, field = scene

    def found(method):
        chi = from_local_field.invert(field, head.mask, head.voxel_size, head.b0_direction, method=method)
        return errors(chi, head.mask, head.chi)

    (learned, similar), (classical, less) = found(name), found("tkd")
    assert learned < classical and similar > less


B0 = {"axial": (0.0, 0.0, 1.0), "oblique": (0.6, 0.0, 0.8)}


@pytest.fixture(scope="module", params=B0)
def scanned(request):
    """A scan of the head, with the true mask, and what V-SHARP and TKD make of it."""
    turn = angles_for_b0(B0[request.param])
    head = built_in_head((112, 120, 96), (1.0, 1.0, 1.0), seed=3, grid_rotation=turn)
    scan, truth = acquire(head, echo_times=(0.008, 0.018, 0.028), field_error=0.5, seed=1)
    scan = replace(scan, mask=truth.mask)
    return scan, truth, pipeline.reconstruct(scan, Plan(background="vsharp", inversion="tkd"))


@pytest.mark.parametrize("name", EARLIER)
def test_a_network_from_an_earlier_stage_beats_vsharp_and_tkd(scanned, name):
    scan, truth, classical = scanned
    maps = pipeline.reconstruct(scan, Plan(inversion=name))
    mask = maps.mask & classical.mask
    assert mask.sum() > 0.8 * truth.mask.sum()
    (learned, similar), (usual, less) = (errors(found.chi, mask, truth.chi) for found in (maps, classical))
    assert learned < usual and similar > less


@pytest.mark.parametrize("name", [name for name in EARLIER if load_trained(name).tilt > 0])
def test_a_wrong_direction_of_b0_makes_the_result_worse(scanned, name):
    scan, truth, _ = scanned
    wrong = replace(scan, b0_direction=(0.0, 0.8, 0.6))
    right, other = (pipeline.reconstruct(one, Plan(inversion=name)) for one in (scan, wrong))
    assert errors(right.chi, right.mask, truth.chi)[0] < errors(other.chi, other.mask, truth.chi)[0] - 5
