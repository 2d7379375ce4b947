"""Measures by region against values worked out by hand and against other code."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from chimap import metrics, regional
from chimap.errors import InputError
from chimap.lesion_metrics import LESION_CHI, lesion_linearity, lesion_mean, lesions, line_through
from chimap.segmentation import Segmentation, identify

CUBE = np.ones((3, 3, 3))
ONE = (1.0, 1.0, 1.0)


def dnrmse_written_out(chi, truth, where):
    """The challenge's steps one by one, instead of the formula with the correlation."""
    a, b = chi[where].astype(np.float64), truth[where].astype(np.float64)
    a, b = a - a.mean(), b - b.mean()
    slope, intercept = np.polyfit(b, a, 1)
    return 100 * np.linalg.norm((a - intercept) / slope - b) / np.linalg.norm(b)


@pytest.fixture
def blocks():
    """A grid of challenge numbers in blocks, maps and a mask that cuts through them."""
    rng = np.random.default_rng(2)
    labels = np.kron(rng.permutation(np.r_[1:12, 1:12, 7, 8, 9, 9, 8]).reshape(3, 3, 3), np.ones((6, 6, 6)))
    truth = 0.02 * labels + 0.01 * rng.standard_normal(labels.shape)
    chi = 0.8 * truth + 0.03 + 0.01 * rng.standard_normal(labels.shape)
    mask = np.zeros(labels.shape, bool)
    mask[2:16, 3:, :15] = True
    found, _ = identify(torch.from_numpy(labels), source="s")
    return torch.from_numpy(chi).float(), torch.from_numpy(truth).float(), torch.from_numpy(mask), found


def test_regions_of_the_challenge_against_scipy(blocks):
    chi, truth, mask, segmentation = blocks
    a, b, m, labels = chi.numpy(), truth.numpy(), mask.numpy(), segmentation.labels.numpy()
    tissue = ~ndimage.binary_dilation(~(np.isin(labels, [7, 8, 9]) & m), CUBE)
    deep = ~ndimage.binary_dilation(~(np.isin(labels, range(1, 7)) & m), CUBE)
    blood = ndimage.binary_dilation((labels == 11) & m, CUBE) & m
    assert 0 < tissue.sum() < (np.isin(labels, [7, 8, 9]) & m).sum() and blood.sum() > ((labels == 11) & m).sum()
    for measure, where in (
        (regional.tissue_dnrmse, tissue),
        (regional.blood_dnrmse, blood),
        (regional.deep_grey_dnrmse, deep),
    ):
        assert measure(chi, truth, mask, segmentation) == pytest.approx(dnrmse_written_out(a, b, where), rel=1e-5)


def test_nothing_erodes_from_beyond_the_grid():
    labels = torch.full((4, 3, 3), 8)
    labels[0] = 10
    chi, truth = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 3, 3, dtype=torch.bool)
    where = np.zeros((4, 3, 3), bool)
    where[2:] = True  # the layer that touches the fluid goes
    found = regional.tissue_dnrmse(chi, truth, mask, Segmentation(labels, {8: "white matter", 10: "csf"}, "table"))
    assert found == pytest.approx(dnrmse_written_out(chi.numpy(), truth.numpy(), where), rel=1e-5)


def test_a_group_is_what_its_regions_are_called():
    """Left and right, and parts that the challenge does not tell apart, count together."""
    names = {1: "left caudate", 2: "Right-Caudate", 3: "subthalamic nucleus", 4: "substantia nigra"}
    labels = torch.tensor([1, 2, 2, 3, 4, 4, 0]).reshape(7, 1, 1)
    truth = torch.tensor([0.0, 3, 3, 3, 6, 6, 50]).reshape(7, 1, 1)
    chi = torch.tensor([0.0, 0, 3, 1, 7, 1, 50]).reshape(7, 1, 1)
    everywhere = torch.ones(7, 1, 1, dtype=torch.bool)
    line = regional.deep_grey_line(chi, truth, everywhere, Segmentation(labels, names, "table"))
    # caudate 1 of 2, substantia nigra with subthalamic nucleus 3 of 5: slope 2/3, intercept -1/3
    assert (line.slope, line.intercept, line.r_squared) == pytest.approx((2 / 3, -1 / 3, 1))


