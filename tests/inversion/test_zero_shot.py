"""Networks that learn from one scan: they find its chi, say how far they are, and stop."""

import pytest
import torch

from chimap import metrics
from chimap.inversion.zero_shot import deep_image_prior, zero_shot_uqsm_plus
from chimap.physics.dipole import DipoleModel
from chimap.physics.sources import sphere

SHAPE, SIZE, B0 = (28, 26, 30), (1.0, 1.0, 1.2), (0.3, 0.0, 0.954)


@pytest.fixture(scope="module")
def scene():
    chi = torch.zeros(SHAPE)
    for centre, radius, value in (((9.0, 12.0, 14.0), 3.5, 0.1), ((18.0, 13.0, 20.0), 4.0, -0.05)):
        chi += sphere(SHAPE, SIZE, centre=centre, radius=radius, chi=value)
    mask = sphere(SHAPE, SIZE, centre=(13.5, 12.5, 17.0), radius=12.0) > 0.5
    dipole = DipoleModel(SHAPE, SIZE, B0)
    noise = 5e-4 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return chi * mask, (dipole(chi) + noise) * mask, mask, DipoleModel(SHAPE, SIZE, B0, padding=0)


@pytest.mark.parametrize(
    "method",
    [
        lambda *scan, **more: deep_image_prior(*scan, iterations=40, base=4, learning_rate=8e-3, **more),
        lambda *scan, **more: zero_shot_uqsm_plus(
            *scan, patch_steps=50, full_steps=30, patch=16, base=4, learning_rate=4e-3, variation=1e-3, **more
        ),
    ],
    ids=["dip", "zs-uqsm+"],
)
def test_the_scan_alone_teaches_its_chi(scene, method):
    chi, field, mask, dipole = scene
    seen = []
    found = method(field, mask, dipole, progress=lambda step, steps: seen.append(step))
    assert found.shape == SHAPE and not found[~mask].any()
    assert metrics.correlation(found, chi, mask) > 0.6
    assert seen == list(range(1, len(seen) + 1))


def test_the_seed_decides_and_the_global_one_is_left_alone(scene):
    _, field, mask, dipole = scene
    few = {"patch_steps": 2, "full_steps": 1, "patch": 16, "base": 2}
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = zero_shot_uqsm_plus(field, mask, dipole, seed=1, **few)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, zero_shot_uqsm_plus(field, mask, dipole, seed=1, **few))
    assert not torch.equal(first, zero_shot_uqsm_plus(field, mask, dipole, seed=2, **few))


def test_it_stops_where_nothing_is_gained(scene):
    _, field, mask, dipole = scene
    seen = []
    zero_shot_uqsm_plus(
        field,
        mask,
        dipole,
        patch_steps=1,
        full_steps=200,
        patch=16,
        base=2,
        learning_rate=1e-9,
        progress=lambda step, steps: seen.append(step),
    )
    assert len(seen) == 21  # two spans of ten, in which nothing changed
