"""Arguments, interleaved timing and the final JSON line of all benchmark scripts.

Scripts import this module first. They run ours and its peer in one process, in turn (ABAB), so that a machine that
slows down slows both. A ratio is the peer's time over ours, above 1 where ours is faster.
"""

import argparse
import gc
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from prod9.system.waiting import limit_spinning

limit_spinning()  # as the commands do, before torch is imported

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Bench:
    """One benchmark: its settings and the ratios gathered so far."""

    name: str
    quick: bool
    threads: int
    clock: str
    ratios: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, object] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    runs: int = 0

    def time(
        self, arms: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1
    ) -> dict[str, float]:
        """Call the arms in turn ``rounds`` times and return the median seconds of each, of a quick run the least.

        Other programs only ever add to a time, and a quick run has too few rounds for a median to leave them out.
        """
        now = CLOCKS[self.clock]
        samples: dict[str, list[float]] = {name: [] for name in arms}
        gc.collect()
        gc.freeze()  # else each collection below looks through all that was imported, for up to a second
        for round_index in range(-warmup, rounds):
            for name, run in arms.items():
                gc.collect()
                start = now()
                run()
                if round_index >= 0:
                    samples[name].append(now() - start)
        middle = min if self.quick else statistics.median
        times = {name: middle(values) for name, values in samples.items()}
        self.seconds |= times
        self.runs = max(self.runs, rounds)
        for name, seconds in times.items():
            print(f"{self.name}: {name:<40} {seconds * 1e3:10.2f} ms", flush=True)
        return times

    def ratio(self, key: str, peer: float, ours: float) -> None:
        """Record how many times faster ours is than the peer."""
        self.ratios[key] = peer / ours
        print(f"{self.name}: {key:<40} {peer / ours:10.3f} x", flush=True)

    def value(self, key: str, value: float) -> None:
        """Record a number that is not a ratio, such as a difference or a count."""
        self.ratios[key] = value
        print(f"{self.name}: {key:<40} {value:10.3g}", flush=True)

    def report(self, packages: Sequence[str]) -> None:
        """Print the result as one JSON object on the last line of stdout."""
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        versions |= {package: version(package) for package in packages}
        result = {
            "name": self.name,
            "ratios": self.ratios,
            "sizes": self.sizes,
            "versions": versions,
            "threads": self.threads,
            "runs": self.runs,
            "clock": self.clock,
            "seconds": self.seconds,
        }
        print(json.dumps(result), flush=True)


def start(name: str, description: str | None, argv: Sequence[str] | None = None) -> Bench:
    """Read ``--quick``, ``--threads`` and ``--clock``, set the threads and return an empty benchmark."""
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=description)
    parser.add_argument("--quick", action="store_true", help="reduced sizes, at most 60 seconds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch CPU threads")
    parser.add_argument(
        "--clock", choices=sorted(CLOCKS), default="wall", help="cpu: time on all cores, for busy hosts"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    return Bench(name, args.quick, args.threads, args.clock)


def product_rate(rows: int, width: int, outputs: int, clock: str = "wall") -> float:
    """Return the best rate of matrix products ``[rows width] · [width outputs]``, in operations per second.

    Twenty products are timed together, since the clock of CPU time may advance in steps of some milliseconds.
    """
    x, weight, now, best, together = (
        torch.randn(rows, width),
        torch.randn(outputs, width),
        CLOCKS[clock],
        math.inf,
        20,
    )
    for _ in range(8):
        began = now()
        for _ in range(together):
            x @ weight.T
        best = min(best, now() - began)
    return 2 * together * rows * width * outputs / best


def max_rel_diff(a: Tensor, b: Tensor) -> float:
    """Return max|a − b| / max|a|, in float64."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / a.abs().max())