def test_the_line_through_deep_grey_against_scipy(blocks):
    chi, truth, mask, segmentation = blocks
    points = [
        (truth[chosen].mean(), chi[chosen].mean())
        for number in range(1, 7)
        if (chosen := (segmentation.labels == number) & mask).any()
    ]
    expected = stats.linregress(*np.asarray(points, dtype=np.float64).T)
    line = regional.deep_grey_line(chi, truth, mask, segmentation)
    found = regional.summary(chi, truth, mask, segmentation, ONE)
    assert (line.slope, line.intercept) == pytest.approx((expected.slope, expected.intercept), rel=1e-4)
    assert line.r_squared == pytest.approx(expected.rvalue**2, rel=1e-4)
    assert found["deep grey slope"] == pytest.approx(expected.slope, rel=1e-4)
    assert found["deviation from linear slope"] == pytest.approx(abs(1 - expected.slope), rel=1e-3)


def test_one_nucleus_makes_no_line():
    assert math.isnan(line_through([0.1], [0.1]).slope)
    assert math.isnan(line_through([0.1, 0.1], [0.1, 0.2]).slope)


def calcified(shape=(40, 38, 36), at=(slice(18, 20), slice(19, 21), slice(17, 18))):
    """Truth with one calcification of 4 voxels, chi as the truth with half of it smeared around, and its label."""
    generator = torch.Generator().manual_seed(5)
    truth = 0.02 * torch.randn(shape, generator=generator)
    marked = torch.zeros(shape, dtype=torch.bool)
    marked[at] = True
    truth[marked] = -2.0
    chi = truth + 0.03 * torch.randn(shape, generator=generator)
    chi[marked] = -1.0
    chi[at[0].start - 1, at[1], at[2]] = -0.5
    return chi, truth, marked


def lesion_written_out(chi, truth, label):
    """The steps of the challenge's evaluation, with loops and numpy."""
    low, high = np.argwhere(label).min(0), np.argwhere(label).max(0)

    def box(grow):
        made = np.zeros(label.shape, bool)
        made[tuple(slice(max(a - grow, 0), b + 1 + grow) for a, b in zip(low, high, strict=True))] = True
        return made

    inner, rim, outer = box(3), box(7) & ~box(3), box(11) & ~box(3)

    def segment(volume):
        for step in range(151):
            threshold = -0.01 * step
            if not (volume[outer] < threshold).any():
                return volume[inner][volume[inner] < threshold]
        raise AssertionError("no threshold")

    found, true = segment(chi), segment(truth)
    residual = chi[rim] - np.polyval(np.polyfit(truth[rim], chi[rim], 1), truth[rim])
    return found.size * found.mean(), true.size * true.mean(), residual.std(ddof=1) / abs(found.mean())


def test_calcification_by_hand():
    """Nothing around is below 0, so the threshold is 0: -1 four times and -0.5 twice; the truth -2 four times."""
    chi, truth, marked = calcified()
    box = torch.zeros_like(marked)
    box[17:20, 19:21, 17:18] = True
    chi, truth = torch.where(box, chi, 0.0), torch.where(box, truth, 0.0)
    truth[17] = 0
    chi[30, 19, 17] = 7.0  # 10 beyond the label: no rim, and not below
    (lesion,) = lesions(chi, truth, torch.ones_like(marked), marked, sign=-1)
    assert (lesion.voxels, lesion.found_voxels, lesion.true_voxels) == (4, 6, 4)
    assert (lesion.moment, lesion.true_moment, lesion.deviation) == (-5.0, -8.0, 3.0)
    assert lesion.streak == 0
    # one of the rim's 13 * 13 * 12 - 8 * 8 * 7 ... voxels is 1: its standard deviation over 5 / 6
    chi[24, 19, 17] = 1.0
    (lesion,) = lesions(chi, truth, torch.ones_like(marked), marked, sign=-1)
    n = 16 * 16 * 15 - 8 * 8 * 7
    assert lesion.streak == pytest.approx(math.sqrt((1 - 1 / n) / (n - 1)) / (5 / 6), rel=1e-6)


