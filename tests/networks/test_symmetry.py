"""Axes exchanged and mirrored: directions fall into one 48th of the sphere, and a network sees no difference."""

import math
from dataclasses import replace
from itertools import permutations, product

import pytest
import torch

from chimap.networks.build import build
from chimap.networks.laplacian import IQSM_PLUS
from chimap.networks.octave import XQSM_PLUS
from chimap.networks.symmetry import NEAR, in_standard_frame, standard_turns, turned, turned_back
from chimap.physics.dipole import DipoleModel

B0 = (0.3, -0.2, 0.9327379053)


def test_every_direction_is_turned_into_one_48th_of_the_sphere():
    for direction in torch.nn.functional.normalize(torch.randn(50, 3), dim=-1):
        order, _ = standard_turns(direction)[0]
        x, y, z = direction[order].abs().tolist()
        assert z >= x >= y >= 0 and z > 0.577


def test_a_turn_is_undone_and_leaves_the_field_of_a_source_the_field_of_a_source():
    chi = torch.randn(1, 6, 8, 10)
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            b0 = torch.tensor([signs[axis] * B0[order[axis]] for axis in range(3)])
            turn = standard_turns(b0)[0]
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


@pytest.mark.parametrize(("b0", "images"), [((0.0, 0.0, -1.0), 8), ((0.0, 0.7071, 0.7071), 4), ((0.45, 0.2, 0.87), 1)])
def test_the_images_of_a_scan_are_different_and_have_b0_where_a_network_knows_it(b0, images):
    direction = torch.nn.functional.normalize(torch.tensor(b0), dim=0)
    turns = standard_turns(direction)
    assert len(turns) == images
    volume = torch.randn(1, 4, 4, 4)
    shown = [turned(volume, turn) for turn in turns]
    upside_down = [one.flip((1, 2, 3)) for one in shown]
    for index, one in enumerate(shown):
        assert not any(torch.equal(one, other) for other in (*shown[index + 1 :], *upside_down[index + 1 :]))
    wanted = turned_direction(direction, turns[0])
    for turn in turns:
        assert float((turned_direction(direction, turn) @ wanted).abs()) >= math.cos(NEAR) - 1e-3


def turned_direction(direction, turn):
    order, mirrored = turn
    return torch.stack([-direction[old] if new in mirrored else direction[old] for new, old in enumerate(order)])


@pytest.mark.parametrize("image", range(8))
def test_an_image_goes_through_the_network_with_its_own_direction_and_comes_back_as_it_was(image):
    """A network that gives the field of its input by the dipole model finds the same in every image."""

    def field_of(chi, b0, size):
        fields = [
            DipoleModel(tuple(one.shape[1:]), tuple(edges.tolist()), tuple(p.tolist()), padding=0)(one)
            for one, p, edges in zip(chi, b0, size, strict=True)
        ]
        return torch.stack(fields)

    chi, size = torch.randn(2, 1, 6, 8, 10), torch.tensor([[1.0, 1.5, 2.0], [1.0, 1.0, 1.0]])
    b0 = torch.nn.functional.normalize(torch.tensor([[0.1, -0.15, -0.95], [0.9, 0.0, 0.1]]), dim=-1)
    found = in_standard_frame(field_of, chi, b0, size, image)
    torch.testing.assert_close(found, field_of(chi, b0, size), rtol=0, atol=1e-5)
