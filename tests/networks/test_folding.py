"""Folding a normalisation into a convolution changes nothing but the time."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from chimap.networks.build import build
from chimap.networks.folding import fold
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
