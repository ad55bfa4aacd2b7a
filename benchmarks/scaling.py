"""How work and memory of the shipped networks grow with side, tokens, sources, steps, samples and cases.

    python benchmarks/scaling.py

Operations and bytes are counted on tensors without memory, not timed, so the result is the same on every machine. The
exponent is that of the power law that fits all sizes best, beside what is expected. Writes the table to
``benchmarks/results/scaling.md`` and the picture of ``docs/explanation/performance.md``.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from _counted import Counter, counted  # noqa: E402
from _shipped import config_of, needs_of  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from prod9.diffusion.condition import FlowCondition  # noqa: E402
from prod9.generator.condition import MaskGiTCondition  # noqa: E402
from prod9.generator.modality_processor import InContextCondition  # noqa: E402
from prod9.generator.single_stream import TransformerDecoderSingleStream  # noqa: E402
from prod9.models.factory import ModelFactory  # noqa: E402

STAGE1, LABEL = "maskgit/brats/stage1/fsq_x8", "maskgit/brats/stage2_label/base"
FLOW = "maisi/diffusion/brats"
PICTURE = ROOT / "docs" / "pictures" / "growth.png"
TABLE = ROOT / "benchmarks" / "results" / "scaling.md"


@dataclass(frozen=True)
class Growth:
    """One curve.

    Attributes:
        what: is counted, of which network.
        unit: of ``counts``.
        against: what ``sizes`` are.
        expected: the exponent, or its range.
        sizes: at which it is counted.
        counts: in ``unit``.
    """

    what: str
    unit: str
    against: str
    expected: tuple[float, float]
    sizes: list[int]
    counts: list[float]

    @property
    def exponent(self) -> float:
        """The slope of the line through the logarithms, by least squares."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.counts), 1)[0])

    @property
    def holds(self) -> bool:
        """Whether the exponent is what is expected, within 0.05."""
        low, high = self.expected
        return low - 0.05 <= self.exponent <= high + 0.05


@contextmanager
def counting() -> Iterator[None]:
    """Let :func:`flops` count inside of the context."""
    with counted() as counter:
        _COUNTERS.append(counter)
        yield
        _COUNTERS.pop()


_COUNTERS: list[Counter] = []


def flops(call: Callable[[], object]) -> float:
    """Return the floating-point operations of ``call``, with gradients, which rule out transforms that save some."""
    counter = _COUNTERS[-1]
    counter.restart()
    call()
    return float(counter.flops)


def autoencoder(side: int) -> float:
    """Return the work of encoding and decoding a volume."""
    network = ModelFactory.create_autoencoder(config_of(STAGE1).model).eval()  # type: ignore[arg-type]
    return flops(lambda: network(torch.rand(1, 1, side, side, side)))


def velocity(side: int) -> float:
    """Return the work of one velocity of the flow in a latent of ``side``, attention at its coarser levels included."""
    config: Any = config_of(FLOW)
    network = ModelFactory.create_diffusion(config.model, latent_channels=4).eval()
    condition = FlowCondition.of_heads(torch.ones(1, dtype=torch.int64), torch.ones(1, 3))
    x = torch.rand(1, 4, side, side, side)
    return flops(lambda: network.predict(x, torch.tensor([500.0]), condition))


def decoder(side: int, *, batch: int = 1) -> float:
    """Return the work of one prediction of all tokens of a grid of ``side``."""
    network, grid = _transformer(LABEL), torch.zeros(batch, side, side, side, dtype=torch.int64)
    prepared = network.prepare(MaskGiTCondition(torch.zeros(batch, dtype=torch.int64)))
    return flops(lambda: network(grid, grid == 0, prepared))


def sources(count: int) -> tuple[float, float]:
    """Return the work of reading ``count`` sources, and of one step with them, of a small network with values.

    How long a context is depends on its labels, which tensors without memory do not have.
    """
    torch.manual_seed(0)
    network = TransformerDecoderSingleStream(levels=(8, 6, 5), embed_dim=96, num_blocks=4, num_heads=4).eval()
    grid, latents = torch.zeros(1, 8, 8, 8, dtype=torch.int64), torch.rand(1, count, 3, 8, 8, 8)
    condition = InContextCondition(torch.tensor([3]), torch.arange(count)[None], latents)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        prepared = network.prepare(condition)
        read = counter.get_total_flops()
        network(grid, grid == 0, prepared)
    return float(read), float(counter.get_total_flops() - read)


def _transformer(name: str) -> Any:
    config: Any = config_of(name)
    levels = config_of(STAGE1).model.levels  # type: ignore[union-attr]
    return ModelFactory.create_transformer(config.model, levels=levels).eval()


def step_memory(side: int) -> float:
    """Return the bytes of activations that a training step of stage 1 keeps, by the plan."""
    sides = f"[{side}, {side}, {side}]"
    return needs_of(
        STAGE1, lambda _: [f"data.grid={sides}", "data.crop_size=null", "data.batch_size=1"]
    ).kept_bytes