def test_calcification_against_loops():
    chi, truth, marked = calcified()
    (lesion,) = lesions(chi, truth, torch.ones_like(marked), marked, sign=-1)
    moment, true_moment, streak = lesion_written_out(chi.double().numpy(), truth.double().numpy(), marked.numpy())
    assert lesion.found_voxels == 6 and lesion.true_voxels == 4  # the noise around stays above the threshold
    assert (lesion.moment, lesion.true_moment) == pytest.approx((moment, true_moment), rel=1e-6)
    assert lesion.streak == pytest.approx(streak, rel=1e-6)


def test_calcification_at_the_edge_of_the_grid():
    at = (slice(0, 2), slice(36, 38), slice(2, 3))
    chi, truth, marked = calcified(at=(slice(1, 3), *at[1:]))
    (lesion,) = lesions(chi, truth, torch.ones_like(marked), marked, sign=-1)
    expected = lesion_written_out(chi.double().numpy(), truth.double().numpy(), marked.numpy())
    assert (lesion.moment, lesion.true_moment, lesion.streak) == pytest.approx(expected, rel=1e-6)


def test_a_haemorrhage_is_a_calcification_turned_around():
    chi, truth, marked = calcified()
    everywhere = torch.ones_like(marked)
    (lesion,) = lesions(chi, truth, everywhere, marked, sign=-1)
    (turned,) = lesions(-chi, -truth, everywhere, marked, sign=1)
    assert turned.moment == -lesion.moment > 0 and turned.true_moment == -lesion.true_moment
    assert (turned.streak, turned.found_voxels) == (lesion.streak, lesion.found_voxels)


def test_what_lies_outside_the_mask_does_not_raise_the_threshold():
    chi, truth, marked = calcified()
    (plain,) = lesions(chi, truth, torch.ones_like(marked), marked, sign=-1)
    mask = torch.ones_like(marked)
    chi[27, 19, 17] = truth[27, 19, 17] = -9.0  # in the outer box, beyond the rim
    mask[27, 19, 17] = False
    (lesion,) = lesions(chi, truth, mask, marked, sign=-1)
    assert lesion == plain
    (lesion,) = lesions(chi, truth, torch.ones_like(mask), marked, sign=-1)
    assert math.isnan(lesion.moment) and math.isnan(lesion.deviation) and math.isnan(lesion.streak)


@pytest.mark.parametrize(("place", "counts"), [(30, True), (31, False)])
def test_the_outer_box_ends_eleven_voxels_from_the_label(place, counts):
    """The label ends at 19."""
    chi, truth, marked = calcified()
    (plain,) = lesions(chi, truth, torch.ones_like(marked), marked, sign=-1)
    chi[place, 19, 17] = -0.7  # the -0.5 beside the label is above it
    (lesion,) = lesions(chi, truth, torch.ones_like(marked), marked, sign=-1)
    assert lesion.found_voxels == (4 if counts else 6) and lesion.true_moment == plain.true_moment


def test_lesions_join_until_no_boxes_overlap():
    """The first touches neither of the others, but what holds both of these."""
    marked = torch.zeros(40, 40, 10, dtype=torch.bool)
    for x, y in ((19, 17), (20, 10), (26, 16)):
        marked[x, y, 5] = True
    everywhere, zeros = torch.ones_like(marked), torch.zeros(marked.shape)
    assert [row.voxels for row in lesions(zeros, zeros, everywhere, marked, sign=-1)] == [3]
    marked[26, 16, 5] = False
    assert [row.voxels for row in lesions(zeros, zeros, everywhere, marked, sign=-1)] == [1, 1]


def test_a_lost_calcification_has_no_moment_and_the_whole_deviation():
    _, truth, marked = calcified()
    chi = torch.full_like(truth, 0.1)
    (lesion,) = lesions(chi, truth, torch.ones_like(marked), marked, sign=-1)
    assert lesion.moment == 0 and lesion.deviation == -lesion.true_moment == pytest.approx(8)
    assert math.isnan(lesion.streak)


