"""Seconds per iteration of TV, RTS and FANSI beside the seconds of an FFT pair, and peak memory up to there.

FANSI's iteration holds two pairs, the others' one.

python benchmarks/total_variation.py [tv rts fansi] [--shape 256 256 176] [--iterations 50]
"""

import argparse
import resource
import time

import torch

from chimap import methods
from chimap.commands.console import keep_freed_memory
from chimap.linalg import irfft, rfft
from chimap.physics.dipole import DipoleModel


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=("tv", "rts", "fansi"))
    parser.add_argument("--shape", nargs=3, type=int, default=(256, 256, 176))
    parser.add_argument("--iterations", type=int, help="those of the method's default, if not given")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()
    shape = tuple(options.shape)
    generator = torch.Generator().manual_seed(0)
    field = 0.01 * torch.randn(shape, generator=generator)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[20:-20, 20:-20, 20:-20] = True
    dipole = DipoleModel(shape, (1.0, 1.0, 1.0), padding=0)
    print(f"grid {shape}, {torch.get_num_threads()} threads, torch {torch.__version__}")

    def pair() -> float:
        return seconds(lambda: irfft(rfft(field), shape))

    pair()
    for name in options.methods:
        method = methods.find(name, "inversion")
        many = options.iterations or method.parameters()["iterations"]
        few = max(1, many // 10)
        function = method.load()

        def invert(iterations: int, function=function) -> float:
            return seconds(lambda: function(field, mask, dipole, iterations=iterations, tolerance=0.0))

        invert(2)
        ratios, wholes = [], []
        for _ in range(options.rounds):  # alternating, so that a drift of the machine falls on both
            ffts = sorted(pair() for _ in range(7))[3]
            whole, short = invert(many), invert(few)
            iteration = (whole - short) / (many - few)
            ratios.append(iteration / ffts)
            wholes.append(whole)
            print(
                f"{name:6} whole {whole:6.2f} s   iteration {1000 * iteration:6.1f} ms   FFT pair {1000 * ffts:6.1f} ms"
                f"   ratio {ratios[-1]:.2f}",
                flush=True,
            )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        middle = len(ratios) // 2
        print(
            f"{name:6} {many} iterations: median {sorted(wholes)[middle]:.2f} s, ratio {sorted(ratios)[middle]:.2f}; "
            f"peak memory {peak:.2f} GiB"
        )


if __name__ == "__main__":
    main()
