"""From wrapped phase to chi: echoes joined, voxels resampled as a complex signal, the rim given up."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from chimap import from_local_field, methods, pipeline
from chimap.cli import main
from chimap.errors import InputError
from chimap.inversion.single_step import from_phase
from chimap.networks.build import build
from chimap.networks.laplacian import InstantShape
from chimap.networks.unet import UNetShape
from chimap.plan import Plan
from chimap.report.methods import methods_paragraph
from chimap.scan import Scan

SHAPE = InstantShape(base=2, pools=2, kernels=2, fixed_first=False, stem=True, oriented=True, coding="tensor")
Z, MM = (0.0, 0.0, 1.0), (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(3)
    settings = {
        "recipe": "iqsm+", "takes": "phase", "network": asdict(SHAPE), "input_scale": 30.0, "output_scale": 0.1,
        "samples": {"voxel_sizes": [[1.0, 1.0, 1.0]], "tilt": 1.5708},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save_file(build(SHAPE).state_dict(), path, {"settings": json.dumps(settings)})
    return path


@pytest.fixture
def scene():
    generator = torch.Generator().manual_seed(0)
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in (20, 22, 24)], indexing="ij")
    mask = x**2 + y**2 + z**2 < 0.8
    field = 0.05 * torch.exp(-8 * ((x - 0.2) ** 2 + y**2 + z**2)) + 0.2 * x
    phase = torch.stack([1600 * t * field for t in (0.01, 0.02)])
    magnitude = 1 + 0.1 * torch.rand(phase.shape, generator=generator)
    return torch.atan2(phase.sin(), phase.cos()), magnitude, mask


def test_echoes_of_one_field_are_one_to_the_network(scene, weights):
    phase, magnitude, mask = scene
    field = torch.atan2(phase[0].sin(), phase[0].cos()) / 1000  # of small steps, in which sines are straight
    phases = torch.stack([field, 2 * field])

    def chi(echoes, times, strengths=None):
        return from_phase(echoes, strengths, mask, times, 3.0, MM, Z, weights=weights)

    both, valid = chi(phases, (0.01, 0.02), magnitude)
    alone, _ = chi(phases[:1], (0.01,))
    torch.testing.assert_close(both[valid], alone[valid], atol=2e-6, rtol=1e-3)
    assert float(both[valid].std()) > 0 and not both[~valid].any()
    # four times the weight of the later echo, and no more: what differs from it is a fifth of what it says
    phases[0] += torch.where(mask, 1e-4 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(1)), 0)
    laplacians = [chi(part, times)[0] for part, times in ((phases[:1], (0.01,)), (phases[1:], (0.02,)))]
    mixed = chi(torch.stack([phases[0], phases[1]]), (0.01, 0.02))[0]
    apart = [float((mixed - one)[valid].square().mean().sqrt()) for one in laplacians]
    assert apart[1] < 0.4 * apart[0]


def test_echoes_that_are_too_steep_are_left_out(scene, weights):
    phase, magnitude, mask = scene
    times = (0.01, 0.02)

    def chi(echoes, **options):
        return from_phase(echoes, magnitude, mask, times[: len(echoes)], 3.0, MM, Z, weights=weights, **options)[0]

    alone = from_phase(phase[:1], magnitude[:1], mask, times[:1], 3.0, MM, Z, weights=weights)[0]
    torch.testing.assert_close(chi(phase, steepest=0.0), alone)
    assert float((chi(phase, steepest=10.0) - alone).abs().max()) > 1e-3 * float(alone.abs().max())


def test_a_network_is_shown_the_images_that_it_is_asked_to(scene, tmp_path):
    phase, _, mask = scene
    shape = replace(SHAPE, standard_frame=True)
    settings = {
        "recipe": "iqsm+", "takes": "phase", "network": asdict(shape), "input_scale": 30.0, "output_scale": 0.1,
        "samples": {"voxel_sizes": [[1.0, 1.0, 1.0]], "tilt": 1.5708},
    }  # fmt: skip
    torch.manual_seed(3)
    path = tmp_path / "best.safetensors"
    save_file(build(shape).state_dict(), path, {"settings": json.dumps(settings)})

    def chi(of_phase, times, images):
        return from_phase(of_phase, None, mask, times, 3.0, MM, Z, weights=path, images=images)[0]

    one, wanted = phase[:1], (0.01,)
    mean = torch.stack([chi(one.flip(axis), wanted, 1).flip(axis - 1) for axis in (1, 2, 3)]).sum(dim=0)
    mean = (mean + chi(one, wanted, 1)) / 4
    torch.testing.assert_close(chi(one, wanted, 4), mean, rtol=1e-4, atol=1e-6)
    assert float((chi(one, wanted, 1) - mean).abs().max()) > 1e-3 * float(mean.abs().max())


def test_the_rim_is_given_up_and_nothing_beyond_the_mask_counts(scene, weights):
    phase, magnitude, mask = scene
    chi, valid = from_phase(phase, magnitude, mask, (0.01, 0.02), 3.0, MM, Z, weights=weights)
    assert 0.5 < float(valid.sum() / mask.sum()) < 1 and not (valid & ~mask).any()
    noise = torch.where(mask, phase, torch.randn_like(phase))
    again, _ = from_phase(noise, magnitude, mask, (0.01, 0.02), 3.0, MM, Z, weights=weights)
    torch.testing.assert_close(again, chi)


def test_other_voxels_are_resampled_and_chi_comes_back_on_the_grid(scene, weights):
    phase, magnitude, mask = scene
    chi, valid = from_phase(phase, magnitude, mask, (0.01, 0.02), 3.0, (0.8, 0.8, 2.0), Z, weights=weights)
    assert chi.shape == mask.shape and torch.isfinite(chi).all() and float(chi[valid].std()) > 0


def test_a_scan_goes_through_and_the_record_says_how(scene, weights):
    phase, magnitude, mask = scene
    scan = Scan(phase, magnitude, (0.01, 0.02), 3.0, MM, Z, torch.eye(4).numpy(), mask=mask)
    maps = pipeline.reconstruct(scan, Plan(inversion=str(weights)))
    assert any("comes from the wrapped phase" in note for note in maps.notes)
    assert float(maps.mask.sum()) > 0.5 * float(mask.sum()) and not maps.chi[~maps.mask].any()


def test_a_local_field_is_refused_in_one_sentence(weights, tmp_path, capsys):
    for name in ("iqsm+", str(weights)):
        with pytest.raises(InputError, match="takes the phase, not a local field"):
            methods.find(name, "inversion")
    command = ["invert", "--local-field", "f.nii.gz", "--mask", "m.nii.gz", "--output", str(tmp_path / "chi.nii.gz")]
    assert main([*command, "--method", "iqsm+"]) == 2
    assert "chimap run" in capsys.readouterr().err


def saved(folder, takes, gives, shape, tilt=1.5708):
    torch.manual_seed(3)
    settings = {
        "recipe": "own", "takes": takes, "gives": gives, "network": asdict(shape), "input_scale": 30.0,
        "output_scale": 0.03, "samples": {"voxel_sizes": [[1.0, 1.0, 1.0]], "tilt": tilt},
    }  # fmt: skip
    path = folder / "best.safetensors"
    save_file(build(shape).state_dict(), path, {"settings": json.dumps(settings)})
    return path


@pytest.mark.parametrize(
    ("takes", "shape"), [("phase", SHAPE), ("total field", UNetShape(base=2, levels=3))], ids=["iQFM", "SHARQnet"]
)
def test_a_network_that_gives_the_local_field_takes_the_place_of_background_removal(scene, tmp_path, takes, shape):
    phase, magnitude, mask = scene
    path = saved(tmp_path, takes, "local field", shape)
    scan = Scan(phase, magnitude, (0.01, 0.02), 3.0, MM, Z, np.eye(4), mask=mask)
    plan = Plan(background=str(path), inversion="tkd", reference="none")
    maps = pipeline.reconstruct(scan, plan)
    assert maps.local_field[maps.mask].std() > 0 and not maps.local_field[~maps.mask].any()
    again = from_local_field.invert(maps.local_field, maps.mask, MM, Z, method="tkd")
    torch.testing.assert_close(maps.chi, again)
    found = "The local field was found in the wrapped phase" if takes == "phase" else "The background field was removed"
    assert found in methods_paragraph(scan, maps, plan)
    with pytest.raises(InputError, match=r"best.safetensors is for background.*, not for inversion"):
        pipeline.reconstruct(scan, Plan(inversion=str(path)))


def test_a_network_of_axial_scans_is_affined_unless_it_is_told_to_be_itself(scene, tmp_path):
    phase, magnitude, mask = scene
    path = saved(tmp_path, "phase", "chi", InstantShape(base=2, pools=2, kernels=2), tilt=0.0)
    oblique = (0.6, 0.0, 0.8)

    def chi(b0, **options):
        return from_phase(phase, magnitude, mask, (0.01, 0.02), 3.0, MM, b0, weights=path, **options)[0]

    axial = chi(Z)
    torch.testing.assert_close(chi(oblique, turn=False), axial)  # it is not told the direction
    assert float((chi(oblique) - axial).abs().max()) > 0.01 * float(axial.abs().max())
    scan = Scan(phase, magnitude, (0.01, 0.02), 3.0, MM, oblique, np.eye(4), mask=mask)
    for turn, notes in ((True, 1), (False, 0)):
        maps = pipeline.reconstruct(scan, Plan(inversion=str(path), settings={str(path): {"turn": turn}}))
        assert sum("turned by 37 degrees" in note for note in maps.notes) == notes
