"""The number format that networks compute in."""

import torch


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 numbers itself; one that does not is slower with them."""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask is not None and ask() for ask in asked)


BF16 = has_bfloat16()
"""Default of whether the convolutions of networks that have learned are in bfloat16. They take half of the time, which
are most of iQSM+ and less of NeXtQSM, and chi changes by 0.2 to 0.3 % of its SD: docs/benchmarks.md."""