def test_lesions_apart_are_told_apart_and_do_not_disturb_each_other():
    chi, truth, marked = calcified(shape=(60, 38, 36))
    alone = lesions(chi, truth, torch.ones_like(marked), marked, sign=-1)[0]
    for volume, value in ((chi, -1.4), (truth, -3.0)):
        volume[28, 19, 17] = value  # in the outer box of the first
    marked[28, 19, 17] = True
    first, second = lesions(chi, truth, torch.ones_like(marked), marked, sign=-1)
    assert (first.moment, first.true_moment) == (alone.moment, alone.true_moment)
    assert second.moment == pytest.approx(-1.4) and second.true_moment == pytest.approx(-3)
    # diagonal neighbours are one, and so are lesions whose boxes overlap
    marked[29, 20, 18] = True
    assert [row.voxels for row in lesions(chi, truth, torch.ones_like(marked), marked, sign=-1)] == [
        4,
        2,
    ]
    marked[33, 20, 18] = True
    assert [row.voxels for row in lesions(chi, truth, torch.ones_like(marked), marked, sign=-1)] == [
        4,
        3,
    ]
    marked[24, 20, 18] = True  # reaches both
    assert [row.voxels for row in lesions(chi, truth, torch.ones_like(marked), marked, sign=-1)] == [8]


def test_no_lesion_no_row(blocks):
    chi, truth, mask, segmentation = blocks
    assert lesions(chi, truth, mask, torch.zeros_like(mask), sign=-1) == []
    assert not any("calcification" in name for name in regional.summary(chi, truth, mask, segmentation, ONE))


def test_the_summary_states_means_over_lesions():
    chi, truth, marked = calcified(shape=(70, 38, 36))
    for volume, value in ((chi, -0.9), (truth, -3.0)):
        volume[55, 19, 17] = value
    marked[55, 19, 17] = True
    segmentation = Segmentation(torch.where(marked, 16, 8), {16: "calcification", 8: "white matter"}, "challenge")
    everywhere = torch.ones_like(marked)
    a, b = chi - chi.mean(), truth - truth.mean()
    rows = lesions(a, b, everywhere, marked, sign=-1)
    found = regional.summary(chi, truth, everywhere, segmentation, (1.0, 2.0, 3.0))
    assert found["calcification: lesions"] == len(rows) == 2
    for name, values in (
        ("moment [ppm voxel]", [row.moment for row in rows]),
        ("true moment [ppm voxel]", [row.true_moment for row in rows]),
        ("deviation of the moment [ppm voxel]", [row.deviation for row in rows]),
        ("streak", [row.streak for row in rows]),
        ("volume found [mm3]", [6 * row.found_voxels for row in rows]),
    ):
        assert found[f"calcification: {name}"] == pytest.approx(np.mean(values), rel=1e-5)


def test_statistics_of_a_region_by_hand():
    labels = torch.tensor([5, 5, 5, 5, 9, 0, 5]).reshape(7, 1, 1)
    truth = torch.tensor([1.0, 2, 3, 4, 7, 100, 100]).reshape(7, 1, 1)
    chi = torch.tensor([1.0, 1, 3, 5, 6, -9, -9]).reshape(7, 1, 1)
    mask = torch.tensor([1, 1, 1, 1, 1, 1, 0]).bool().reshape(7, 1, 1)
    segmentation = Segmentation(labels, {5: "putamen", 9: "grey matter"}, "table")
    rows = regional.region_statistics(chi, truth, mask, segmentation, (0.5, 1.0, 3.0))
    assert list(rows) == ["putamen", "grey matter"]
    assert rows["putamen"] == pytest.approx(
        {
            "voxels": 4,
            "volume [mm3]": 6,
            "mean [ppm]": 2.5,
            "SD [ppm]": math.sqrt((2.25 + 2.25 + 0.25 + 6.25) / 3),
            "median [ppm]": 2,
            "true mean [ppm]": 2.5,
            "true SD [ppm]": math.sqrt(5 / 3),
            "true median [ppm]": 2.5,
            "mean error [ppm]": 0,
            "RMSE [ppm]": math.sqrt(2 / 4),
            "slope": 7 / 5,  # (-1.5)(1) + (-0.5)(1) + 0.5 * 3 + 1.5 * 5 over 5
        }
    )
    lone = rows["grey matter"]
    assert lone["mean error [ppm]"] == -1 and math.isnan(lone["SD [ppm]"]) and math.isnan(lone["slope"])


