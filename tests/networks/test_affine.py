"""AFTER-QSM: the turn takes B0 to z and back, in mm whatever the voxels, and the refinement sees the whole."""

from dataclasses import replace

import torch

from chimap.linalg import shortest_turns
from chimap.networks.affine import AFTER_QSM, resampled
from chimap.networks.build import build
from chimap.physics.dipole import DipoleModel


def ball(shape, size):
    places = torch.meshgrid(
        *[(torch.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, size, strict=True)], indexing="ij"
    )
    return torch.exp(-sum(place**2 for place in places) / 18)


def test_turns_take_z_to_b0_or_its_opposite():
    b0 = torch.nn.functional.normalize(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    turns = shortest_turns(b0)
    torch.testing.assert_close(turns @ turns.transpose(1, 2), torch.eye(3).expand(20, 3, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(turns[:, :, 2] * torch.sign(b0[:, 2:]), b0, rtol=0, atol=1e-5)
    assert float(torch.linalg.det(turns).min()) > 0.999


def test_the_turned_field_of_a_round_source_is_that_of_an_axial_scan():
    shape, size, b0 = (56, 48, 32), (1.0, 1.2, 1.6), (0.5, 0.3, 0.812403840463596)
    chi = ball(shape, size)
    tilted, axial = (DipoleModel(shape, size, b, padding=16)(chi) for b in (b0, (0.0, 0.0, 1.0)))
    turned = resampled(tilted[None, None], shortest_turns(torch.tensor([b0])), torch.tensor([size]))[0, 0]
    inner = (slice(12, -12),) * 3
    error = (turned - axial)[inner].norm() / axial[inner].norm()
    assert error < 0.1 < (tilted - axial)[inner].norm() / axial[inner].norm()


def test_both_maps_come_out_and_the_direction_counts():
    torch.manual_seed(0)
    network = build(replace(AFTER_QSM, base=4, levels=3, width=8, growth=4, blocks=2)).eval().requires_grad_(False)
    channels = torch.cat([torch.randn(2, 1, 15, 16, 18), torch.ones(2, 1, 15, 16, 18)], dim=1)
    z, oblique = torch.tensor([[0.0, 0.0, 1.0]] * 2), torch.tensor([[0.6, 0.0, 0.8]] * 2)
    found, tilted = network(channels, z, torch.ones(2, 3)), network(channels, oblique, torch.ones(2, 3))
    assert found.shape == (2, 2, 15, 16, 18)
    assert float((found - tilted).abs().max()) > 1e-3
    opposite = network(channels, -oblique, torch.ones(2, 3))
    torch.testing.assert_close(opposite, tilted, rtol=0, atol=1e-6)
