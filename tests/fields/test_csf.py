import pytest
import torch

from chimap.errors import InputError
from chimap.fields.csf import ventricles
from chimap.fields.relaxation import r2star_map
from chimap.simulation.acquisition import acquire
from chimap.simulation.head import built_in_head
from chimap.simulation.tissues import TISSUES

VOXEL = (3.0, 3.0, 3.5)


def test_what_is_found_on_a_head_is_fluid_in_its_middle():
    head = built_in_head((60, 72, 50), VOXEL, seed=2)
    scan, truth = acquire(head, snr=60.0, seed=2)
    found = ventricles(r2star_map(scan.magnitude, truth.mask, scan.echo_times), truth.mask, VOXEL)
    fluid = head.labels == TISSUES["csf"].label
    assert found.sum() > 50 and (found & fluid).sum() > 0.98 * found.sum()
    size = torch.tensor(VOXEL)
    away = (found.nonzero() - truth.mask.nonzero().float().mean(dim=0)) * size
    assert away.norm(dim=1).max() <= 30
    assert truth.chi[found].std() < 0.2 * truth.chi[truth.mask].std()


def test_small_parts_and_those_far_away_are_left_out():
    mask = torch.ones(40, 40, 40, dtype=torch.bool)
    rate = torch.full(mask.shape, 20.0)
    rate[16:20, 15:20, 18:22] = 2.0
    rate[24, 24, 24] = 2.0
    rate[2:8, 2:8, 2:8] = 2.0
    found = ventricles(rate, mask, (1.5, 1.5, 1.5))
    expected = torch.zeros_like(mask)
    expected[16:20, 15:20, 18:22] = True
    assert torch.equal(found, expected)
    with pytest.raises(InputError, match="R2\\* is nowhere below 1 /s within 30 mm"):
        ventricles(rate, mask, (1.5, 1.5, 1.5), most=1.0)
