"""NeXtQSM's network: as many parameters as the references, and steps down the energy that its docstring states."""

from dataclasses import replace

import pytest
import torch

from chimap.networks import variational
from chimap.networks.build import build
from chimap.networks.variational import NEXTQSM, NEXTQSM_RELEASED, VariationalShape
from chimap.physics.dipole import DipoleModel

TINY = VariationalShape(levels=3, base=2, prior_base=2, steps=3)
B0 = torch.tensor([[0.0, 0.6, 0.8]])
SIZE = torch.tensor([[1.0, 1.0, 1.5]])


REFERENCES = [(NEXTQSM, (10_605_809, 29_009)), (NEXTQSM_RELEASED, (28_301_553, 10_605_809))]


@pytest.mark.parametrize(("shape", "counts"), REFERENCES)
def test_parameters_are_as_many_as_the_references(shape, counts):
    with torch.device("meta"):
        network = build(shape)
    for part, count in zip((network.background, network.prior), counts, strict=True):
        assert sum(parameter.numel() for parameter in part.parameters()) == count
    assert network.data_weights.numel() == 6


@pytest.mark.parametrize("size", [(8, 8, 8), (9, 14, 11)])
def test_any_size_gives_local_field_and_chi(size):
    network = build(TINY)
    channels = torch.rand(2, 2, *size)
    with torch.no_grad():
        assert network(channels, B0.expand(2, 3), SIZE.expand(2, 3)).shape == (2, 2, *size)


def scene(shape=(16, 16, 16)):
    torch.manual_seed(0)
    chi = torch.zeros(1, 1, *shape)
    chi[..., 6:10, 5:9, 7:11] = 1.0
    dipole = DipoleModel(shape, (1.0, 1.0, 1.5), (0.0, 0.6, 0.8), padding=8)
    return chi, dipole(chi), dipole


@pytest.mark.parametrize("penalty", ["squares", "absolute"])
@pytest.mark.parametrize("shape", [(16, 16, 16), (13, 17, 14)])
@pytest.mark.parametrize("levels", [2, 3])
def test_a_step_goes_down_the_stated_energy(penalty, shape, levels):
    _, field, dipole = scene(shape)
    network = build(replace(TINY, steps=1, penalty=penalty, prior_levels=levels))
    channels = torch.cat([field, torch.ones_like(field), field], dim=1)
    found = network(channels, B0, SIZE)[:, 1:]
    x = field.clone().requires_grad_()
    given = network.prior(x)
    penalised = given.square().sum() / 2 if penalty == "squares" else given.abs().sum()
    energy = network.data_weights[0] * (dipole(x) - field).square().sum() / 2 + penalised
    (slope,) = torch.autograd.grad(energy, x)
    torch.testing.assert_close(found, field - slope, atol=1e-5, rtol=1e-4)


def test_without_a_regulariser_the_data_are_met_ever_better():
    _, field, dipole = scene()
    misfits = []
    for steps in (1, 4, 16):
        network = build(replace(TINY, steps=steps))
        torch.nn.init.zeros_(network.prior.last.weight)
        torch.nn.init.zeros_(network.prior.last.bias)
        with torch.no_grad():
            chi = network(torch.cat([field, torch.ones_like(field), field], dim=1), B0, SIZE)[:, 1:]
        misfits.append(float((dipole(chi) - field).norm()))
    assert misfits[2] < 0.7 * misfits[1] < 0.7 * misfits[0]


def test_learning_reaches_both_networks_and_inference_gives_the_same():
    _, field, _ = scene()
    network = build(TINY)
    channels = torch.cat([field, torch.ones_like(field)], dim=1)
    found = network(channels, B0, SIZE)
    found[:, 1].square().mean().backward()
    for parameter in (network.background.last.weight, network.prior.down[0].weight, network.data_weights):
        assert float(parameter.grad.abs().max()) > 0
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(channels, B0, SIZE), found.detach())


def test_a_residual_network_that_finds_no_background_leaves_the_field():
    _, field, _ = scene()
    network = build(replace(TINY, residual=True))
    torch.nn.init.zeros_(network.background.last.weight)
    torch.nn.init.zeros_(network.background.last.bias)
    with torch.no_grad():
        local = network(torch.cat([field, torch.ones_like(field)], dim=1), B0, SIZE)[:, :1]
    assert torch.equal(local, field)


@pytest.mark.parametrize("size", [(16, 16, 24), (9, 14, 11)])
def test_without_gradients_it_gives_the_same(size, monkeypatch):
    """There the last convolution is a product of matrices, some slices at a time."""
    monkeypatch.setattr(variational, "_AT_ONCE", 300)
    network = build(replace(TINY, penalty="none", begun=True)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    channels = torch.rand(2, 3, *size)
    expected = network(channels, B0.expand(2, 3), SIZE.expand(2, 3))
    with torch.no_grad():
        found = network(channels, B0.expand(2, 3), SIZE.expand(2, 3))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max()))
