"""iQSM's networks: as many parameters as the references, a Laplacian that wraps and masks do not touch, orientation."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from chimap.networks.build import build
from chimap.networks.laplacian import IQSM, IQSM_PLUS, InstantShape, LaplacianOfPhase, laplacian_stencil
from chimap.networks.orientation import OrientationCode, OrientedConv

TINY = InstantShape(base=2, pools=2, kernels=3)
ORIENTED = replace(TINY, fixed_first=False, stem=True, oriented=True)
Z = torch.tensor([[0.0, 0.0, 1.0]])
MM = torch.ones(1, 3)


@pytest.mark.parametrize(
    ("shape", "count"),
    # the reference counts the learned stencils apart: 15 of iQSM's 16, all of iQSM+'s
    [(replace(IQSM, kernels=1), 4_298_497), (IQSM, 4_304_977 + 15 * 27), (IQSM_PLUS, 4_347_348 + 16 * 27)],
)
def test_parameters_are_as_many_as_the_references(shape, count):
    assert sum(parameter.numel() for parameter in build(shape).parameters()) == count


def test_the_stencil_is_a_laplacian():
    stencil = laplacian_stencil()
    assert float(stencil.sum()) == pytest.approx(0, abs=1e-6)
    x, y, z = torch.meshgrid(*[torch.arange(-1.0, 2.0)] * 3, indexing="ij")
    for along in (x, y, z):
        assert float((stencil * along).sum()) == pytest.approx(0, abs=1e-6)
        assert float((stencil * along.square()).sum()) == pytest.approx(2, abs=1e-5)


def test_the_laplacian_of_wrapped_phase_is_that_of_the_phase():
    x, y, z = torch.meshgrid(*[torch.arange(12.0)] * 3, indexing="ij")
    phase = 0.04 * x * x - 0.07 * y * z + 0.9 * z  # many turns; Laplacian 0.08
    wrapped = torch.atan2(phase.sin(), phase.cos())
    assert float(phase.max()) > 2 * math.pi
    layer = LaplacianOfPhase(2, fixed_first=True)
    found = layer(wrapped[None, None]).detach()[0, :, 1:-1, 1:-1, 1:-1]
    torch.testing.assert_close(found, layer(phase[None, None]).detach()[0, :, 1:-1, 1:-1, 1:-1], atol=1e-4, rtol=1e-3)
    # the sines of differences of up to 1 rad fall short of them
    assert float(found.mean()) == pytest.approx(0.08, rel=0.4)


def test_nothing_beyond_the_mask_is_seen():
    network = build(ORIENTED).eval()
    phase, gain = torch.randn(1, 1, 10, 11, 9), torch.full((1, 1, 10, 11, 9), 0.2)
    gain[..., 7:, :, :] = 0
    found = network(torch.cat([phase, gain], dim=1), Z, MM)
    other = torch.where(gain > 0, phase, torch.randn_like(phase))
    torch.testing.assert_close(network(torch.cat([other, gain], dim=1), Z, MM), found)


@pytest.mark.parametrize("shape", [TINY, ORIENTED])
@pytest.mark.parametrize("size", [(8, 8, 8), (9, 14, 11)])
def test_any_size_comes_back(shape, size):
    network = build(shape).eval()
    assert network(torch.rand(2, 2, *size), Z.expand(2, 3), MM.expand(2, 3)).shape == (2, 1, *size)


@pytest.mark.parametrize("edge", [3, 5])
@pytest.mark.parametrize("switched_off", [None, "kernel", "vectors"])
def test_an_edited_convolution_is_the_convolution_and_the_edit_beside_it(edge, switched_off):
    conv = nn.Conv3d(3, 4, edge, padding=edge // 2)
    switches = {} if switched_off is None else {switched_off: False}
    module, code = OrientedConv(conv, **switches), torch.randn(2, 5)
    x = torch.randn(2, 3, 7, 6, 8)
    kernels, scales, shifts = module.edits(code)
    beside = torch.stack(
        [
            torch.conv3d(one.mean(dim=0)[None, None], kernel[None, None], padding=1)[0, 0]
            for one, kernel in zip(x, kernels, strict=True)
        ]
    )
    expected = conv(x) + scales[..., None, None, None] * beside[:, None] + shifts[..., None, None, None]
    torch.testing.assert_close(module(x, code), expected, atol=1e-5, rtol=1e-4)
    if switched_off == "kernel":
        torch.testing.assert_close(beside, x.mean(dim=1))
    if switched_off == "vectors":
        assert (scales == 1).all() and not shifts.any()


def test_the_direction_matters_and_its_sign_does_not():
    torch.manual_seed(3)
    network = build(replace(ORIENTED, coding="tensor")).eval()
    channels = torch.rand(1, 2, 12, 12, 12)
    tilted = torch.tensor([[0.6, 0.0, 0.8]])
    found = network(channels, tilted, MM).detach()
    torch.testing.assert_close(network(channels, -tilted, MM).detach(), found)
    assert float((network(channels, Z, MM).detach() - found).abs().max()) > 1e-4
    assert not torch.allclose(OrientationCode("vector")(tilted), OrientationCode("vector")(-tilted))
