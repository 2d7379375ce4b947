"""xQSM's network: two grids, any size, and a direction that matters."""

from dataclasses import replace

import pytest
import torch

from chimap.networks.build import build
from chimap.networks.octave import XQSM, OctaveShape

TINY = OctaveShape(base=4)
Z = torch.tensor([[0.0, 0.0, 1.0]])
MM = torch.ones(1, 3)


def test_parameters_are_those_of_the_layers_added_up():
    """Counted by hand for half-width h of a level; the published network states no number."""

    def conv(a, b, edge):
        return a * b * edge**3 + b

    def norm(n):
        return 2 * n

    def octave(inputs, outputs):
        a, b = inputs // 2, outputs // 2
        return 4 * (conv(a, b, 3) + norm(b)) + conv(b, b, 2)

    def up(n):
        h = n // 2
        return 2 * conv(h, h, 2) + conv(h, h, 4) + conv(h, h, 3) + 2 * norm(h)

    first = 2 * (conv(1, 32, 3) + norm(32)) + octave(64, 64)
    down = octave(64, 64) + octave(64, 64) + octave(64, 128) + octave(128, 128)
    middle = octave(128, 256) + octave(256, 128)
    upwards = up(128) + octave(256, 128) + octave(128, 64) + up(64) + octave(128, 64) + octave(64, 64)
    join = 2 * (conv(32, 64, 3) + norm(64)) + conv(64, 64, 2) + conv(64, 1, 1)
    count = sum(parameter.numel() for parameter in build(XQSM).parameters())
    assert count == first + down + middle + upwards + join


@pytest.mark.parametrize("shape", [TINY, replace(TINY, oriented=True)])
@pytest.mark.parametrize("size", [(8, 8, 8), (9, 20, 11)])
def test_any_size_comes_back(shape, size):
    network = build(shape).eval()
    assert network(torch.rand(2, 1, *size), Z.expand(2, 3), MM.expand(2, 3)).shape == (2, 1, *size)


def test_the_field_is_added_to_what_is_found():
    network = build(TINY).eval()
    torch.nn.init.zeros_(network.last.weight)
    torch.nn.init.zeros_(network.last.bias)
    field = torch.randn(1, 1, 9, 10, 11)
    assert torch.equal(network(field, Z, MM), field)


def test_the_direction_matters_to_the_plus_alone():
    field, tilted = torch.rand(1, 1, 16, 16, 16), torch.tensor([[0.6, 0.0, 0.8]])
    plus = build(replace(TINY, oriented=True, coding="tensor")).eval()
    with torch.no_grad():
        assert not torch.allclose(plus(field, Z, MM), plus(field, tilted, MM))
        torch.testing.assert_close(plus(field, -tilted, MM), plus(field, tilted, MM))
        plain = build(TINY).eval()
        assert torch.equal(plain(field, Z, MM), plain(field, tilted, MM))
