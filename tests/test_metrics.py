"""Every metric against a value worked out by hand."""

import math

import pytest
import torch
from scipy.ndimage import convolve, gaussian_filter

from chimap import metrics


def everywhere(volume):
    return torch.ones_like(volume, dtype=torch.bool)


def line(*values):
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1)


def test_nrmse_is_the_error_over_the_truth_in_percent():
    truth, chi = line(3, 4), line(3, 3)
    assert metrics.nrmse(chi, truth, everywhere(truth)) == pytest.approx(20)  # 1 / 5
    shifted = line(4, 5)
    assert metrics.nrmse(shifted, truth, everywhere(truth)) == pytest.approx(100 * math.sqrt(2) / 5)
    assert metrics.nrmse(shifted, truth, everywhere(truth), demean=True) == pytest.approx(0, abs=1e-5)


def test_nothing_outside_the_mask_counts():
    truth, chi = line(3, 4, 100), line(3, 3, -7)
    mask = line(1, 1, 0).bool()
    assert metrics.nrmse(chi, truth, mask) == pytest.approx(20)
    assert metrics.correlation(line(1, 2, -50), truth, mask) == pytest.approx(1)


def test_dnrmse_by_hand_and_without_scale():
    truth, chi = line(0, 1, 2), line(0, 1, 1)
    # means 1 and 2/3; covariance 1, squares 2 and 2/3: rho^2 = 1 / (2 * 2/3) = 3/4; 100 sqrt(4/3 - 1)
    expected = 100 * math.sqrt(1 / 3)
    assert metrics.dnrmse(chi, truth, everywhere(truth)) == pytest.approx(expected)
    assert metrics.dnrmse(5 * chi - 3, truth, everywhere(truth)) == pytest.approx(expected)


def test_dnrmse_is_the_nrmse_after_the_inverse_line():
    torch.manual_seed(0)
    truth = torch.randn(4, 5, 6)
    chi = 0.6 * truth + 0.3 * torch.randn(4, 5, 6) + 0.1
    mask = everywhere(truth)
    slope = metrics.slope(chi, truth, mask)
    offset = chi.mean() - slope * truth.mean()
    expected = metrics.nrmse((chi - offset) / slope, truth - truth.mean(), mask, demean=True)
    assert metrics.dnrmse(chi, truth, mask) == pytest.approx(expected, rel=1e-4)


def test_slope_and_correlation_by_hand():
    truth, chi = line(0, 1, 2), line(0, 1, 1)
    assert metrics.slope(chi, truth, everywhere(truth)) == pytest.approx(0.5)  # covariance 1 over 2
    assert metrics.correlation(chi, truth, everywhere(truth)) == pytest.approx(math.sqrt(3 / 4))


def test_hfen_against_a_filter_written_out():
    torch.manual_seed(0)
    truth, chi = torch.randn(2, 18, 17, 16, dtype=torch.float64)
    mask = torch.zeros(18, 17, 16, dtype=torch.bool)
    mask[3:15, 3:14, 2:15] = True
    x = torch.arange(-7, 8, dtype=torch.float64)
    i, j, k = torch.meshgrid(x, x, x, indexing="ij")
    gauss = torch.exp(-(i**2 + j**2 + k**2) / 4.5)
    gauss /= gauss.sum()
    taps = (i**2 / 1.5**4 + j**2 / 1.5**4 + k**2 / 1.5**4 - 3 / 1.5**2) * gauss
    taps -= taps.sum() / 15**3
    a, b = (torch.from_numpy(convolve((v * mask).numpy(), taps.numpy(), mode="constant")) for v in (chi, truth))
    assert metrics.hfen(chi.float(), truth.float(), mask) == pytest.approx(float(100 * (a - b).norm() / b.norm()), 1e-4)


def test_hfen_of_half_the_map_is_fifty_percent():
    truth = torch.randn(9, 10, 11)
    assert metrics.hfen(0.5 * truth, truth, everywhere(truth)) == pytest.approx(50, rel=1e-5)


def test_psnr_by_hand():
    # rescaled together: minimum 0 stays 0, 255 / 4 per unit; error 1 unit in 1 of 4 voxels
    truth, chi = line(1, 2, 0, 4), line(1, 2, 0, 3)
    # the smaller minimum is 0, so nothing is subtracted
    expected = 10 * math.log10(255**2 / ((255 / 4) ** 2 / 4))
    assert metrics.psnr(chi, truth, everywhere(truth)) == pytest.approx(expected)
    # with a negative minimum the zeros stay zero: (-1, 2) become (0, 3) of 3
    truth, chi = line(-1, 2, 0, 0), line(-1, 1, 0, 0)
    expected = 10 * math.log10(255**2 / ((255 / 3) ** 2 / 4))
    assert metrics.psnr(chi, truth, everywhere(truth)) == pytest.approx(expected)


