"""The number format of networks: taken where the processor has it, and what it costs."""

import platform
from pathlib import Path

import pytest

from chimap import methods
from chimap.inversion.learned import by_network
from chimap.inversion.single_step import from_phase, from_total_field
from chimap.networks.precision import BF16, has_bfloat16
from chimap.physics.dipole import DipoleModel
from chimap.simulation.acquisition import acquire
from chimap.simulation.head import built_in_head

Z, MM = (0.0, 0.0, 1.0), (1.0, 1.0, 1.0)


@pytest.mark.skipif(platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="asks Linux on x86")
def test_bfloat16_is_the_default_where_the_processor_has_it():
    flags = Path("/proc/cpuinfo").read_text()
    assert has_bfloat16() == BF16 == ("avx512_bf16" in flags or "amx_tile" in flags)
    for name in ("qsmnet+", "iqsm+", "nextqsm"):
        assert methods.find(name, *methods.TO_CHI).parameters()["bf16"] == BF16


@pytest.mark.parametrize("name", ["qsmnet+", "xqsm+", "iqsm+", "nextqsm"])
def test_bfloat16_changes_little(name):
    # a head of 2.5 mm taken for a small one of 1 mm: the field of a dipole has no scale
    head = built_in_head((64, 72, 56), (2.5, 2.5, 2.5), seed=1)
    scan, truth = acquire(head, echo_times=(0.01, 0.02), snr=100.0)
    stage = methods.find(name, *methods.TO_CHI).stage

    def chi(bf16: bool):
        if stage == "inversion":
            field = truth.local_field * head.mask
            return by_network(field, head.mask, DipoleModel(head.shape, MM, Z), weights=name, bf16=bf16, images=1)
        if stage == "from total field":
            return from_total_field(truth.total_field * head.mask, head.mask, MM, Z, weights=name, bf16=bf16)[0]
        signal = (scan.phase, scan.magnitude, head.mask, scan.echo_times, 3.0, MM, Z)
        return from_phase(*signal, weights=name, bf16=bf16, images=1)[0]

    exact, low = (chi(bf16)[head.mask] for bf16 in (False, True))
    change = float((low - exact).std() / exact.std())
    assert 0 < change < 0.01
