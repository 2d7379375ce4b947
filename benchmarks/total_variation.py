"""Seconds per TV iteration beside the seconds of the FFT pair in it, and peak memory.

python benchmarks/total_variation.py [--shape 256 256 176] [--iterations 50]
"""

import argparse
import resource
import time

import torch

from chimap.commands.console import keep_freed_memory
from chimap.inversion.total_variation import total_variation
from chimap.linalg import irfft, rfft
from chimap.physics.dipole import DipoleModel


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=3, type=int, default=(256, 256, 176))
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()
    shape = tuple(options.shape)
    generator = torch.Generator().manual_seed(0)
    field = 0.01 * torch.randn(shape, generator=generator)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[20:-20, 20:-20, 20:-20] = True
    dipole = DipoleModel(shape, (1.0, 1.0, 1.0), padding=0)
    print(
        f"grid {shape}, {options.iterations} iterations, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )

    def invert(iterations: int) -> float:
        return seconds(lambda: total_variation(field, mask, dipole, iterations=iterations, tolerance=0.0))

    def pair() -> float:
        return seconds(lambda: irfft(rfft(field), shape))

    invert(2)
    pair()
    ratios = []
    for _ in range(options.rounds):  # alternating, so that a drift of the machine falls on both
        ffts = sorted(pair() for _ in range(7))[3]
        whole, short = invert(options.iterations), invert(2)
        iteration = (whole - short) / (options.iterations - 2)
        ratios.append(iteration / ffts)
        print(
            f"whole {whole:6.2f} s   iteration {1000 * iteration:6.1f} ms   FFT pair {1000 * ffts:6.1f} ms   "
            f"ratio {ratios[-1]:.2f}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"median ratio {sorted(ratios)[len(ratios) // 2]:.2f}, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
