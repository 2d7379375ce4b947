import math

import pytest
import torch

from chimap.physics.dipole import DipoleModel
from chimap.physics.sources import cylinder, cylinder_field, sphere, sphere_field

SHAPE, SIZE, DIRECTION = (36, 30, 24), (0.8, 1.0, 1.3), (0.3, -0.4, 0.85)
CENTRE = (13.7, 14.2, 15.1)


def test_partial_volumes_add_up_to_the_volume_of_the_sphere():
    chi = sphere(SHAPE, SIZE, centre=CENTRE, radius=6.0, chi=0.5)
    assert float(chi.sum()) * 0.8 * 1.3 == pytest.approx(0.5 * 4 / 3 * math.pi * 6**3, rel=5e-3)
    assert ((chi > 0) & (chi < 0.5)).sum() > 100


def test_partial_volumes_add_up_to_the_cross_section_of_the_cylinder():
    chi = cylinder(SHAPE, SIZE, centre=CENTRE, axis=(0.0, 0.0, 2.0), radius=5.0)
    assert float(chi[:, :, 3].sum()) * 0.8 == pytest.approx(math.pi * 25, rel=0.01)
    torch.testing.assert_close(chi[:, :, 0], chi[:, :, -1])


def test_field_of_a_sphere_by_hand():
    # on the axis along B0, at twice the radius: 1/3 * 1/8 * 2; at a right angle: minus half of that
    field = sphere_field((9, 9, 9), (1.0, 1.0, 1.0), (0.0, 1.0, 0.0), centre=(4.0, 4.0, 4.0), radius=2.0, chi=1.2)
    assert float(field[4, 8, 4]) == pytest.approx(0.1)
    assert float(field[0, 4, 4]) == pytest.approx(-0.05)
    assert float(field[4, 4, 8]) == pytest.approx(-0.05)
    assert float(field[4, 4, 4]) == 0


def test_field_of_a_cylinder_by_hand():
    def at(b0, place):
        field = cylinder_field(
            (9, 9, 9), (1.0, 1.0, 1.0), b0, centre=(4.0, 4.0, 0.0), axis=(0.0, 0.0, 1.0), radius=2.0, chi=1.2
        )
        return float(field[place])

    assert at((0.0, 0.0, 1.0), (4, 4, 2)) == pytest.approx(0.4)  # along B0: a third of chi inside,
    assert at((0.0, 0.0, 1.0), (8, 4, 2)) == pytest.approx(0)  # nothing outside
    assert at((1.0, 0.0, 0.0), (4, 4, 2)) == pytest.approx(-0.2)  # across: minus a sixth inside,
    assert at((1.0, 0.0, 0.0), (8, 4, 2)) == pytest.approx(0.15)  # chi / 2 / 4 on the way of B0
    assert at((1.0, 0.0, 0.0), (4, 8, 2)) == pytest.approx(-0.15)


def test_dipole_model_gives_the_field_of_a_sphere():
    chi = sphere(SHAPE, SIZE, centre=CENTRE, radius=6.0)
    exact = sphere_field(SHAPE, SIZE, DIRECTION, centre=CENTRE, radius=6.0)
    field = DipoleModel(SHAPE, SIZE, DIRECTION, kernel="green")(chi)
    clear = (chi == 0) & (torch.nn.functional.max_pool3d(chi[None], 3, 1, 1)[0] == 0)
    assert float((field - exact)[clear].norm() / exact[clear].norm()) < 0.01


def test_dipole_model_gives_the_field_of_a_cylinder_far_from_its_ends():
    shape, size = (40, 40, 240), (1.0, 1.0, 1.0)
    kind = {"centre": (19.5, 19.5, 0.0), "axis": (0.0, 0.0, 1.0), "radius": 6.0}
    chi = cylinder(shape, size, **kind)
    exact = cylinder_field(shape, size, DIRECTION, **kind)[:, :, 110:130]
    # the periodic images along z continue the cylinder, those across it are padded away
    field = DipoleModel(shape, size, DIRECTION, padding=(80, 80, 0))(chi)[:, :, 110:130]
    clear = torch.nn.functional.max_pool3d(chi[None], 3, 1, 1)[0, :, :, 110:130] == 0
    difference = (field - exact)[clear]
    difference -= difference.mean()  # D(0) = 0 leaves a constant
    assert float(difference.norm() / exact[clear].norm()) < 0.05


def test_cycling_the_axes_cycles_sources_and_fields():
    chi = cylinder(SHAPE, SIZE, centre=CENTRE, axis=(1.0, 2.0, -0.5), radius=4.0, supersampling=2)
    field = cylinder_field(SHAPE, SIZE, DIRECTION, centre=CENTRE, axis=(1.0, 2.0, -0.5), radius=4.0)

    def cycled(values):
        return (values[1], values[2], values[0])

    kind = {"centre": cycled(CENTRE), "axis": (2.0, -0.5, 1.0), "radius": 4.0}
    turned = cylinder(cycled(SHAPE), cycled(SIZE), **kind, supersampling=2)
    turned_field = cylinder_field(cycled(SHAPE), cycled(SIZE), cycled(DIRECTION), **kind)
    torch.testing.assert_close(turned, chi.permute(1, 2, 0))
    torch.testing.assert_close(turned_field, field.permute(1, 2, 0))


@pytest.mark.parametrize("kernel", ["fourier", "green"])
@pytest.mark.parametrize("direction", [(0.0, 0.0, 1.0), (0.4, -0.5, 0.77)])
@pytest.mark.parametrize("place", [0.5, 0.2])
def test_a_sphere_of_eight_voxels_is_within_two_percent_of_its_peak(kernel, direction, place):
    """Also where it lies so close to a face that a periodic field would come back on the other side."""
    shape, size, radius = (64, 60, 62), (1.0, 1.0, 1.0), 8.0
    centre = (place * 63, 29.3, 30.6)
    chi = sphere(shape, size, centre=centre, radius=radius, supersampling=8)
    exact = sphere_field(shape, size, direction, centre=centre, radius=radius)
    field = DipoleModel(shape, size, direction, kernel=kernel)(chi)
    border = torch.nn.functional.max_pool3d(((chi > 0) & (chi < 1))[None].float(), 3, 1, 1)[0] > 0
    error = (field - exact)[~border]
    assert float(error.square().mean().sqrt() / exact.abs().max()) < 0.02
    far = torch.zeros(shape, dtype=torch.bool)
    far[-8:] = True
    assert float((field - exact)[far].abs().max() / exact.abs().max()) < 0.02
