import pytest
import torch

from chimap.errors import InputError
from chimap.fields.background import ismv, lbv, pdf, resharp, sharp, vsharp
from chimap.linalg import along_axis, irfft, rfft
from chimap.physics.dipole import DipoleModel
from chimap.physics.mean_value import sphere_spectrum

OBLIQUE = (0.2, 0.3, 0.9)


def head(shape=(40, 44, 37), voxel_size=(2.0, 2.0, 2.2)):
    """Field of sources inside and outside an ellipsoid: total, local, mask, dipole model."""
    axes = [(torch.arange(n) - (n - 1) / 2) * size for n, size in zip(shape, voxel_size, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    mask = (x / 30) ** 2 + (y / 34) ** 2 + (z / 30) ** 2 < 1
    inside = torch.zeros(shape)
    inside[((x - 8) ** 2 + y**2 + z**2) < 36] = 0.1
    inside[((x + 9) ** 2 + (y - 5) ** 2 + z**2) < 36] = -0.05
    outside = torch.zeros(shape)
    outside[(x**2 + (y - 39) ** 2 + (z + 10) ** 2) < 25] = 9
    dipole = DipoleModel(shape, voxel_size, OBLIQUE, kernel="green")
    local = dipole(inside) * mask
    return (dipole(outside) * mask + local), local, mask, dipole


@pytest.mark.parametrize(("remove", "error", "kept"), [
        (sharp, 0.15, 0.55), (vsharp, 0.15, 0.7), (resharp, 0.25, 0.55), (ismv, 0.25, 0.6), (lbv, 0.3, 0.8),
        (pdf, 0.3, 1.0),
    ])  # fmt: skip
def test_background_goes_and_the_local_field_stays(remove, error, kept):
    total, local, mask, dipole = head()
    noise = torch.where(mask, 1.0, torch.inf)
    found, valid = remove(total, noise, mask, dipole)
    assert (total - local)[valid].norm() > 4 * local[valid].norm()  # there is something to remove
    assert (found - local)[valid].norm() < error * local[valid].norm()
    assert not (valid & ~mask).any()
    assert float(valid.sum() / mask.sum()) >= kept
    assert found[~valid].abs().max() == 0


@pytest.mark.parametrize("remove", [sharp, vsharp, resharp, ismv, lbv, pdf])
def test_what_lies_outside_the_mask_is_not_read(remove):
    total, _, mask, dipole = head()
    plain, _ = remove(total, None, mask, dipole)
    other, _ = remove(total + 7.0 * ~mask, None, mask, dipole)
    torch.testing.assert_close(other, plain)


@pytest.mark.parametrize("remove", [sharp, vsharp, resharp, ismv, lbv])
def test_a_harmonic_field_disappears(remove):
    _, _, mask, dipole = head()
    ramp = torch.arange(40.0).reshape(40, 1, 1).expand(mask.shape).contiguous()
    found, valid = remove(ramp, None, mask, dipole)
    assert found[valid].abs().max() < 0.05 * ramp[valid].std()


def test_cycling_the_axes_cycles_the_result():
    total, _, mask, dipole = head()
    once, valid = vsharp(total, None, mask, dipole)
    cycled = DipoleModel((44, 37, 40), (2.0, 2.2, 2.0), (0.3, 0.9, 0.2))
    again, valid_again = vsharp(total.permute(1, 2, 0), None, mask.permute(1, 2, 0), cycled)
    assert (valid_again == valid.permute(1, 2, 0)).all()
    torch.testing.assert_close(again, once.permute(1, 2, 0), rtol=0, atol=1e-4)


def test_sphere_sums_to_one_and_has_its_radius():
    spectrum = sphere_spectrum((32, 30, 28), (1.0, 1.0, 2.0), 6.0, like=torch.zeros(1))
    sphere = irfft(spectrum, (32, 30, 28))
    assert float(sphere.sum()) == pytest.approx(1, abs=1e-4)
    assert float(sphere.max()) == pytest.approx(2 / (4 / 3 * torch.pi * 6**3), rel=0.08)  # voxel over volume
    assert sphere[0, 0, 4] < 1e-6 < sphere[0, 0, 2]  # 8 mm and 4 mm from the centre
    assert sphere[7, 0, 0] < 1e-6 < sphere[5, 0, 0]


def test_spectrum_of_a_sphere_is_its_transform():
    spectrum = sphere_spectrum((12, 15, 14), (0.8, 1.0, 2.0), 4.0, like=torch.zeros(1, dtype=torch.float64))
    transform = rfft(irfft(spectrum, (12, 15, 14)))
    torch.testing.assert_close(transform.real, spectrum)
    assert transform.imag.abs().max() < 1e-12
    # the whole sphere is longer than half of the grid along x, where it wraps
    assert sphere_spectrum((6, 15, 14), (0.8, 1.0, 2.0), 4.0, like=spectrum)[0, 0, 0] == pytest.approx(1)


def test_long_voxels_do_not_make_a_sphere_long():
    sphere = irfft(sphere_spectrum((32, 30, 28), (0.8, 0.8, 2.0), 2.0, like=torch.zeros(1)), (32, 30, 28))
    position = [
        torch.fft.fftfreq(n, 1 / n).round() * size for n, size in zip(sphere.shape, (0.8, 0.8, 2.0), strict=True)
    ]
    x, y, z = (float((sphere * along_axis(place.square(), axis)).sum()) for axis, place in enumerate(position))
    assert x == pytest.approx(y, rel=1e-3) and x == pytest.approx(z, rel=1e-3)
    assert float(sphere.sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("remove", [sharp, vsharp, resharp, ismv])
def test_a_mask_without_room_for_a_sphere_is_refused(remove):
    total, _, mask, dipole = head()
    thin = torch.zeros_like(mask)
    thin[20] = True
    with pytest.raises(InputError, match="no sphere of .* mm fits"):
        remove(total, None, thin, dipole)


@pytest.mark.parametrize("remove", [sharp, vsharp, resharp, ismv, lbv, pdf])
def test_an_empty_mask_is_refused(remove):
    total, _, mask, dipole = head()
    with pytest.raises(InputError, match="empty"):
        remove(total, None, torch.zeros_like(mask), dipole)