def test_xsim_against_gaussian_moments_by_scipy():
    torch.manual_seed(0)
    truth = 0.05 * torch.randn(14, 13, 12, dtype=torch.float64)
    chi = 0.8 * truth + 0.01 * torch.randn(14, 13, 12, dtype=torch.float64)
    mask = torch.rand(14, 13, 12) > 0.4
    a, b = (chi * mask).numpy(), (truth * mask).numpy()

    def blur(v):
        return gaussian_filter(v, 1.5, radius=3, mode="nearest")

    va, vb, cov = blur(a * a) - blur(a) ** 2, blur(b * b) - blur(b) ** 2, blur(a * b) - blur(a) * blur(b)
    local = (2 * blur(a) * blur(b) + 1e-4) * (2 * cov + 1e-6)
    local /= (blur(a) ** 2 + blur(b) ** 2 + 1e-4) * (va + vb + 1e-6)
    assert metrics.xsim(chi.float(), truth.float(), mask) == pytest.approx(float(local[mask.numpy()].mean()), rel=1e-4)


def test_ssim_against_gaussian_moments_by_scipy():
    torch.manual_seed(0)
    truth = 0.05 * torch.randn(14, 13, 12, dtype=torch.float64)
    chi = 0.8 * truth + 0.01 * torch.randn(14, 13, 12, dtype=torch.float64)
    mask = torch.rand(14, 13, 12) > 0.4
    a, b = (chi * mask).numpy(), (truth * mask).numpy()
    low = min(a.min(), b.min())
    a[a != 0] -= low
    b[b != 0] -= low
    high = max(a.max(), b.max())
    a, b = a * 255 / high, b * 255 / high

    def blur(v):
        return gaussian_filter(v, 1.5, radius=2, mode="constant")

    va, vb, cov = blur(a * a) - blur(a) ** 2, blur(b * b) - blur(b) ** 2, blur(a * b) - blur(a) * blur(b)
    c1, c2 = 2.55**2, 7.65**2
    local = (2 * blur(a) * blur(b) + c1) * (2 * cov + c2)
    local /= (blur(a) ** 2 + blur(b) ** 2 + c1) * (va + vb + c2)
    counted = (chi * mask).numpy() != 0
    assert metrics.ssim(chi.float(), truth.float(), mask) == pytest.approx(float(local[counted].mean()), rel=1e-4)


@pytest.mark.parametrize("lift", [0.0, 0.5])
@pytest.mark.parametrize("corner", [(0, 0, 0), (9, 8, 7), (20, 16, 12)])
def test_values_are_those_of_the_whole_grid(corner, lift):
    """Filters see the mask's box only; two voxels far away make the box the whole grid.

    Lifted maps are above zero everywhere, so that the smallest value is the zero outside the mask.
    """
    torch.manual_seed(1)
    truth = 0.05 * torch.randn(31, 27, 23) + lift
    chi = 0.8 * truth + 0.01 * torch.randn(31, 27, 23)
    mask = torch.zeros(31, 27, 23, dtype=torch.bool)
    mask[tuple(slice(c, c + 11) for c in corner)] = True
    full = mask.clone()
    full[0, 0, 0] = full[-1, -1, -1] = True  # the bounding box becomes the grid
    a, b = chi * mask, truth * mask
    assert metrics.hfen(chi, truth, mask) == pytest.approx(metrics.hfen(a, b, full), rel=1e-9)
    assert metrics.ssim(chi, truth, mask) == pytest.approx(metrics.ssim(a, b, full), rel=1e-9)
    assert metrics.psnr(chi, truth, mask) == pytest.approx(metrics.psnr(a, b, full), rel=1e-9)
    added = int(full.sum() - mask.sum())  # far from the mask, where both maps are zero and the similarity is 1
    expected = (metrics.xsim(a, b, full) * int(full.sum()) - added) / int(mask.sum())
    assert metrics.xsim(chi, truth, mask) == pytest.approx(expected, rel=1e-9)


def test_equal_maps_are_perfect():
    truth = torch.randn(8, 9, 10)
    mask = torch.rand(8, 9, 10) > 0.3
    found = metrics.summary(truth, truth, mask)
    assert found["NRMSE [%]"] == found["HFEN [%]"] == 0
    assert found["dNRMSE [%]"] == pytest.approx(0, abs=1e-3)
    assert found["XSIM"] == pytest.approx(1) and found["SSIM"] == pytest.approx(1)
    assert found["slope"] == pytest.approx(1) and math.isinf(found["PSNR [dB]"])
