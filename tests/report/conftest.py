"""A small head of ellipsoids, with all maps made by hand: the report needs no pipeline."""

import math
from dataclasses import replace

import pytest
import torch

from chimap.physics.units import radians_per_ppm
from chimap.plan import Plan
from chimap.scan import Maps, Reference, Scan

SHAPE = (33, 40, 27)
VOXEL = (2.0, 2.0, 3.0)


def ball(radius: float, centre=(0.0, 0.0, 0.0), shape=SHAPE, voxel_size=VOXEL) -> torch.Tensor:
    """Voxels within `radius` [mm] of a point given from the grid's centre [mm]."""
    axes = [
        (torch.arange(n) - (n - 1) / 2) * size - offset
        for n, size, offset in zip(shape, voxel_size, centre, strict=True)
    ]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 <= radius**2


@pytest.fixture(scope="session")
def scan(tmp_path_factory) -> Scan:
    """Three echoes of a linear field, read from a file."""
    file = tmp_path_factory.mktemp("scan") / "private folder" / "sub-1_phase.nii.gz"
    file.parent.mkdir()
    file.write_bytes(b"abc")
    times = (0.005, 0.010, 0.0175)
    x = torch.linspace(-0.5, 0.5, SHAPE[0])[:, None, None].expand(SHAPE)
    turns = torch.stack([x * radians_per_ppm(time, 3.0) for time in times])
    noise = torch.rand(turns.shape, generator=torch.Generator().manual_seed(1))
    return Scan(
        phase=torch.remainder(turns + math.pi, 2 * math.pi) - math.pi,
        magnitude=ball(36) * 500.0 + 50 * noise,
        echo_times=times,
        field_strength=3.0,
        voxel_size=VOXEL,
        notes=(f"The phase of {file} was scaled to rad.",),
        files=(str(file),),
    )


@pytest.fixture(scope="session")
def maps() -> Maps:
    """chi of one bright ball, and fields that look like fields."""
    brain, valid = ball(32), ball(28)
    noise = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2))
    chi = valid * (0.12 * ball(6, (8, 4, 0)) + 0.02 * (noise - 0.5))
    field = brain * torch.linspace(-0.5, 0.5, SHAPE[0])[:, None, None]
    return Maps(
        brain_mask=brain,
        total_field=field,
        field_noise=torch.where(brain, 0.01 + 0.01 * noise, math.inf),
        local_field=chi / 3,
        chi=chi,
        mask=valid,
        unwrapped_phase=torch.stack([field * radians_per_ppm(time, 3.0) for time in (0.005, 0.010, 0.0175)]),
        r2star=brain * (15 + 10 * noise),
        reference=Reference("the mask in which it is valid", int(valid.sum()), 87.0, 0.0012, 0.0345),
        seconds={"mask": 0.5, "inversion": 1.25},
        notes=("The mask was made from magnitude and phase quality.",),
    )


@pytest.fixture(scope="session")
def plan() -> Plan:
    """The default plan with one parameter changed."""
    return replace(Plan(), settings={"tv": {"regularisation": 7e-4}})
