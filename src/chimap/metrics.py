"""How far a map is from the truth.

Definitions follow the 2016 and 2019 reconstruction challenges (Langkammer et al. 2018, doi:10.1002/mrm.26830;
Marques et al. 2021, doi:10.1002/mrm.28716) and XSIM (Milovic et al. 2024, doi:10.1002/mrm.30271). All take
chi [ppm], truth [ppm] and a mask, shape (x, y, z), and count voxels inside the mask only unless they say otherwise.
"""

import torch
from torch import Tensor

from chimap.arrays import Mask, Volume
from chimap.linalg import bounding_box, fast_shape, irfft, rfft


def nrmse(chi: Volume, truth: Volume, mask: Mask, *, demean: bool = False) -> float:
    """Root mean square error as a share of the truth's [%]: 100 |chi - truth| / |truth|.

    `demean` subtracts the means inside the mask first, as the 2019 challenge did and the 2016 one did not.
    """
    a, b = _inside(chi, mask), _inside(truth, mask)
    if demean:
        a, b = a - a.mean(), b - b.mean()
    return float(100 * (a - b).norm() / b.norm())


def dnrmse(chi: Volume, truth: Volume, mask: Mask) -> float:
    """NRMSE [%] after the best line has been taken out: 100 sqrt(1 / rho^2 - 1), rho the correlation.

    chi is regressed on the truth and the line inverted, so that the measure does not change with the scale of chi.
    """
    rho = correlation(chi, truth, mask)
    return float("inf") if rho == 0 else 100 * max(1 / rho**2 - 1, 0) ** 0.5


def correlation(chi: Volume, truth: Volume, mask: Mask) -> float:
    """Pearson's correlation coefficient."""
    a, b = _inside(chi, mask), _inside(truth, mask)
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()))


def slope(chi: Volume, truth: Volume, mask: Mask) -> float:
    """Slope of the least-squares line of chi over the truth; below 1 where chi is underestimated."""
    a, b = _inside(chi, mask), _inside(truth, mask)
    b = b - b.mean()
    return float(((a - a.mean()) * b).sum() / b.square().sum())


def hfen(chi: Volume, truth: Volume, mask: Mask) -> float:
    """High-frequency error norm [%]: NRMSE of both maps, masked and filtered by a Laplacian of Gaussian.

    The filter has 15^3 taps and sigma 1.5 voxels, its mean is removed, and the grid is continued by zeros; the
    norm is taken over the whole grid.
    """
    x = torch.arange(-7, 8, dtype=torch.float64)
    squared = x[:, None, None] ** 2 + x[:, None] ** 2 + x**2
    sigma2 = 1.5**2
    gauss = torch.exp(-squared / (2 * sigma2))
    gauss = gauss / gauss.sum()
    kernel = (squared / sigma2**2 - 3 / sigma2) * gauss
    kernel = kernel - kernel.mean()
    chi, truth, mask = _around_mask(chi, truth, mask, reach=7)
    a = _convolve(chi.double() * mask, kernel)
    b = _convolve(truth.double() * mask, kernel)
    return float(100 * (a - b).norm() / b.norm())


def ssim(chi: Volume, truth: Volume, mask: Mask) -> float:
    """Structural similarity as in the 2016 challenge: both maps rescaled together to 0..255, window sigma 1.5, 5^3.

    The smaller minimum of the two is subtracted from the voxels that are not zero, then both are divided by the
    larger maximum; the mean is over the voxels where the masked chi is not zero. The value depends on the range
    of both maps: compare only within one study.

    References:
        Wang et al. 2004, doi:10.1109/TIP.2003.819861.
    """
    chi, truth, mask = _around_mask(chi, truth, mask)
    a, b = _rescaled(chi, truth, mask)
    similarity = _similarity(a, b, _gaussian(1.5, 2), c1=(0.01 * 255) ** 2, c2=(0.03 * 255) ** 2, replicate=False)
    return float(similarity[chi * mask != 0].mean())


def psnr(chi: Volume, truth: Volume, mask: Mask) -> float:
    """Peak signal to noise ratio [dB] after the rescaling of `ssim`: peak 255, error over the whole grid."""
    a, b = _rescaled(*_around_mask(chi, truth, mask))
    return float(10 * torch.log10(255**2 / ((a - b).square().sum() / mask.numel())))


