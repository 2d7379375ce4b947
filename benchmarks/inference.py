"""Seconds of a network's inversion at 160 x 160 x 160, against its convolutions at this machine's own peak.

    python benchmarks/inference.py [--size N] [NAME ...]

NAME is a method whose weights are shipped; "full" is uQSM+ at the width of its paper, with random weights. Prints the
floating-point operations of one pass over the whole grid (of convolutions; FFTs are not counted), the seconds of the
best of five passes in float32 and in bfloat16, and those seconds over what the operations would take at the peak of one
large convolution. NeXtQSM's pass begins at a local field, as that of pdf-tv, which is not counted there. For trained
weights also the seconds of the whole method on a head of this size, as a user calls it, of one echo and of five where
it takes the phase; and what bfloat16 changes: the difference of both maps of a smaller head [% of chi's SD], and each's
error, full chain where the network starts before the local field.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from chimap import methods, metrics, pipeline
from chimap.benchmark.inputs import ENTRIES, of_scan
from chimap.commands.console import keep_freed_memory
from chimap.inversion.learned import by_network
from chimap.networks.apply import outputs, predict
from chimap.networks.unet import UQSM_PLUS, UNet
from chimap.networks.variational import VariationalNet
from chimap.networks.weights import Trained, load_trained
from chimap.physics.dipole import DipoleModel
from chimap.plan import Plan
from chimap.simulation.acquisition import acquire, local_field_of
from chimap.simulation.head import built_in_head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["full", "uqsm+", "qsmnet+", "xqsm+", "iqsm+", "nextqsm"])
    parser.add_argument("--size", type=int, default=160)
    options = parser.parse_args()
    keep_freed_memory()
    n = options.size
    with torch.no_grad():
        peaks = {low: peak(low=low) for low in (False, True)}
        print(f"peak: {peaks[False]:.0f} GFLOP/s in float32, {peaks[True]:.0f} in bfloat16")
        for name in options.names:
            trained = of_full_width() if name == "full" else load_trained(name)
            field, mask = 0.01 * torch.randn(1, n, n, n), torch.ones(1, n, n, n, dtype=torch.bool)
            if trained.takes == "phase":
                field *= RADIANS
            work = giga_operations(trained, field, mask)
            for low in (False, True):
                seconds = best_of(partial(passed, trained, field, mask, low=low))
                ideal = work / peaks[low]
                kind = "bfloat16" if low else "float32"
                times = f"{seconds:.2f} s, {seconds / ideal:.2f} x of its peak time"
                print(f"{name:<8} {work:.0f} GFLOP  {kind:<8} {times}")
            if name != "full":
                print_seconds_of_method(name, n, echoes=(1, 5) if trained.takes == "phase" else (1,))
                print_cost_of_bf16(name, full_chain=trained.takes != "local field")


RADIANS = 16.0
"""Per ppm, of a phase of 3 T and 20 ms."""


def of_full_width() -> Trained:
    network = UNet(UQSM_PLUS).eval().requires_grad_(False)
    network = network.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
    return Trained(network, 100.0, 0.03, "uqsm+", "local field", ((1.0, 1.0, 1.0),), 0.0)


def passed(trained: Trained, field: torch.Tensor, mask: torch.Tensor, *, low: bool) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        scales = {"input_scale": trained.input_scale, "output_scale": trained.output_scale}
        oblique, radians = torch.tensor([[0.0, 0.6, 0.8]]), torch.tensor([RADIANS])
        if isinstance(trained.network, VariationalNet) and trained.network.shape.begun:
            return outputs(trained.network, field, mask, **scales, b0_direction=oblique, begun=field)[:, -1]
        return predict(trained.network, field, mask, **scales, b0_direction=oblique, radians_per_ppm=radians)


def giga_operations(trained: Trained, field: torch.Tensor, mask: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        passed(trained, field, mask, low=False)
    return counter.get_total_flops() / 1e9


def best_of(run: Callable[[], object], times: int = 5) -> float:
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def peak(*, low: bool) -> float:
    """GFLOP/s of one convolution with everything in its favour."""
    layer = nn.Conv3d(64, 64, 3, padding=1, bias=False).to(memory_format=torch.channels_last_3d)  # pyright: ignore
    volume = torch.randn(1, 64, 64, 64, 64).to(memory_format=torch.channels_last_3d)
    if low:
        layer, volume = layer.bfloat16(), volume.bfloat16()
    return 2 * 64**3 * 64 * 64 * 27 / best_of(lambda: layer(volume), 10) / 1e9


def print_seconds_of_method(name: str, n: int, *, echoes: tuple[int, ...]) -> None:
    """Of everything from what the method takes to chi: resampling, background removal, each look at the scan."""
    method = methods.find(name, *methods.TO_CHI)
    head = built_in_head((n, n, n), (1.0, 1.0, 1.0))
    for many in echoes:
        scan, truth = acquire(head, echo_times=[0.024 * (one + 1) / many for one in range(many)])
        given = of_scan(scan, truth.local_field, head.mask, truth.total_field, head.mask)
        low, high = (
            best_of(partial(ENTRIES[method.stage].call, given, name, {name: {"bf16": bf16}}), 2)
            for bf16 in (True, False)
        )
        what = f"{many} echo{'es' if many > 1 else ''}" if method.stage == "from phase" else "whole method"
        print(f"{name:<8} {what}: {low:.2f} s in bfloat16, {high:.2f} s in float32")


def print_cost_of_bf16(name: str, *, full_chain: bool) -> None:
    head = built_in_head((112, 120, 96), (1.0, 1.0, 1.0), seed=3)
    if full_chain:
        scan, _ = acquire(head, echo_times=(0.008, 0.018, 0.028))
        scan = replace(scan, mask=head.mask)
        maps = [
            pipeline.reconstruct(scan, Plan(inversion=name, settings={name: {"bf16": bf16}})) for bf16 in (False, True)
        ]
        mask, (exact, low) = maps[0].mask, (one.chi for one in maps)
    else:
        field, mask = local_field_of(head) * head.mask, head.mask
        dipole = DipoleModel(head.shape, head.voxel_size, head.b0_direction)
        exact, low = (by_network(field, mask, dipole, weights=name, bf16=bf16) for bf16 in (False, True))
    change = float((low - exact)[mask].square().mean().sqrt() / head.chi[mask].std())
    errors = [metrics.nrmse(chi, head.chi, mask, demean=True) for chi in (exact, low)]
    print(f"{name:<8} bfloat16 changes chi by {100 * change:.2f} %; NRMSE {errors[0]:.2f} % becomes {errors[1]:.2f} %")


if __name__ == "__main__":
    main()