def growths() -> list[Growth]:
    """Count every curve."""
    sides, latents, grids = [32, 48, 64, 96, 128, 192], [8, 16, 24, 32, 48], [4, 8, 12, 18, 24]
    tokens = [side**3 for side in grids]
    few = sum(number < 1024 for number in tokens)
    read, attended = zip(*(sources(count) for count in (1, 2, 3)), strict=True)
    with counting():
        predicted = [decoder(side) for side in grids]
        of_batch = [decoder(8, batch=size) for size in (1, 2, 4, 8)]
        found = [
            Growth("stage1/fsq_x8, forward", "FLOP", "side, voxels", (3, 3), sides, [autoencoder(s) for s in sides]),
            Growth("diffusion/brats, one velocity", "FLOP", "side, positions", (3, 6), latents,
                   [velocity(s) for s in latents]),
            Growth("stage2_label/base, below 1,024 tokens", "FLOP", "tokens", (1, 1), tokens[:few], predicted[:few]),
            Growth("stage2_label/base, from 1,728 tokens", "FLOP", "tokens", (1, 2), tokens[few:], predicted[few:]),
            Growth("small translator, reading sources", "FLOP", "sources", (1, 2), [1, 2, 3], list(read)),
            Growth("small translator, a step", "FLOP", "sources", (0, 1), [1, 2, 3], list(attended)),
            Growth("stage2_label/base, batch", "FLOP", "samples", (1, 1), [1, 2, 4, 8], of_batch),
        ]  # fmt: skip
    steps, cases = [4, 8, 16, 24, 32], [10, 100, 1000]
    one, store = predicted[grids.index(18)], needs_of(LABEL).store_bytes_per_volume
    autoencoding = autoencoder_once()
    return [
        *found,
        Growth("stage2_label/base, a sample", "FLOP", "steps", (1, 1), steps, [k * one + autoencoding for k in steps]),
        Growth("stage1/fsq_x8, kept by a step", "bytes", "side, voxels", (3, 3), sides,
               [step_memory(s) for s in sides]),
        Growth("stage2_label/base, token store", "bytes", "cases", (1, 1), cases, [4.0 * k * store for k in cases]),
    ]  # fmt: skip


def autoencoder_once() -> float:
    """Return the work of decoding one volume of the grid of the shipped configuration."""
    config: Any = config_of(STAGE1)
    with counting():
        network = ModelFactory.create_autoencoder(config.model).eval()
        codes = torch.zeros(1, len(config.model.levels), *(side // 8 for side in config.data.grid))
        return flops(lambda: network.decode(codes))


def table(found: list[Growth]) -> str:
    """Return the Markdown table."""
    lines = [
        "| what | counted | grows with | from | to | exponent | expected |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        low, high = one.expected
        wanted = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        ends = [f"{one.sizes[k]:,}: {one.counts[k]:.3g}" for k in (0, -1)]
        lines.append(
            f"| {one.what} | {one.unit} | {one.against} | {ends[0]} | {ends[1]} | {one.exponent:.2f} | {wanted} |"
        )
    return "\n".join(lines) + "\n"


def draw(found: list[Growth], path: Path) -> None:
    """Draw every curve in logarithms, each beside the powers that are expected of it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), layout="constrained")
    axes = figure.subplots(4, 3, squeeze=False).ravel()
    for axis, one in zip(axes, found, strict=False):
        sizes = np.array(one.sizes, float)
        for power in sorted(set(one.expected)):
            axis.loglog(
                sizes,
                one.counts[0] * (sizes / sizes[0]) ** power,
                "--",
                color="0.6",
                label=f"power {power:g}",
            )
        axis.loglog(sizes, one.counts, "o-", color="C0", label=f"counted: {one.exponent:.2f}")
        axis.set_title(one.what, fontsize=9)
        axis.set_xlabel(one.against, fontsize=8)
        axis.set_ylabel(one.unit, fontsize=8)
        axis.tick_params(labelsize=7, which="both")
        axis.legend(fontsize=7, frameon=False)
    for axis in axes[len(found) :]:
        axis.set_axis_off()
    FigureCanvasAgg(figure).print_png(str(path), pil_kwargs={"optimize": True})


def main() -> int:
    """Count, print, write; 1 where an exponent is not what is expected."""
    found = growths()
    text = table(found)
    print(text)
    TABLE.write_text(
        "# How the work grows\n\nWritten by `python benchmarks/scaling.py`.\n\n" + text, encoding="utf-8"
    )
    draw(found, PICTURE)
    odd = [one.what for one in found if not one.holds]
    print("\n".join(f"{what}: not as expected" for what in odd) or "all as expected")
    return 1 if odd else 0


if __name__ == "__main__":
    sys.exit(main())
