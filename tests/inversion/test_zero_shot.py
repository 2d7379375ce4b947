"""Networks that learn from one scan: they find its chi, say how far they are, and stop."""

import pytest
import torch

from chimap import metrics
from chimap.errors import InputError
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


class Killed(Exception):
    pass


@pytest.mark.parametrize("stopped_at", [30, 70], ids=["on patches", "on the whole field"])
def test_killed_it_goes_on_and_ends_as_if_it_had_not_been(scene, tmp_path, stopped_at):
    _, field, mask, dipole = scene
    few = {"patch_steps": 40, "full_steps": 40, "patch": 16, "base": 2, "tolerance": -1e9}
    whole = zero_shot_uqsm_plus(field, mask, dipole, **few)
    file, seen = tmp_path / "fit" / "state", []

    def until(step, steps):
        seen.append(step)
        if step == stopped_at and len(seen) == stopped_at:
            raise Killed

    with pytest.raises(Killed):
        zero_shot_uqsm_plus(field, mask, dipole, **few, progress=until, checkpoint=file)
    first = stopped_at // 25 * 25 + 1
    seen.clear()
    again = zero_shot_uqsm_plus(
        field, mask, dipole, **few, progress=lambda step, steps: seen.append(step), checkpoint=file
    )
    assert seen == list(range(first, 81))
    assert torch.equal(again, whole)


def test_a_checkpoint_of_another_scan_or_other_settings_is_refused(scene, tmp_path):
    _, field, mask, dipole = scene
    few = {"base": 2, "checkpoint": tmp_path / "state"}
    deep_image_prior(field, mask, dipole, iterations=25, **few)
    with pytest.raises(InputError, match="another scan"):
        deep_image_prior(2 * field, mask, dipole, iterations=25, **few)
    with pytest.raises(InputError, match="other settings"):
        deep_image_prior(field, mask, dipole, iterations=25, variation=0.5, **few)
