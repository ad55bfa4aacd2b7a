"""Fréchet distance against MONAI's FIDMetric: the same number without a matrix square root.

``speedup`` is MONAI's median over ours on float64 features, D of a ResNet-50 and fewer samples than dimensions, as
evaluations in 3D have. ``rel_diff`` is relative to MONAI's value. The features have a decaying spectrum, as those of
networks do; MONAI gets scipy's own square root, which needs scipy < 1.18.
"""

import _harness
import torch
from monai.metrics.fid import FIDMetric
from torch import Tensor

from prod9.measures.metrics import frechet_distance

SAMPLES = 200
SEED = 0


def features(count: int, dimensions: int, *, shift: float, generator: torch.Generator) -> Tensor:
    """Return correlated features ``[N D]`` whose k-th direction has a deviation of 1 / √k."""
    scale = torch.arange(1, dimensions + 1, dtype=torch.float64).rsqrt()
    rows = torch.randn(count, dimensions, generator=generator, dtype=torch.float64) * scale
    mixing = torch.randn(dimensions, 64, generator=generator, dtype=torch.float64) / dimensions**0.5
    return rows + rows @ mixing @ mixing.T + shift * scale


def compare(bench: _harness.Bench, dimensions: int, rounds: int) -> None:
    """Time both on the same two sets, and compare what they return."""
    generator = torch.Generator().manual_seed(SEED)
    made = features(SAMPLES, dimensions, shift=0.5, generator=generator)
    real = features(SAMPLES, dimensions, shift=0.0, generator=generator)
    monai = FIDMetric()
    found: dict[str, float] = {}

    def ours() -> None:
        found["ours"] = frechet_distance(made, real).item()

    def theirs() -> None:
        found["monai"] = float(monai(made, real))

    medians = bench.time({"monai": theirs, "ours": ours}, rounds=rounds, warmup=1 if bench.quick else 0)
    bench.ratio("speedup", medians["monai"], medians["ours"])
    bench.value("rel_diff", abs(found["ours"] - found["monai"]) / abs(found["monai"]))


def main() -> None:
    bench = _harness.start("bench_frechet", __doc__)
    dimensions = 512 if bench.quick else 2048
    bench.sizes = {"samples": SAMPLES, "dimensions": dimensions}
    compare(bench, dimensions, rounds=3 if bench.quick else 1)
    bench.report(["monai", "scipy"])


if __name__ == "__main__":
    main()
