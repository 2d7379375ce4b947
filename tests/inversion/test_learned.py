"""The networks' frame, and weights that are checked before they are used."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from chimap.errors import InputError
from chimap.inversion.learned import by_network, frame_of, into, out_of
from chimap.networks.unet import UNet, UNetShape
from chimap.networks.weights import load_trained, packed, read_trained, unpacked
from chimap.physics.dipole import DipoleModel
from chimap.physics.sources import sphere, sphere_field

TINY = UNetShape(base=2, levels=3, bias=False)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "best.safetensors"
    settings = {"network": asdict(TINY), "input_scale": 100.0, "output_scale": 0.03, "recipe": "uqsm+"}
    settings["samples"] = {"voxel_sizes": [(1.0, 1.0, 1.0)], "tilt": 0.0}
    save_file({k: v.half() for k, v in UNet(TINY).state_dict().items()}, path, {"settings": json.dumps(settings)})
    return path


def test_an_axial_scan_of_one_millimetre_is_in_the_frame_already():
    assert frame_of((1.0, 1.0, 1.0), (0.0, 0.0, 1.0), (20, 20, 20)) is None
    assert frame_of((1.0625, 1.0625, 1.0714), (0.0, 0.0, -1.0), (20, 20, 20)) is None
    assert frame_of((1.0, 1.0, 1.0), (0.2, 0.0, 0.98), (20, 20, 20)) is not None
    assert frame_of((1.0, 1.0, 2.0), (0.0, 0.0, 1.0), (20, 20, 20)) is not None


def test_a_network_is_left_in_the_frame_that_it_learned():
    slab, tilted = (0.5, 0.5, 2.0), (0.0, 0.26, 0.966)
    learned = ((1.0, 1.0, 1.0), slab)
    assert frame_of(slab, (0.0, 0.0, 1.0), (30, 30, 10), learned) is None
    assert frame_of(slab, tilted, (30, 30, 10), learned, 0.3) is None
    assert frame_of((0.6, 0.6, 2.2), tilted, (30, 30, 10), learned, 0.3).voxel_size == slab
    near = frame_of((0.6, 0.6, 2.2), tilted, (30, 30, 10), learned, 0.3)
    assert near.b0_direction == pytest.approx(tilted, abs=1e-3)  # resampled, not turned
    assert frame_of(slab, tilted, (30, 30, 10), learned, 0.1).b0_direction == pytest.approx((0, 0, 1), abs=1e-6)


@pytest.mark.parametrize(
    ("size", "direction", "shape"),
    [
        ((1.0, 1.0, 1.0), (0.0, 0.6, 0.8), (48, 50, 46)),
        ((0.8, 0.8, 2.0), (0.5, -0.3, 0.81), (62, 58, 26)),
        ((1.0, 2.0, 1.0), (1.0, 0.0, 0.0), (50, 26, 47)),
        ((1.5, 1.5, 1.5), (0.0, 0.2, -0.98), (32, 33, 34)),
    ],
)
def test_in_the_frame_the_field_of_a_sphere_is_that_of_an_axial_scan(size, direction, shape):
    b0 = torch.nn.functional.normalize(torch.tensor(direction), dim=0).tolist()
    b0 = (b0[0], b0[1], b0[2])
    centre = tuple((n - 1) / 2 * d for n, d in zip(shape, size, strict=True))
    field = sphere_field(shape, size, b0, centre=centre, radius=7.0)
    mask = sphere(shape, size, centre=centre, radius=20.0) > 0.5
    frame = frame_of(size, b0, shape)
    moved, inside = into(field, mask, frame)
    middle = tuple(float(n - 1) / 2 for n in frame.shape)
    expected = sphere_field(frame.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 1.0), centre=middle, radius=7.0)
    ball = sphere(frame.shape, (1.0, 1.0, 1.0), centre=middle, radius=7.0)
    clear = inside & (torch.nn.functional.max_pool3d(ball[None], 5, 1, 2)[0] == 0)
    assert float((moved - expected)[clear].norm() / expected[clear].norm()) < 0.06
    assert float(inside.sum()) == pytest.approx(float(mask.sum()) * size[0] * size[1] * size[2], rel=0.05)


def test_there_and_back_is_nearly_nothing():
    size, b0, shape = (0.9, 1.1, 1.6), (0.3, 0.2, 0.93), (50, 44, 30)
    x, y, z = torch.meshgrid(*[torch.arange(n) * d for n, d in zip(shape, size, strict=True)], indexing="ij")
    volume = torch.sin(x / 3) * torch.cos(y / 4) + torch.sin(z / 5)
    mask = (x - 22) ** 2 + (y - 24) ** 2 + (z - 23) ** 2 < 18**2
    frame = frame_of(size, b0, shape)
    back = out_of(*into(volume * mask, mask, frame), frame)
    inner = (x - 22) ** 2 + (y - 24) ** 2 + (z - 23) ** 2 < 15**2
    assert float((back - volume)[inner].norm() / volume[inner].norm()) < 0.03


def test_weights_of_a_training_are_an_inversion(weights):
    shape, size = (21, 18, 24), (1.0, 1.2, 2.0)
    field, mask = 0.01 * torch.randn(shape), torch.zeros(shape, dtype=torch.bool)
    mask[3:-3, 4:-2, 5:-6] = True
    dipole = DipoleModel(shape, size, (0.0, 0.3, 0.95))
    chi = by_network(field, mask, dipole, weights=weights)
    assert chi.shape == shape and not chi[~mask].any() and chi[mask].std() > 0
    torch.testing.assert_close(by_network(2 * field, mask, dipole, weights=weights), 2 * chi, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("bits", "accuracy"), [(8, 1 / 250), (16, 1 / 2000)])
def test_stored_weights_are_the_weights_but_for_their_bits(bits, accuracy):
    torch.manual_seed(0)
    weights = UNet(UNetShape(base=2, levels=3, norm=True, up="deconvolution")).state_dict()
    small = packed(weights, bits)
    again = unpacked(small)
    assert again.keys() == weights.keys()
    for name, value in weights.items():
        largest = value.abs().flatten(1).amax(1) if value.ndim > 1 else value.abs()
        difference = (again[name] - value).abs()
        difference = difference.flatten(1).amax(1) if value.ndim > 1 else difference
        assert bool((difference <= accuracy * largest + 1e-7).all())
    assert sum(value.nbytes for value in small.values()) < (0.45 if bits == 8 else 0.55) * sum(
        value.nbytes for value in weights.values()
    )


def test_what_is_no_weights_file_is_refused(weights, tmp_path):
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(InputError, match="text.safetensors"):
        read_trained(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="bare.safetensors"):
        read_trained(tmp_path / "bare.safetensors")


def test_a_wrong_checksum_is_refused_by_name(weights, tmp_path):
    weights.rename(tmp_path / "mine.safetensors")
    (tmp_path / "SHA256SUMS").write_text("0" * 64 + "  mine.safetensors\n")
    with pytest.raises(InputError, match="mine.safetensors is not the file"):
        load_trained("mine", tmp_path)
    with pytest.raises(InputError, match="no weights of 'other'"):
        load_trained("other", tmp_path)


def test_the_frame_is_made_for_the_scan_at_hand():
    """Cycling the axes of a scan cycles its chi: nothing assumes an order of axes."""
    shape, size, b0 = (30, 34, 26), (1.0, 1.4, 0.8), (0.5, 0.2, 0.84)
    centre = (13.0, 23.0, 9.0)
    field = sphere_field(shape, size, b0, centre=centre, radius=5.0)
    mask = sphere(shape, size, centre=(14.5, 23.1, 10.0), radius=9.0) > 0.5
    frame = frame_of(size, b0, shape)
    back = out_of(*into(field, mask, frame), frame)
    turned_shape, turned_size, turned_b0 = shape[1:] + shape[:1], size[1:] + size[:1], b0[1:] + b0[:1]
    turned = frame_of(turned_size, turned_b0, turned_shape)
    moved = out_of(*into(field.permute(1, 2, 0), mask.permute(1, 2, 0), turned), turned)
    inner = mask & (sphere(shape, size, centre=centre, radius=6.5) == 0)
    difference = (moved.permute(2, 0, 1) - back)[inner]
    assert float(difference.norm() / back[inner].norm()) < 0.1


def test_refinement_brings_the_field_closer_and_leaves_the_weights_alone(weights):
    shape = (20, 22, 18)
    chi = sphere(shape, (1.0, 1.0, 1.0), centre=(9.0, 11.0, 8.0), radius=4.0, chi=0.1)
    mask = sphere(shape, (1.0, 1.0, 1.0), centre=(9.5, 10.5, 8.5), radius=8.0) > 0.5
    dipole = DipoleModel(shape, (1.0, 1.0, 1.0))
    field = dipole(chi) * mask
    before = {name: value.clone() for name, value in read_trained(weights).network.state_dict().items()}
    plain, refined = (by_network(field, mask, dipole, weights=weights, refinement=steps) for steps in (0, 150))

    def misfit(found):
        return float((dipole(found) - field)[mask].norm())

    assert misfit(refined) < 0.93 * misfit(plain)
    after = read_trained(weights).network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
