"""Region values against a calculation by hand."""

import math

import pytest
import torch

from chimap.errors import InputError
from chimap.regions import identify_bids, region_rows
from chimap.segmentation import Segmentation


def test_values_of_regions_inside_the_mask():
    shape = (4, 5, 6)
    chi = torch.arange(120.0).reshape(shape) / 1000
    rate = chi.square()
    labels = torch.zeros(shape, dtype=torch.int64)
    labels[0], labels[1], labels[2, 0, 0], labels[3] = 1, 2, 3, 4
    mask = torch.ones(shape, dtype=torch.bool)
    mask[0, 0], mask[3] = False, False
    names = {1: "cortex", 2: "cortex", 3: "nucleus", 4: "outside the mask", 9: "nowhere"}
    rows = region_rows(
        {"chi": chi, "r2star": rate}, mask, (1.0, 2.0, 0.5), {"own": Segmentation(labels, names, "table")}
    )
    assert [(row["segmentation"], row["region"]) for row in rows] == [
        ("", "whole mask"), ("own", "cortex"), ("own", "nucleus"),
    ]  # fmt: skip
    inside = chi[((labels == 1) | (labels == 2)) & mask]
    cortex = rows[1]
    assert cortex["voxels"] == inside.numel() == 54 and cortex["volume_mm3"] == 54
    assert cortex["chi_mean"] == pytest.approx(float(inside.mean()))
    assert cortex["chi_sd"] == pytest.approx(float(inside.std()), rel=1e-5)
    assert cortex["chi_median"] == pytest.approx(float(inside.quantile(0.5)))
    assert cortex["r2star_mean"] == pytest.approx(float(inside.square().mean()))
    assert math.isnan(float(rows[2]["chi_sd"])) and rows[2]["chi_median"] == pytest.approx(0.06)
    nothing = Segmentation(torch.where(labels == 4, 4, 0), names, "table")
    with pytest.raises(InputError, match="own marks nothing inside the mask"):
        region_rows({"chi": chi}, mask, (1.0, 1.0, 1.0), {"own": nothing})


def test_numbers_without_a_table_are_never_taken_for_the_challenge():
    def named(*numbers):
        return identify_bids(torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1), None, "a_dseg.nii.gz").names

    assert named(0, 1, 2)[1] == "grey matter"
    assert named(10, 11, 52)[52] == "right pallidum"
    with pytest.raises(InputError, match="put a table"):
        named(1, 2, 14)
