"""Parameter counts of the references, sizes that need padding, and what a network without bias and norm must do."""

from dataclasses import replace

import pytest
import torch

from chimap.networks.apply import predict
from chimap.networks.unet import QSMNET, UQSM, UQSM_CODE, UQSM_PLUS, UNet, UNetShape

TINY = UNetShape(base=2, levels=3)


@pytest.mark.parametrize(
    ("shape", "count"), [(UQSM_CODE, 6_611_377), (UQSM_PLUS, 6_612_025), (QSMNET, 99_453_985), (UQSM, 6_614_857)]
)
def test_parameters_are_as_many_as_the_references(shape, count):
    # uQSM's paper does not give its width; 24 is its code's, 6.61 M with batch normalisation
    with torch.device("meta"):
        network = UNet(shape)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("shape", [TINY, replace(TINY, up="deconvolution", convolutions=2, kernel=5, norm=True)])
@pytest.mark.parametrize("size", [(8, 8, 8), (9, 14, 11), (3, 17, 5)])
def test_any_size_comes_back(shape, size):
    network = UNet(shape).eval()
    assert network(torch.randn(2, 1, *size)).shape == (2, 1, *size)


def test_padding_is_undone_exactly():
    """A volume that fits, set into a larger one of zeros whose padding continues the zeros, gives the same."""
    network = UNet(replace(TINY, bias=False)).eval()
    inner = torch.randn(1, 1, 8, 12, 8)
    odd = inner[..., 1:-1, 1:-1, 1:-1].clone()
    framed = torch.zeros_like(inner)
    framed[..., 1:-1, 1:-1, 1:-1] = odd
    torch.testing.assert_close(network(odd), network(framed)[..., 1:-1, 1:-1, 1:-1])


def test_without_bias_and_norm_twice_the_field_is_twice_the_map():
    network = UNet(replace(TINY, bias=False)).eval()
    volume = torch.randn(1, 1, 12, 12, 12)
    torch.testing.assert_close(network(5 * volume), 5 * network(volume), atol=1e-5, rtol=1e-4)


def test_prediction_is_masked_and_scaled():
    network = UNet(replace(TINY, inputs=2, bias=False)).eval()
    field, mask = torch.randn(1, 9, 10, 11), torch.rand(1, 9, 10, 11) > 0.3
    chi = predict(network, field, mask, input_scale=100.0, output_scale=0.03)
    assert not chi[~mask].any() and chi[mask].any()
    outside = torch.where(mask, field, 77.0)
    torch.testing.assert_close(predict(network, outside, mask, input_scale=100.0, output_scale=0.03), chi)
    doubled = predict(network, field, mask, input_scale=100.0, output_scale=0.06)
    torch.testing.assert_close(doubled, 2 * chi)


def test_instance_normalisation_is_of_each_volume_alone():
    """A batch gives what its members give, learning or in use, and twice the contrast changes nothing."""
    torch.manual_seed(0)
    network = UNet(UNetShape(inputs=2, base=4, levels=2, norm=True, bias=False, outputs=3, instance=True))
    volumes = torch.randn(2, 2, 8, 9, 10)
    both = network.train()(volumes)
    assert both.shape == (2, 3, 8, 9, 10)
    torch.testing.assert_close(torch.cat([network.eval()(one[None]) for one in volumes]), both, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network(2 * volumes), both, atol=1e-3, rtol=1e-2)