def test_statistics_against_numpy_and_numbers_that_share_a_name(blocks):
    chi, truth, mask, segmentation = blocks
    names = {number: "even" if number % 2 == 0 else "odd" for number in range(1, 12)}
    joined = Segmentation(segmentation.labels, names, "table")
    rows = regional.region_statistics(chi, truth, mask, joined, ONE)
    assert list(rows) == ["odd", "even"]
    for name, row in rows.items():
        chosen = mask & (segmentation.labels % 2 == (name == "odd"))
        a, b = chi[chosen].double().numpy(), truth[chosen].double().numpy()
        assert row["voxels"] == a.size
        assert row["median [ppm]"] == pytest.approx(np.median(a)) and row["SD [ppm]"] == pytest.approx(a.std(ddof=1))
        assert row["true median [ppm]"] == pytest.approx(np.median(b))
        assert row["RMSE [ppm]"] == pytest.approx(np.sqrt(np.mean((a - b) ** 2)))
        assert row["slope"] == pytest.approx(stats.linregress(b, a).slope)


def test_a_constant_changes_no_measure_of_a_region(blocks):
    chi, truth, mask, segmentation = blocks
    segmentation.labels[8, 8, 8] = 16
    truth[8, 8, 8], chi[8, 8, 8] = -3.0, -2.0
    plain = regional.report(chi, truth, mask, segmentation, ONE)
    moved = regional.report(chi + 0.25, truth - 0.5, mask, segmentation, ONE)
    assert moved["challenge"] == pytest.approx(plain["challenge"], rel=1e-3, abs=1e-6)
    for name, row in plain["regions"].items():
        assert moved["regions"][name] == pytest.approx(row, rel=1e-3, abs=1e-6, nan_ok=True)
    assert moved["reference"]["mean of chi in the mask [ppm]"] == pytest.approx(float((chi[mask] + 0.25).mean()))
    assert moved["whole mask"]["NRMSE [%]"] != pytest.approx(plain["whole mask"]["NRMSE [%]"], rel=0.1)


def test_the_report_holds_what_its_parts_give(blocks):
    chi, truth, mask, segmentation = blocks
    found = regional.report(chi, truth, mask, segmentation, ONE)
    assert found["whole mask"] == metrics.summary(chi, truth, mask)
    assert found["challenge"] == regional.summary(chi, truth, mask, segmentation, ONE)
    assert found["voxels in the mask"] == int(mask.sum()) and found["lesions"] == {}
    assert sum(row["voxels"] for row in found["regions"].values()) == int(mask.sum())
    assert set(regional.report(chi, truth, mask, None, ONE)) == {"whole mask", "voxels in the mask", "reference"}


def test_cutting_to_the_mask_changes_nothing(blocks):
    """The rim of the mask is eroded as before, although the box ends near it."""
    chi, truth, mask, segmentation = blocks
    segmentation.labels[:] = 8
    mask[:] = False
    mask[5:14, 3:16, 4:] = True
    found = regional.summary(chi, truth, mask, segmentation, ONE)
    where = np.zeros(mask.shape, bool)
    where[6:13, 4:15, 5:] = True
    expected = dnrmse_written_out(chi.numpy(), truth.numpy(), where)
    assert found == {"dNRMSE, tissue [%]": pytest.approx(expected, rel=1e-4)}


def test_lesion_linearity_by_hand():
    """Half of every value is found, and 0.1 more."""
    assert LESION_CHI[0] == -1.4 and LESION_CHI[7] == 0 and LESION_CHI[-1] == 1.4
    assert np.diff(LESION_CHI) == pytest.approx(np.full(14, 0.2))
    found = lesion_linearity(LESION_CHI, [0.5 * value + 0.1 for value in LESION_CHI])
    # mean square of the values: 0.04 * 2 * (1 + 4 + ... + 49) / 15 = 0.04 * 280 / 15
    assert found["RMSE [ppm]"] == pytest.approx(math.sqrt(0.25 * 0.04 * 280 / 15 + 0.01))
    assert found["mean error [ppm]"] == pytest.approx(0.1)
    assert (found["slope"], found["intercept [ppm]"], found["R^2"]) == pytest.approx((0.5, 0.1, 1))
    assert lesion_linearity([1.0, 0.0], [1.0, 0.0])["RMSE [ppm]"] == 0
    with pytest.raises(InputError, match="2 assigned and 3 found"):
        lesion_linearity([1.0, 0.0], [1.0, 0.0, 2.0])


def test_the_mean_of_a_lesion():
    chi = torch.tensor([1.0, 2.0, 30.0]).reshape(3, 1, 1)
    assert lesion_mean(chi, chi < 10) == 1.5
    assert math.isnan(lesion_mean(chi, chi > 99))
