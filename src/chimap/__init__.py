"""From MRI gradient-echo phase to magnetic susceptibility.

    import chimap

    scan = chimap.read_scan(["phase.nii.gz"], ["magnitude.nii.gz"])
    maps = chimap.reconstruct(scan, method="nextqsm")
    maps.chi  # torch.Tensor (x, y, z), ppm

The names below are for those who use chimap from Python; every stage can be called by itself, too, from its own room.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chimap.errors import InputError as InputError
    from chimap.from_local_field import invert as invert
    from chimap.io.dicom import read_scan as read_dicom
    from chimap.io.labels import with_segmentation as with_segmentation
    from chimap.io.nifti import read_scan as read_scan
    from chimap.io.nifti import write_volume as write_volume
    from chimap.physics.dipole import DipoleModel as DipoleModel
    from chimap.pipeline import reconstruct as reconstruct
    from chimap.plan import Plan as Plan
    from chimap.plan import plan_named as plan_named
    from chimap.regions import region_values as region_values
    from chimap.scan import Maps as Maps
    from chimap.scan import Scan as Scan

__version__ = "0.1.0"

_HOME = {
    "DipoleModel": "chimap.physics.dipole:DipoleModel",
    "InputError": "chimap.errors:InputError",
    "Maps": "chimap.scan:Maps",
    "Plan": "chimap.plan:Plan",
    "Scan": "chimap.scan:Scan",
    "invert": "chimap.from_local_field:invert",
    "plan_named": "chimap.plan:plan_named",
    "read_dicom": "chimap.io.dicom:read_scan",
    "read_scan": "chimap.io.nifti:read_scan",
    "reconstruct": "chimap.pipeline:reconstruct",
    "region_values": "chimap.regions:region_values",
    "with_segmentation": "chimap.io.labels:with_segmentation",
    "write_volume": "chimap.io.nifti:write_volume",
}

__all__ = [
    "DipoleModel",
    "InputError",
    "Maps",
    "Plan",
    "Scan",
    "invert",
    "plan_named",
    "read_dicom",
    "read_scan",
    "reconstruct",
    "region_values",
    "with_segmentation",
    "write_volume",
]


def __getattr__(name: str) -> Any:
    """Import what a name stands for when it is first used: torch alone takes over a second."""
    if name not in _HOME:
        raise AttributeError(f"module 'chimap' has no attribute {name!r}")
    module, attribute = _HOME[name].split(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
