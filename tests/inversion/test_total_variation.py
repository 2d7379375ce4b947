import pytest
import torch

from chimap.inversion.total_variation import total_variation
from chimap.linalg import divergence, gradient, irfft, laplacian_spectrum, rfft
from chimap.physics.dipole import DipoleModel

VOXEL = (0.8, 1.0, 2.0)
OBLIQUE = (0.2, 0.3, 0.9)


def textbook_admm(field, weight, dipole, regularisation, penalty, iterations):
    """The same algorithm without its shortcuts; returns chi and the multiplier of grad chi = z."""
    shape, d = field.shape, dipole.spectrum
    z = u = torch.zeros(3, *shape)
    y, v = weight**2 * field / (weight**2 + 1), torch.zeros(shape)
    system = d**2 + penalty * laplacian_spectrum(shape, dipole.voxel_size)
    system[0, 0, 0] = 1
    for _ in range(iterations):
        right = d * rfft(y - v) + penalty * rfft(-divergence(z - u, dipole.voxel_size))
        chi = irfft(right / system, shape)
        total = gradient(chi, dipole.voxel_size) + u
        z = total.sign() * (total.abs() - regularisation / penalty).clamp_min(0)
        u = total - z
        total = irfft(rfft(chi) * d, shape) + v
        y = (weight**2 * field + total) / (weight**2 + 1)
        v = total - y
    return chi, penalty * u


def box_field(shape=(18, 15, 16)):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[2:-2, 2:-2, 2:-2] = True
    dipole = DipoleModel(shape, VOXEL, OBLIQUE, padding=0)
    chi = torch.zeros(shape)
    chi[5:10, 5:9, 6:10] = 0.1
    return (dipole(chi) + 0.002 * torch.randn(shape)) * mask, mask, dipole


def test_weighted_iterations_equal_the_textbook():
    field, mask, dipole = box_field()
    weight = torch.rand(field.shape) * mask
    expected, _ = textbook_admm(field, weight, dipole, 1e-3, 0.1, 12)
    found = total_variation(field, mask, dipole, weight, regularisation=1e-3, penalty=0.1, iterations=12, tolerance=0.0)
    torch.testing.assert_close(found, expected * mask, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(18, 15, 16), (19, 14, 17)])
def test_result_satisfies_the_optimality_conditions(shape):
    """There is a p with |p| <= lambda, p.grad chi = lambda |grad chi|_1 and D (D chi - f) = div p."""
    field, mask, dipole = box_field(shape)
    everywhere = torch.ones(shape, dtype=torch.bool)
    settings = dict(regularisation=1e-3, penalty=0.05, iterations=1500, tolerance=0.0)
    chi = total_variation(field, everywhere, dipole, **settings)

    # the multiplier p by projected gradient on chi's own differences would need chi exactly; one more ADMM run
    # from scratch without the data term split gives it
    z = u = torch.zeros(3, *shape)
    d, g = dipole.spectrum, laplacian_spectrum(shape, VOXEL)
    system = d**2 + 0.05 * g
    system[0, 0, 0] = 1
    for _ in range(1500):
        again = irfft((d * rfft(field) - 0.05 * rfft(divergence(z - u, VOXEL))) / system, shape)
        total = gradient(again, VOXEL) + u
        z = total.sign() * (total.abs() - 0.02).clamp_min(0)
        u = total - z
    p = 0.05 * u
    steps = gradient(chi, VOXEL)
    residual = dipole.adjoint(dipole(chi) - field) - divergence(p, VOXEL)
    assert p.abs().max() <= 1e-3 * (1 + 1e-5)
    assert float((p * steps).sum()) == pytest.approx(1e-3 * float(steps.abs().sum()), rel=2e-2)
    assert residual.norm() < 1e-2 * dipole.adjoint(field).norm()


def test_total_variation_removes_noise_that_division_keeps():
    field, mask, dipole = box_field()
    truth = torch.zeros(field.shape)
    truth[5:10, 5:9, 6:10] = 0.1
    truth -= truth.mean()
    chi = total_variation(field, mask, dipole, regularisation=1e-3, iterations=100)
    assert (chi - truth)[mask].norm() < 0.35 * truth[mask].norm()
    assert chi[~mask].abs().max() == 0


def test_a_batch_equals_a_loop():
    field, mask, dipole = box_field()
    fields = torch.stack([field, 0.5 * field.flip(0)])
    masks = torch.stack([mask, mask.flip(0)])
    both = total_variation(fields, masks, dipole, iterations=7)
    for k in range(2):
        torch.testing.assert_close(both[k], total_variation(fields[k], masks[k], dipole, iterations=7))


def test_it_stops_when_chi_no_longer_changes_and_tells_its_progress():
    field, mask, dipole = box_field()
    seen = []
    total_variation(
        field, mask, dipole, iterations=300, tolerance=1e-2, progress=lambda done, of: seen.append((done, of))
    )
    assert seen[0] == (1, 300)
    assert 5 <= len(seen) < 300
