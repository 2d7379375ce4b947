import pytest
import torch

from chimap.inversion.direct import tkd
from chimap.inversion.rts import rts
from chimap.linalg import gradient, irfft, rfft
from chimap.physics.dipole import DipoleModel

VOXEL = (0.8, 1.0, 2.0)
OBLIQUE = (0.2, 0.3, 0.9)


def scene(shape=(19, 18, 16), voxel=VOXEL):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[2:-2, 2:-2, 2:-2] = True
    dipole = DipoleModel(shape, voxel, OBLIQUE, padding=0)
    chi = torch.zeros(shape)
    chi[5:10, 5:9, 6:10] = 0.1
    chi -= chi.mean()
    noise = 0.002 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return (dipole(chi) + noise) * mask, mask, dipole, chi


def error(chi, truth, mask):
    difference, truth = (chi - truth)[mask], truth[mask]
    return float((difference - difference.mean()).norm() / (truth - truth.mean()).norm())


def first_step(field, dipole, steps):
    """Conjugate gradients from the textbook, with D D as a filter."""
    d = dipole.spectrum
    x, r = torch.zeros_like(field), irfft(rfft(field) * d, field.shape)
    p = r.clone()
    for _ in range(steps):
        mapped = irfft(rfft(p) * d**2, field.shape)
        step = (r * r).sum() / (p * mapped).sum()
        x, following = x + step * p, r - step * mapped
        p, r = following + (following * following).sum() / (r * r).sum() * p, following
    return x


def test_the_second_step_satisfies_its_optimality_conditions():
    """r = S (chi - x) is -lambda times a subgradient of |grad chi|_1: r.chi = -lambda |grad chi|_1, and no direction
    is pulled harder than its own variation holds it."""
    field, _, dipole, _ = scene()
    everywhere = torch.ones_like(field, dtype=torch.bool)
    lam = 1e-3
    chi = rts(field, everywhere, dipole, regularisation=lam, iterations=500, tolerance=0.0)
    x = first_step(field, dipole, 6)
    kept = (dipole.spectrum.abs() > 0.15).float()
    residual = rfft(chi - x) * kept

    def objective(volume):
        misfit = irfft(rfft(volume - x) * kept, field.shape)
        return float(misfit.square().sum() / 2 + lam * gradient(volume, VOXEL).abs().sum())

    least, start = objective(chi), objective(x)
    assert least < 0.9 * start
    generator = torch.Generator().manual_seed(1)
    gap = float((irfft(residual, field.shape) * chi).sum() + lam * gradient(chi, VOXEL).abs().sum())
    assert abs(gap) < 1e-2 * lam * float(gradient(chi, VOXEL).abs().sum())
    for _ in range(20):
        direction = torch.randn(field.shape, generator=generator)
        direction -= direction.mean()
        pull = abs(float((irfft(residual, field.shape) * direction).sum()))
        assert pull <= lam * float(gradient(direction, VOXEL).abs().sum())
    box = torch.zeros_like(field)
    for low in (2, 5, 8):
        box.zero_()
        box[low : low + 5, low : low + 4, 6:10] = 1
        pull = abs(float((irfft(residual, field.shape) * box).sum()))
        assert pull <= 1.02 * lam * float(gradient(box, VOXEL).abs().sum())


def test_what_the_field_tells_well_is_kept():
    field, mask, dipole, _ = scene()
    everywhere = torch.ones_like(mask)
    chi = rts(field, everywhere, dipole, tolerance=0.0)
    kept = dipole.spectrum.abs() > 0.15
    x = rfft(first_step(field, dipole, 6))
    assert (rfft(chi) - x)[kept].abs().pow(2).sum().sqrt() < 0.02 * x[kept].abs().pow(2).sum().sqrt()


@pytest.mark.parametrize("voxel", [(1.0, 1.0, 1.0), VOXEL], ids=["1 mm", "anisotropic"])
def test_it_recovers_chi_in_an_oblique_b0_better_than_division(voxel):
    field, mask, dipole, truth = scene(voxel=voxel)
    chi = rts(field, mask, dipole)
    assert error(chi, truth, mask) < 0.9 * error(tkd(field, mask, dipole), truth, mask)
    assert not chi[~mask].any()


def test_a_batch_equals_a_loop():
    field, mask, dipole, _ = scene()
    fields, masks = torch.stack([field, 0.5 * field.flip(0)]), torch.stack([mask, mask.flip(0)])
    both = rts(fields, masks, dipole)
    for k in range(2):
        torch.testing.assert_close(both[k], rts(fields[k], masks[k], dipole))


def test_it_stops_and_tells_its_progress():
    field, mask, dipole, _ = scene()
    seen = []
    rts(field, mask, dipole, iterations=300, progress=lambda done, of: seen.append((done, of)))
    assert seen[0] == (1, 300) and len(seen) < 300
