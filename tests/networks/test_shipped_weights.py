"""The weights that come with the package: small, with a card each, and better than TKD on a head nobody trained on."""

import pytest
import torch

from chimap import methods, metrics, pipeline
from chimap.networks.weights import FOLDER, SUMS, load_trained
from chimap.simulation.acquisition import local_field_of
from chimap.simulation.field_error import field_error
from chimap.simulation.head import built_in_head

NAMES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def test_all_weights_together_still_travel():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 44 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_weights_load_and_have_a_card_and_a_method(name):
    trained = load_trained(name)
    assert not any(parameter.requires_grad for parameter in trained.network.parameters())
    card = (FOLDER / f"{name}.md").read_text()
    for word in ("Recipe", "Command", "Data", "Seed", "Steps", "Time", "Score", "Limits", "First losses"):
        assert word in card
    methods.find(name, "inversion")


def test_every_sum_belongs_to_a_file():
    if not NAMES:
        pytest.skip("no weights are shipped")
    assert [line.split()[1] for line in (FOLDER / SUMS).read_text().splitlines()] == [f"{n}.safetensors" for n in NAMES]


@pytest.fixture(scope="module")
def scene():
    """The middle of the built-in head, its field with the error of a real one."""
    head = built_in_head((112, 120, 96), (1.0, 1.0, 1.0), seed=3)
    local = local_field_of(head)
    where = (head.labels, head.mask, head.voxel_size, head.b0_direction)
    error = field_error(*where, share=0.5, local_field=local, generator=torch.Generator().manual_seed(0))
    noise = 5e-4 * torch.randn(head.shape, generator=torch.Generator().manual_seed(1))
    return head, (local + error + noise) * head.mask


@pytest.mark.parametrize("name", NAMES)
def test_a_learned_method_beats_tkd_where_fields_are_as_on_people(scene, name):
    head, field = scene

    def error(method):
        chi = pipeline.invert(field, head.mask, head.voxel_size, head.b0_direction, method=method)
        return metrics.nrmse(chi, head.chi, head.mask, demean=True), metrics.xsim(chi, head.chi * head.mask, head.mask)

    (learned, similar), (classical, less) = error(name), error("tkd")
    assert learned < classical and similar > less
