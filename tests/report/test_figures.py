"""Pictures are measured in pixels: where things are, how large, how bright."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from chimap.report import figures
from chimap.report.view import view_of

from .conftest import ball

SHAPE, VOXEL = (34, 40, 22), (2.0, 2.0, 3.0)
HEAD = ball(30, shape=SHAPE, voxel_size=VOXEL)


def drawn(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)))


def planes(volume: torch.Tensor, affine: np.ndarray | None = None, voxel_size=VOXEL, **options) -> list[np.ndarray]:
    """The three slices cut out of the picture, each with its black frame."""
    affine = np.diag([*voxel_size, 1.0]) if affine is None else affine
    view = view_of(affine, voxel_size, torch.ones(volume.shape, dtype=torch.bool))
    pixels = drawn(figures.three_planes(volume, view, window=(0.0, 1.0), unit="ppm", **options))
    x, y, z = (n * size for n, size in zip(volume.shape, voxel_size, strict=True))
    frame = figures.FRAME
    scale = (pixels.shape[1] - figures.BAR_ROOM - 6 * frame) / (2 * x + y)
    cuts, left = [], frame
    for wide, high in ((y, z), (x, z), (x, y)):
        top = (pixels.shape[0] - round(high * scale)) // 2
        cuts.append(pixels[top : top + round(high * scale), left : left + round(wide * scale)])
        left += round(wide * scale) + 2 * frame
    return cuts


def middle(cut: np.ndarray) -> tuple[float, float]:
    """Centre of the bright pixels, as shares of the width from the left and of the height from the top."""
    rows, columns = np.nonzero(cut > 200)
    return (columns.mean() + 0.5) / cut.shape[1], (rows.mean() + 0.5) / cut.shape[0]


def test_left_is_at_the_right_anterior_at_the_left_or_top_and_superior_at_the_top():
    near = ball(9, (-14.0, 12.0, 6.0), SHAPE, VOXEL)  # left, anterior, superior of the centre
    far = ball(40, shape=SHAPE, voxel_size=VOXEL)
    volume = 0.3 * far + 0.7 * near
    view = view_of(np.diag([*VOXEL, 1.0]), VOXEL, near)
    pixels = drawn(figures.three_planes(volume, view, window=(0.0, 1.0), unit="ppm"))
    strip = pixels[:, : pixels.shape[1] - figures.BAR_ROOM]
    thirds = np.cumsum([40, 34, 34]) / 108
    ends = [0, *(round(share * strip.shape[1]) for share in thirds)]
    sagittal, coronal, axial = (
        middle(np.where(strip[:, a:b] > 240, 255, 0)[30:-30, 30:-30]) for a, b in zip(ends, ends[1:], strict=False)
    )
    assert sagittal[0] < 0.45 and sagittal[1] < 0.48
    assert coronal[0] > 0.55 and coronal[1] < 0.48
    assert axial[0] > 0.55 and axial[1] < 0.45


def test_a_file_with_other_axes_gives_the_same_picture():
    volume = torch.rand(SHAPE, generator=torch.Generator().manual_seed(3))
    mask = ball(21, (1.0, 1.0, 1.5), SHAPE, VOXEL)  # its centre is a voxel, not a face between two
    affine = np.diag([*VOXEL, 1.0])

    def turned(array: torch.Tensor) -> torch.Tensor:
        return array.permute(2, 0, 1).flip(0)

    view = view_of(affine, VOXEL, mask)
    other = view_of(affine[:, [2, 0, 1, 3]] @ np.diag([-1.0, 1, 1, 1]), (3.0, 2.0, 2.0), turned(mask))
    for draw in (figures.three_planes, figures.axial_levels):
        expected = draw(volume, view, window=(0.0, 1.0), unit="ppm", inside=mask)
        assert draw(turned(volume), other, window=(0.0, 1.0), unit="ppm", inside=turned(mask)) == expected


@pytest.mark.parametrize(("shape", "voxel_size"), [(SHAPE, VOXEL), ((70, 50, 40), (1.0, 1.5, 2.0))])
def test_a_ball_is_round_whatever_the_voxels(shape, voxel_size):
    for cut in planes(ball(25, shape=shape, voxel_size=voxel_size).float(), voxel_size=voxel_size):
        rows, columns = np.nonzero(cut > 200)
        assert np.ptp(rows) == pytest.approx(np.ptp(columns), rel=0.06)


def test_the_window_sets_black_and_white():
    low, high = torch.full(SHAPE, 0.0), torch.full(SHAPE, 1.0)
    assert all(cut.max() == 0 for cut in planes(low))
    assert all(cut.min() == 255 for cut in planes(high))
    assert all(abs(int(cut[20, 20]) - 128) < 2 for cut in planes(0 * low + 0.5))


def test_outside_the_mask_is_black_whatever_the_value():
    for cut in planes(torch.ones(SHAPE), inside=HEAD):
        high, wide = cut.shape
        assert cut[2, 2] == 0 and cut[high // 2, wide // 2] == 255


def test_outlines_are_drawn_in_their_colour():
    for cut in planes(torch.full(SHAPE, 0.5), outlines=[(HEAD, "#ff0000")]):
        red = (cut[..., 0].astype(int) - cut[..., 1]) > 100
        assert 50 < red.sum() < 0.05 * red.size


def test_a_mask_that_misses_a_slice_needs_no_outline():
    planes(torch.zeros(SHAPE), outlines=[(ball(3, (25, 30, 20), SHAPE, VOXEL), "#ff0000")])


def test_pictures_without_colour_have_one_channel():
    view = view_of(np.eye(4), (1.0, 1.0, 1.0), HEAD)
    assert drawn(figures.three_planes(HEAD.float(), view, window=(0.0, 1.0), unit="")).ndim == 2


def test_axial_levels_survive_a_mask_of_one_slice_and_none():
    thin = torch.zeros(SHAPE, dtype=torch.bool)
    view = view_of(np.eye(4), (1.0, 1.0, 1.0), HEAD)
    for mask in (thin, thin | (torch.arange(SHAPE[2]) == 5)):
        assert drawn(figures.axial_levels(torch.ones(SHAPE), view, window=(0.0, 1.0), unit="", inside=mask)).any()


@pytest.mark.parametrize(
    ("reach", "expected"), [(0.0131, 0.015), (0.09, 0.1), (0.2, 0.2), (3.7, 4.0), (0.0, 1.0), (62.0, 75.0)]
)
def test_symmetric_windows_end_on_round_numbers_beyond_98_percent(reach, expected):
    values = torch.linspace(-reach / 0.98, reach / 0.98, 10001)
    assert figures.symmetric_window(values) == pytest.approx((-expected, expected))


def test_windows_ignore_what_is_not_finite():
    values = torch.tensor([float("nan"), float("inf"), -1.0, 1.0])
    assert figures.symmetric_window(values) == (-1.0, 1.0)
    assert figures.round_window(values, (0.0, 100.0)) == (-1.0, 1.0)


def test_round_windows_enclose_the_percentiles():
    low, high = figures.round_window(torch.linspace(3.1, 47.9, 1000), (0.0, 100.0))
    assert (low, high) == (0, 60)
    assert figures.round_window(torch.full((5,), 2.0)) == (1.0, 3.0)


@pytest.mark.parametrize("window", [(-0.1, 0.15), (-0.015, 0.015), (-7.5, 7.5), (0.0, 1.4), (-15.0, 40.0)])
def test_the_colour_bar_names_both_ends_and_zero(window):
    ticks = figures.round_ticks(window)
    assert min(ticks) == pytest.approx(window[0]) and max(ticks) == pytest.approx(window[1])
    for value, text in ticks.items():
        assert float(text.replace(figures.MINUS, "-")) == pytest.approx(value, abs=1e-9)
    assert any(abs(value) < 1e-9 for value in ticks)


def test_a_histogram_has_its_peak_where_most_values_are():
    values = torch.full((1000,), 0.05)
    pixels = drawn(figures.histogram(values, window=(-0.1, 0.1), name="chi", unit="ppm")).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0]) > 30
    left, right = 0.1 * pixels.shape[1], 0.97 * pixels.shape[1]
    at = (np.nonzero(blue)[1].mean() - left) / (right - left)
    assert at == pytest.approx(0.75, abs=0.02)
