"""Names of array shapes, and of a callback, used in signatures.

Checked at run time under test only (jaxtyping with beartype); elsewhere they are plain tensors.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    Volume: TypeAlias = Tensor
    Echoes: TypeAlias = Tensor
    Mask: TypeAlias = Tensor
    Scalar: TypeAlias = Tensor
else:
    try:
        from jaxtyping import Bool, Float

        Volume = Float[Tensor, "*batch x y z"]
        Echoes = Float[Tensor, "*batch echo x y z"]
        Mask = Bool[Tensor, "*batch x y z"]
        Scalar = Float[Tensor, ""]
    except ImportError:
        Volume = Echoes = Mask = Scalar = Tensor

Triple: TypeAlias = tuple[float, float, float]
Shape: TypeAlias = tuple[int, int, int]
Progress: TypeAlias = Callable[[int, int], None]
"""Called with step and steps by what takes long."""
