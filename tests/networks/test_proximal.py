"""LPCNN: as many parameters as published, steps towards the data, any size and direction."""

from dataclasses import replace

import pytest
import torch

from chimap.networks.build import build
from chimap.networks.proximal import LPCNN
from chimap.physics.dipole import DipoleModel

MM = torch.ones(1, 3)


def test_it_has_as_many_parameters_as_published():
    assert sum(parameter.numel() for parameter in build(LPCNN).parameters()) == 446_337


def test_a_pass_has_the_steps_and_no_more():
    """With the learned map the identity, what is left is gradient descent on the misfit."""
    network = build(replace(LPCNN, base=1, blocks=0, start=2.0)).eval().requires_grad_(False)
    network.first = network.last = torch.nn.Identity()
    chi = torch.zeros(1, 1, 14, 15, 16)
    chi[..., 5:9, 6:9, 7:10] = 1.0
    b0 = (0.6, 0.0, 0.8)
    dipole = DipoleModel((14, 15, 16), (1.0, 1.0, 1.0), b0, padding=8)
    field = dipole(chi)
    expected = torch.zeros_like(chi)
    for _ in range(3):
        expected = torch.relu(expected + 2.0 * dipole(field - dipole(expected)))
    found = network(torch.cat([field, torch.ones_like(field)], dim=1), torch.tensor([b0]), MM)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 12, 17), (16, 16, 16)])
def test_any_size_goes_through_and_the_direction_counts(size):
    torch.manual_seed(0)
    network = build(replace(LPCNN, base=4, blocks=1)).eval().requires_grad_(False)
    channels = torch.cat([torch.randn(1, 1, *size), torch.ones(1, 1, *size)], dim=1)
    found = network(channels, torch.tensor([[0.0, 0.0, 1.0]]), MM)
    assert found.shape == (1, 1, *size)
    tilted = network(channels, torch.tensor([[0.0, 0.6, 0.8]]), MM)
    assert float((found - tilted).abs().max()) > 1e-3 * float(found.abs().max())
