"""Axes exchanged and mirrored: directions fall into one 48th of the sphere, and a network sees no difference."""

from dataclasses import replace
from itertools import permutations, product

import pytest
import torch

from chimap.networks.build import build
from chimap.networks.laplacian import IQSM_PLUS
from chimap.networks.octave import XQSM_PLUS
from chimap.networks.symmetry import standard_turn, turned, turned_back
from chimap.physics.dipole import DipoleModel

B0 = (0.3, -0.2, 0.9327379053)


def test_every_direction_is_turned_into_one_48th_of_the_sphere():
    for direction in torch.nn.functional.normalize(torch.randn(50, 3), dim=-1):
        order, _ = standard_turn(direction)
        x, y, z = direction[order].abs().tolist()
        assert z >= x >= y >= 0 and z > 0.577


def test_a_turn_is_undone_and_leaves_the_field_of_a_source_the_field_of_a_source():
    chi = torch.randn(1, 6, 8, 10)
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            b0 = torch.tensor([signs[axis] * B0[order[axis]] for axis in range(3)])
            turn = standard_turn(b0)
            there = turned(chi, turn)
            assert torch.equal(turned_back(there, turn), chi)
            size = (1.0, 1.5, 2.0)
            new_size = tuple(size[axis] for axis in turn[0])
            new_b0 = tuple(b0[turn[0]].abs().tolist())
            x, y, z = there.shape[1:]
            field = DipoleModel((6, 8, 10), size, tuple(b0.tolist()), padding=0)(chi)
            again = DipoleModel((x, y, z), new_size, new_b0, padding=0)(there)
            torch.testing.assert_close(turned(field, turn), again, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        replace(IQSM_PLUS, base=8, pools=1, standard_frame=True),
        replace(XQSM_PLUS, base=4, pools=1, standard_frame=True),
    ],
)
def test_a_network_in_the_standard_frame_finds_the_same_whatever_way_the_axes_run(shape):
    torch.manual_seed(0)
    network = build(shape).eval().requires_grad_(False)
    channels, size = torch.randn(2, 2 if shape.kind == "instant" else 1, 8, 12, 16), torch.ones(2, 3)
    b0 = torch.nn.functional.normalize(torch.tensor([[0.1, 0.2, 0.9], [0.8, -0.3, 0.4]]), dim=-1)
    found = network(channels, b0, size)
    order, mirrored = [2, 0, 1], [0, 2]
    other = b0[:, order] * torch.tensor([-1.0, 1.0, -1.0])
    again = network(turned_batch(channels, order, mirrored), other, size)
    torch.testing.assert_close(again, turned_batch(found, order, mirrored), rtol=0, atol=1e-5)
    wrong = network(channels, b0.flip(0), size)
    assert float((wrong - found).abs().max()) > 1e-3


def turned_batch(volumes, order, mirrored):
    return torch.stack([turned(one, (order, mirrored)) for one in volumes])
