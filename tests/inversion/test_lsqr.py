import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator
from scipy.sparse.linalg import lsqr as scipy_lsqr

from chimap.inversion.direct import tkd
from chimap.inversion.lsqr import (
    EDGES,
    FLAT,
    data_weight,
    edge_weights,
    falling,
    fast_qsm,
    ilsqr,
    lsqr,
    neighbours,
    percentile,
    star,
    streaks,
)
from chimap.inversion.total_variation import total_variation
from chimap.linalg import SPACE, ahead, crop, irfft, rfft
from chimap.physics.dipole import DipoleModel

VOXEL = (0.8, 1.0, 2.0)
OBLIQUE = (0.2, 0.3, 0.9)
SHAPES = [(18, 15, 16), (19, 14, 17)]


def box_field(shape=(18, 15, 16), padding=0):
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[2:-2, 1:-2, 2:-3] = True
    dipole = DipoleModel(shape, VOXEL, OBLIQUE, padding=padding)
    chi = torch.zeros(shape)
    chi[5:10, 5:9, 6:10] = 0.1
    return (dipole(chi) + 0.002 * torch.randn(shape, generator=generator)) * mask, mask, dipole


def everywhere(shape):
    return torch.ones(shape, dtype=torch.bool)


def cycled(volume):
    return volume.permute(2, 0, 1).contiguous()


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_those_of_lsqr_from_tkd(shape):
    field, mask, dipole = box_field(shape, padding=3)
    weight = 0.5 + torch.rand(shape)
    padded, scale = dipole.padded_shape, data_weight(field, mask, dipole, weight, FLAT).double()
    d = dipole.spectrum.double()

    def there(chi):
        chi = torch.from_numpy(chi).reshape(padded)
        return (scale * irfft(rfft(chi) * d, padded, shape)).numpy().ravel()

    def back(residual):
        return irfft(rfft(scale * torch.from_numpy(residual).reshape(shape), padded) * d, padded).numpy().ravel()

    matrix = LinearOperator((field.numel(), int(np.prod(padded))), there, back, dtype=np.float64)
    start = irfft(rfft(field.double(), padded) * inverse_of(d), padded)
    residual = (scale * field).double().numpy().ravel()
    expected = scipy_lsqr(matrix, residual, atol=0, btol=0, conlim=0, iter_lim=6, x0=start.numpy().ravel())[0]
    found = lsqr(field, mask, dipole, weight, iterations=6, tolerance=0.0)
    expected = crop(torch.from_numpy(expected).reshape(padded), shape).float() * mask
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
