import math

import nibabel as nib
import pytest
import torch

from chimap.errors import InputError
from chimap.physics.dipole import dipole_kernel
from chimap.simulation.acquisition import fields_of
from chimap.simulation.field_error import PARTS, field_error
from chimap.simulation.head import built_in_head
from chimap.simulation.tissues import TISSUES

SHAPE, SIZE, B0 = (20, 22, 18), (2.0, 2.0, 3.0), (0.0, 0.6, 0.8)
WHITE, GREY = TISSUES["white matter"].label, TISSUES["grey matter"].label


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def slab(shape=SHAPE):
    """Grey matter beside white, in a mask with a margin, and a field."""
    labels = torch.full(shape, GREY, dtype=torch.uint8)
    labels[shape[0] // 2 :] = WHITE
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[2:-2, 3:-2, 1:-2] = True
    return labels, mask, 0.01 * torch.randn(shape, generator=seeded(9)) + 0.02


def error_of(labels, mask, field, *, b0=B0, seed=0, share=0.5, **parts):
    return field_error(
        labels, mask, SIZE, b0, share=share, local_field=field, generator=seeded(seed), parts=parts or None
    )


@pytest.fixture(scope="module")
def head():
    made = built_in_head((46, 54, 44), (4.0, 4.0, 4.0), grid_rotation=(0.4, 0.0, 0.1))
    return made, fields_of(made)[1]


def near_the_cone(field, mask, size, b0):
    """Share of the energy of what the mask shows of a field, where |D| < 0.1: 17.5 % if D were no matter."""
    energy = torch.fft.fftn((field - field[mask].mean()) * mask).abs() ** 2
    return float(energy[dipole_kernel(field.shape, size, b0).abs() < 0.1].sum() / energy.sum())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("part", [None, *PARTS])
def test_the_sd_is_the_share_of_the_fields(share, part):
    labels, mask, field = slab()
    error = error_of(labels, mask, field, share=share, **({part: 2.0} if part else {}))
    assert float(error[mask].std() / field[mask].std()) == pytest.approx(share, rel=1e-4)
    assert abs(float(error[mask].mean())) < 1e-6
    assert not error[~mask].any()


@pytest.mark.parametrize("part", [None, *PARTS])
def test_the_error_is_no_dipole_field(head, part):
    made, local = head
    error = field_error(
        made.labels, made.mask, made.voxel_size, made.b0_direction,
        share=0.5, local_field=local, generator=seeded(3), parts={part: 1.0} if part else None,
    )  # fmt: skip
    arguments = made.mask, made.voxel_size, made.b0_direction
    assert near_the_cone(local, *arguments) < 0.04
    assert near_the_cone(error, *arguments) > 3 * near_the_cone(local, *arguments)
    assert near_the_cone(error, *arguments) > 0.1


def test_neither_is_a_measured_field(head, shared_data):
    made, local = head
    folder = shared_data / "real" / "challenge-2016"
    field, mask = (
        torch.from_numpy(nib.nifti1.load(folder / name).get_fdata(dtype="float32"))
        for name in ("local_field_ppm.nii.gz", "mask.nii.gz")
    )
    measured = near_the_cone(field, mask > 0, (1.0625, 1.0625, 1.0714), (0.0, 0.0, 1.0))
    arguments = made.mask, made.voxel_size, made.b0_direction
    half, most = (
        local
        + field_error(
            made.labels, made.mask, made.voxel_size, made.b0_direction,
            share=share, local_field=local, generator=seeded(3),
        )
        for share in (0.5, 0.9)
    )  # fmt: skip
    assert near_the_cone(local, *arguments) < near_the_cone(half, *arguments) < measured
    assert near_the_cone(most, *arguments) == pytest.approx(measured, rel=0.3)


def test_regions_have_an_offset_each_and_a_soft_border():
    labels, mask, field = slab((40, 22, 18))
    steps, within, profiles = [], [], []
    for seed in range(30):
        error = error_of(labels, mask, field, seed=seed, region=1.0)
        grey, white = error[10:17][mask[10:17]], error[23:30][mask[23:30]]
        steps.append(float(grey.mean() - white.mean()) / float(error[mask].std()))
        within.append(float(grey.std()) / float(error[mask].std()))
        profiles.append(error[18:22, 10, 9])  # the border lies in its middle
    assert min(steps) < -1
    assert max(steps) > 1
    assert 0.1 < sorted(within)[15] < 0.9
    profile = torch.stack(profiles)
    jump = profile[:, 3] - profile[:, 0]
    fractions = (profile[:, 1:3] - profile[:, :1]).T @ jump / (jump @ jump)
    torch.testing.assert_close(fractions, torch.tensor([0.25, 0.75]), rtol=0, atol=0.08)


def test_microstructure_is_in_white_matter_and_turns_with_b0():
    labels, mask, field = slab()
    along_z, along_y = (error_of(labels, mask, field, b0=b0, microstructure=1.0) for b0 in ((0.0, 0.0, 1.0), B0))
    grey, white = mask.clone(), mask.clone()
    grey[9:], white[:10] = False, False
    assert float(along_z[grey].std()) < 1e-6 < 1e-3 < float(along_z[white].std())
    assert float((along_z - along_y)[white].std()) > 0.5 * float(along_z[white].std())
    torch.testing.assert_close(along_z, error_of(labels, mask, field, b0=(0.0, 0.0, -2.0), microstructure=1.0))


def test_microstructure_has_no_offset_on_average_over_directions():
    """The mean of sin^2 over the sphere is 2/3."""
    labels, mask, field = slab((40, 22, 18))
    offsets = []
    for seed in range(30):
        error = error_of(labels, mask, field, seed=seed, microstructure=1.0)
        white = error[22:][mask[22:]]
        offsets.append(float((white.mean() - error[5, 10, 9]) / white.std()))  # grey matter has none
    assert abs(sum(offsets) / 30) < 0.4


def test_microstructure_follows_the_square_of_the_sine():
    """Over three B0 directions at right angles the squared cosines of any fibre add up to one."""
    shape = (24, 24, 24)
    labels = torch.full(shape, WHITE)
    mask = torch.ones(shape, dtype=torch.bool)
    field = torch.randn(shape, generator=seeded(1))
    errors = torch.stack([
        error_of(labels, mask, field, b0=b0, microstructure=1.0)
        for b0 in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    ])  # fmt: skip
    # each comes with its own offset and factor from the normalisation: the sum is constant under the right factors
    columns = errors.flatten(1)
    values = torch.linalg.eigvalsh(columns @ columns.T / columns.shape[1])
    assert float(values[0] / values[2]) < 1e-3


def test_background_grows_towards_the_rim():
    shape = (40, 40, 40)
    position = (torch.arange(40.0) - 19.5) * 2.0
    radius = torch.sqrt(position[:, None, None] ** 2 + position[:, None] ** 2 + position**2)
    mask = radius < 36
    field = torch.randn(shape, generator=seeded(1))
    rim, core = [], []
    for seed in range(10):
        error = field_error(
            mask.long(), mask, (2.0, 2.0, 2.0), B0, share=1.0, local_field=field, generator=seeded(seed),
            parts={"background": 1.0},
        )  # fmt: skip
        rim.append(error[mask & (radius > 32)].square().mean())
        core.append(error[radius < 15].square().mean())
        neighbours = error[:-1] * error[1:]
        both = mask[:-1] & mask[1:]
        assert float(neighbours[both].mean() / error[mask].square().mean()) > 0.8  # smooth
    assert float(sum(rim) / sum(core)) > 3


def test_texture_is_grain_of_two_to_four_millimetres():
    shape = (40, 40, 40)
    labels, mask = torch.zeros(shape, dtype=torch.int32), torch.ones(shape, dtype=torch.bool)
    field = torch.randn(shape, generator=seeded(1))
    for seed in range(5):
        error = field_error(
            labels, mask, (0.8, 0.8, 0.8), B0, share=1.0, local_field=field, generator=seeded(seed),
            parts={"texture": 1.0},
        )  # fmt: skip
        correlation = [float((error[lag:] * error[: 40 - lag]).mean()) for lag in (1, 3)]  # half-widths: 1 to 2 mm
        assert correlation[0] > 0.5 > correlation[1]


def test_shares_of_parts_are_shares_of_variance():
    labels, mask, field = slab()
    pure = {name: error_of(labels, mask, field, share=1.0, **{name: 1.0})[mask] for name in ("region", "texture")}
    both = error_of(labels, mask, field, share=1.0, region=0.8, texture=0.2)[mask]
    # the region is drawn first, so it is the same in both; the texture is another one, uncorrelated with it
    weight = float((both * pure["region"]).mean() / pure["region"].square().mean())
    assert weight == pytest.approx(math.sqrt(0.8), abs=0.03)
    assert abs(float((pure["texture"] * pure["region"]).mean())) < 0.1 * float(pure["region"].square().mean())


def test_the_generator_decides():
    labels, mask, field = slab()
    assert torch.equal(error_of(labels, mask, field, seed=4), error_of(labels, mask, field, seed=4))
    assert not torch.equal(error_of(labels, mask, field, seed=4), error_of(labels, mask, field, seed=5))


def test_a_part_without_variation_drops_out():
    labels, mask, field = slab()
    labels.fill_(GREY)
    error = error_of(labels, mask, field, microstructure=1.0, texture=1.0)
    assert float(error[mask].std() / field[mask].std()) == pytest.approx(0.5, rel=1e-4)
    with pytest.raises(InputError, match="microstructure"):
        error_of(labels, mask, field, microstructure=1.0)


def test_no_field_and_no_share_have_no_error():
    labels, mask, field = slab()
    assert not error_of(labels, mask, field, share=0.0).any()
    assert not error_of(labels, mask, torch.full_like(field, 0.03)).any()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"labels": torch.zeros(SHAPE)}, "labels"),
        ({"labels": torch.full(SHAPE, -1)}, "labels"),
        ({"labels": torch.zeros(4, 4, 4, dtype=torch.uint8)}, "shape"),
        ({"mask": torch.zeros(SHAPE, dtype=torch.bool)}, "empty"),
        ({"share": -0.1}, "share"),
        ({"share": math.inf}, "share"),
        ({"parts": {"motion": 1.0}}, "motion"),
        ({"parts": {"texture": -1.0, "region": 2.0}}, "texture"),
        ({"parts": {"texture": 0.0}}, "texture"),
    ],
)
def test_what_cannot_be_used_is_refused(change, word):
    labels, mask, field = slab()
    arguments = {"labels": labels, "mask": mask, "share": 0.5, "parts": None} | change
    with pytest.raises(InputError, match=word):
        field_error(
            arguments["labels"], arguments["mask"], SIZE, B0,
            share=arguments["share"], local_field=field, generator=seeded(), parts=arguments["parts"],
        )  # fmt: skip
