"""Folding a normalisation into a convolution changes nothing but the time."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from chimap.networks.build import build
from chimap.networks.folding import at_direction, fold
from chimap.networks.laplacian import IQSM, IQSM_PLUS
from chimap.networks.octave import XQSM_PLUS
from chimap.networks.unet import QSMNET


@pytest.mark.parametrize(
    ("shape", "channels", "left"),
    [
        (replace(QSMNET, base=2, levels=3), 1, 0),
        (replace(IQSM, base=2, pools=2), 2, 0),
        (replace(IQSM_PLUS, base=2, pools=2), 2, 0),
        (replace(IQSM_PLUS, base=2, pools=2, edit_kernel=False), 2, 0),
        (replace(IQSM_PLUS, base=2, pools=2, edit_vectors=False), 2, 11),
        (replace(XQSM_PLUS, base=4), 1, None),
    ],
)
def test_a_folded_network_gives_the_same(shape, channels, left):
    torch.manual_seed(0)
    network = build(shape)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias)
    network.eval().requires_grad_(False)
    volumes = torch.rand(2, channels, 16, 16, 24)
    b0 = nn.functional.normalize(torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.2, 0.0]]), dim=-1)
    size = torch.ones(2, 3)
    before = network(volumes, b0, size)
    count = sum(isinstance(module, nn.BatchNorm3d) for module in network.modules())
    fold(network)
    after = network(volumes, b0, size)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    norms = sum(isinstance(module, nn.BatchNorm3d) for module in network.modules())
    assert norms == (count if left is None else left)


@pytest.mark.parametrize("standard_frame", [False, True])
@pytest.mark.parametrize("more", [{}, {"edit_vectors": False}, {"edit_kernel": False, "coding": "tensor"}])
@pytest.mark.parametrize(
    ("shape", "channels"), [(replace(IQSM_PLUS, base=2, pools=1), 2), (replace(XQSM_PLUS, base=4), 1)]
)
def test_at_one_direction_a_network_that_is_told_it_is_a_plain_one(shape, channels, more, standard_frame):
    """Without OA-LFE, with the axes as they are; at another direction it is another one."""
    torch.manual_seed(0)
    shape = replace(shape, standard_frame=standard_frame, **more)
    network = build(shape).eval()
    plain = build(replace(shape, oriented=False, standard_frame=False)).eval()
    b0 = nn.functional.normalize(torch.tensor([0.8, -0.3, 0.4]), dim=-1)
    plain.load_state_dict(at_direction(network, b0))
    volumes, size = 6 * torch.rand(1, channels, 16, 24, 16), torch.ones(1, 3)
    with torch.no_grad():
        expected, found = network(volumes, b0[None], size), plain(volumes, b0[None], size)
        elsewhere = network(volumes, torch.tensor([[0.0, 0.0, 1.0]]), size)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.std()))
    assert (found - elsewhere).std() > 3e-4 * expected.std()