def xsim(chi: Volume, truth: Volume, mask: Mask) -> float:
    """Structural similarity in native ppm: L = 1, K = (0.01, 0.001), window sigma 1.5, 7^3, edges replicated.

    References:
        Milovic et al. 2024, doi:10.1002/mrm.30271.
    """
    chi, truth, mask = _around_mask(chi, truth, mask)
    similarity = _similarity(
        chi.double() * mask, truth.double() * mask, _gaussian(1.5, 3), c1=1e-4, c2=1e-6, replicate=True
    )
    return float(similarity[mask].mean())


def summary(chi: Volume, truth: Volume, mask: Mask) -> dict[str, float]:
    """All of the above by name, units in the names; NRMSE demeaned and not."""
    return {
        "NRMSE [%]": nrmse(chi, truth, mask),
        "NRMSE, demeaned [%]": nrmse(chi, truth, mask, demean=True),
        "dNRMSE [%]": dnrmse(chi, truth, mask),
        "HFEN [%]": hfen(chi, truth, mask),
        "XSIM": xsim(chi, truth, mask),
        "SSIM": ssim(chi, truth, mask),
        "PSNR [dB]": psnr(chi, truth, mask),
        "correlation": correlation(chi, truth, mask),
        "slope": slope(chi, truth, mask),
    }


def _inside(volume: Volume, mask: Mask) -> Tensor:
    return volume[mask].double()


def _around_mask(chi: Tensor, truth: Tensor, mask: Tensor, *, reach: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Cut to the mask's bounding box and `reach` voxels around it: heads have much air, and no value changes.

    Masked maps are zero further out. A rim of 1 keeps a zero in the range of `_rescaled`, and padding that repeats
    the rim repeats zeros; a norm over the whole grid needs all that the filter spreads.
    """
    box = bounding_box(mask, (reach, reach, reach))
    return chi[box], truth[box], mask[box]


def _rescaled(chi: Volume, truth: Volume, mask: Mask) -> tuple[Tensor, Tensor]:
    a, b = chi.double() * mask, truth.double() * mask
    low = torch.minimum(a.min(), b.min())
    a, b = torch.where(a != 0, a - low, a), torch.where(b != 0, b - low, b)
    high = torch.maximum(a.max(), b.max())
    return a * (255 / high), b * (255 / high)


def _gaussian(sigma: float, half_width: int) -> Tensor:
    x = torch.arange(-half_width, half_width + 1, dtype=torch.float64)
    window = torch.exp(-(x**2) / (2 * sigma**2))
    return window / window.sum()


def _similarity(a: Tensor, b: Tensor, window: Tensor, *, c1: float, c2: float, replicate: bool) -> Tensor:
    def blur(volume: Tensor) -> Tensor:
        for axis in range(3):
            volume = _convolve_axis(volume, window, axis, replicate=replicate)
        return volume

    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    return ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    )


def _convolve_axis(volume: Tensor, window: Tensor, axis: int, *, replicate: bool) -> Tensor:
    half, n = window.numel() // 2, volume.shape[axis]
    ends = [volume.narrow(axis, 0, 1), volume.narrow(axis, n - 1, 1)]
    repeats = [half if other == axis else 1 for other in range(3)]
    first, last = ((end if replicate else torch.zeros_like(end)).repeat(repeats) for end in ends)
    padded = torch.cat([first, volume, last], dim=axis)
    result = torch.zeros_like(volume)
    for tap, value in enumerate(window.tolist()):
        result.add_(padded.narrow(axis, tap, n), alpha=value)
    return result


def _convolve(volume: Tensor, kernel: Tensor) -> Tensor:
    """Zero-padded convolution of the same size with a kernel that is even, by FFT."""
    shape = fast_shape([n + k - 1 for n, k in zip(volume.shape, kernel.shape, strict=True)])
    full = irfft(rfft(volume, shape) * rfft(kernel.to(volume.device), shape), shape)
    half = [k // 2 for k in kernel.shape]
    x, y, z = (slice(h, h + n) for h, n in zip(half, volume.shape, strict=True))
    return full[x, y, z]
