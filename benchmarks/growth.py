"""How work, memory and disk grow with side, tokens, sources, steps, samples and cases, beside what formulas say.

    python benchmarks/growth.py

Operations of the shipped networks are counted on tensors without memory, bytes of a step come from the plan, and a
token store is written and weighed: the same on every machine. An exponent is that of the power law that fits all
sizes best; the expected one is that of the formula at the same sizes. Writes table and picture of
``docs/explanation/performance.md``; exits with 1 where the two differ by more than 0.05.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from _counted import Counter, counted  # noqa: E402
from _shipped import Changes, config_of, needs_of, unchanged  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from prod9.data.stores.latents import Encoded, StoreItem, build_token_store  # noqa: E402
from prod9.diffusion.condition import FlowCondition  # noqa: E402
from prod9.generator.condition import MaskGiTCondition  # noqa: E402
from prod9.generator.maskgit import MaskGiTSampler, MaskGiTScheduler  # noqa: E402
from prod9.generator.modality_processor import InContextCondition  # noqa: E402
from prod9.models.factory import ModelFactory  # noqa: E402

STAGE1, LABEL = "maskgit/brats/stage1/fsq_x8", "maskgit/brats/stage2_label/base"
TRANSLATOR, FLOW = "maskgit/brats/stage2/base", "maisi/diffusion/brats"
PAGE = ROOT / "docs" / "explanation" / "performance.md"
PICTURE = ROOT / "docs" / "pictures" / "growth.png"
BEGIN, END = "<!-- growth -->\n", "<!-- end of growth -->"
ROOM = 0.05
"""How far an exponent may be from that of the formula."""


class Sizes(NamedTuple):
    """Where every curve is counted; sides are those of cubes."""

    voxels: Sequence[int] = (32, 64, 128, 192)
    latent: Sequence[int] = (16, 32, 48)
    tokens: Sequence[int] = (4, 8, 12, 18, 24)
    sources: Sequence[int] = (1, 2, 3)
    context: int = 16
    steps: Sequence[int] = (4, 8, 16, 32)
    sampled: int = 4
    samples: Sequence[int] = (1, 2, 4, 8)
    batched: int = 8
    cases: Sequence[int] = (4, 16, 64)


class Growth(NamedTuple):
    """One curve: ``counts`` in ``unit`` at ``sizes``, and the ``expected`` ones up to a factor."""

    what: str
    unit: str
    against: str
    rule: str
    sizes: list[int]
    counts: list[float]
    expected: list[float]

    @property
    def exponent(self) -> float:
        """The power that fits the counts best."""
        return _power(self.sizes, self.counts)

    @property
    def expected_exponent(self) -> float:
        """The power that fits the formula best at the same sizes."""
        return _power(self.sizes, self.expected)

    @property
    def holds(self) -> bool:
        """Whether both exponents agree."""
        return abs(self.exponent - self.expected_exponent) <= ROOM


def _power(sizes: Sequence[int], counts: Sequence[float]) -> float:
    """Return the slope of the line through the logarithms, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(counts), 1)[0])


class Networks:
    """The work of one call of shipped networks, in operations; with gradients, which rule out saving transforms."""

    def __init__(self, counter: Counter, changes: Changes) -> None:
        self.counter = counter
        self.stage1, label, translator, flow = (
            _model(name, changes) for name in (STAGE1, LABEL, TRANSLATOR, FLOW)
        )
        self.autoencoder = ModelFactory.create_autoencoder(self.stage1).eval()
        self.label, self.translator = (
            ModelFactory.create_transformer(model, levels=self.stage1.levels).eval()
            for model in (label, translator)
        )
        self.flow = ModelFactory.create_diffusion(flow, latent_channels=4).eval()

    def count(self, call: Callable[[], object]) -> float:
        """Return the operations of ``call``."""
        self.counter.restart()
        call()
        return float(self.counter.flops)

    def reconstruct(self, side: int) -> float:
        """Return the work of encoding and decoding a volume of ``side`` voxels."""
        return self.count(lambda: self.autoencoder(torch.rand(1, 1, side, side, side)))

    def velocity(self, side: int) -> float:
        """Return the work of one velocity of the flow in a latent of ``side`` positions."""
        told = FlowCondition.of_heads(torch.ones(1, dtype=torch.int64), torch.ones(1, 3))
        x = torch.rand(1, 4, side, side, side)
        return self.count(lambda: self.flow.predict(x, torch.tensor([500.0]), told))

    def step(self, side: int, batch: int = 1) -> float:
        """Return the work of one sampling step of the label model over ``side`` tokens along each axis."""
        grid = torch.zeros(batch, side, side, side, dtype=torch.int64)
        prepared = self.label.prepare(MaskGiTCondition(torch.zeros(batch, dtype=torch.int64)))
        return self.count(lambda: self.label(grid, grid == 0, prepared))

    def sources(self, number: int, side: int) -> tuple[float, float]:
        """Return the work of reading ``number`` sources, and of one step of the translator with them."""
        grid, levels = torch.zeros(1, side, side, side, dtype=torch.int64), len(self.stage1.levels)
        latents, labels = torch.rand(1, number, levels, side, side, side), torch.arange(number)[None]
        told = InContextCondition(torch.tensor([3]), labels, latents)
        prepared: list[Any] = []
        read = self.count(lambda: prepared.append(self.translator.prepare(told)))
        return read, self.count(lambda: self.translator(grid, grid == 0, prepared[0]))


def _model(name: str, changes: Changes) -> Any:
    config: Any = config_of(name, changes)
    return config.model


def attended(model: Any, positions: float, seen: float) -> float:
    """Return the operations of the blocks over ``positions``, each of which attends to ``seen``."""
    linear = (8 + 4 * model.mlp_ratio) * model.embed_dim**2 * positions
    return model.num_blocks * (linear + 4 * model.embed_dim * positions * seen)


def sampled(side: int, steps: Sequence[int], changes: Changes) -> list[float]:
    """Return the work of drawing ``side``³ tokens of the label model in so many steps.

    With memory, since the schedule is made of numbers.
    """
    model, levels = _model(LABEL, changes), _model(STAGE1, changes).levels
    network, counts = ModelFactory.create_transformer(model, levels=levels).eval(), []
    told, shape = MaskGiTCondition(torch.zeros(1, dtype=torch.int64)), (1, side, side, side)
    drawn = MaskGiTSampler.sample.__wrapped__  # type: ignore[attr-defined]  # without it products are not counted
    for number in steps:
        sampler = MaskGiTSampler(scheduler=MaskGiTScheduler(), steps=number, order="halton")
        with FlopCounterMode(display=False) as operations:
            drawn(sampler, network, shape, told, [torch.Generator().manual_seed(0)])
        counts.append(float(operations.get_total_flops()))
    return counts


def kept(side: int, changes: Changes) -> float:
    """Return the bytes that a training step of stage 1 keeps, by the plan."""
    own = (f"data.grid=[{side}, {side}, {side}]", "data.crop_size=null", "data.batch_size=1")
    return needs_of(STAGE1, lambda name: [*changes(name), *own]).kept_bytes


def stored(cases: int) -> float:
    """Return the bytes on disk of a token store of four volumes of 8³ tokens for each of ``cases``."""
    shape, sides = (5, 8, 8, 8), (16, 16, 16)

    def encode(volumes: torch.Tensor) -> Encoded:
        return Encoded(torch.zeros(len(volumes), *shape), torch.zeros(len(volumes), 8, 8, 8).long())

    items = [
        StoreItem(f"{case}", f"{label}", label, False, f"{case}/{label}", lambda: torch.ones(1, *sides))
        for case in range(cases)
        for label in range(4)
    ]
    with tempfile.TemporaryDirectory() as folder:
        build_token_store(Path(folder), items, encode, key="growth", grid=sides, batch_size=16)
        return float(sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()))


def growths(sizes: Sizes = Sizes(), changes: Changes = unchanged) -> list[Growth]:  # noqa: B008
    """Count every curve. changes: of every configuration."""
    label, translator = _model(LABEL, changes), _model(TRANSLATOR, changes)
    tokens, target = (
        [side**3 for side in sizes.tokens],
        (sizes.context // translator.patch_size) ** 3,
    )
    with counted() as counter:
        networks = Networks(counter, changes)
        reconstructed = [networks.reconstruct(side) for side in sizes.voxels]
        velocities = [networks.velocity(side) for side in sizes.latent]
        steps = [networks.step(side) for side in sizes.tokens]
        read, beside = zip(
            *(networks.sources(number, sizes.context) for number in sizes.sources), strict=True
        )
        batches = [networks.step(sizes.batched, size) for size in sizes.samples]
    context = [target * number for number in sizes.sources]

    def curve(
        what: str,
        unit: str,
        against: str,
        rule: str,
        at: Sequence[int],
        counts: Sequence[float],
        expected: Any,
    ) -> Growth:
        return Growth(what, unit, against, rule, list(at), list(counts), [float(value) for value in expected])

    return [
        curve("stage1/fsq_x8, encoding and decoding", "FLOP", "voxels along a side", "s³", sizes.voxels,
              reconstructed, [s**3 for s in sizes.voxels]),
        curve("diffusion/brats, a velocity", "FLOP", "positions along a side", "s³", sizes.latent,
              velocities, [s**3 for s in sizes.latent]),
        curve("stage2_label, a step", "FLOP", "tokens", "24 E² n + 4 E n²", tokens,
              steps, [attended(label, n, n) for n in tokens]),
        curve("stage2, reading the sources", "FLOP", "sources", "24 E² nk + 4 E (nk)²", sizes.sources,
              read, [attended(translator, c, c) for c in context]),
        curve("stage2, a step", "FLOP", "sources", "24 E² n + 4 E n (n + nk)", sizes.sources,
              beside, [attended(translator, target, target + c) for c in context]),
        curve("stage2_label, a step", "FLOP", "samples", "b", sizes.samples, batches, sizes.samples),
        curve("stage2_label, a volume", "FLOP", "steps", "T", sizes.steps,
              sampled(sizes.sampled, sizes.steps, changes), sizes.steps),
        curve("stage1/fsq_x8, kept by a training step", "bytes", "voxels along a side", "s³", sizes.voxels,
              [kept(s, changes) for s in sizes.voxels], [s**3 for s in sizes.voxels]),
        curve("token store on disk", "bytes", "cases", "c", sizes.cases, [stored(c) for c in sizes.cases], sizes.cases),
    ]  # fmt: skip


def table(found: list[Growth]) -> str:
    """Return the Markdown table."""
    lines = [
        "| what | counted | grows with | from | to | expected | its exponent | exponent |",
        f"|{'---|' * 8}",
    ]
    for one in found:
        ends = " | ".join(f"{one.sizes[k]:,}: {one.counts[k]:.3g}" for k in (0, -1))
        powers = f"{one.expected_exponent:.2f} | {one.exponent:.2f}"
        lines.append(f"| {one.what} | {one.unit} | {one.against} | {ends} | {one.rule} | {powers} |")
    return "\n".join(lines) + "\n"


def draw(found: list[Growth], path: Path) -> None:
    """Draw every curve in logarithms, beside the formula through its first point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(9.6, 7.8), layout="constrained")
    for place, one in enumerate(found):
        axis, expected = figure.add_subplot(3, 3, place + 1), np.array(one.expected)
        axis.loglog(one.sizes, one.counts, "o", color="C0", label=f"counted, exponent {one.exponent:.2f}")
        said = f"{one.rule}, exponent {one.expected_exponent:.2f}"
        axis.loglog(one.sizes, one.counts[0] * expected / expected[0], "--", color="0.5", label=said)
        axis.set_title(one.what, fontsize=9)
        axis.set_xlabel(one.against, fontsize=8)
        axis.set_ylabel(one.unit, fontsize=8)
        axis.xaxis.set_major_locator(FixedLocator(one.sizes))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_minor_formatter(NullFormatter())
        if max(one.counts) < 3 * min(one.counts):
            axis.yaxis.set_major_locator(FixedLocator(one.counts))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:.2e}"))
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7, frameon=False, loc="upper left")
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * (high / low) ** 0.25 if high / low > 3 else high * 2)
    FigureCanvasAgg(figure).print_png(str(path), pil_kwargs={"optimize": True}, metadata={"Software": None})


def written(found: list[Growth], page: Path, picture: Path) -> str:
    """Write the table into ``page`` between its marks, draw ``picture``, and return the table."""
    text, whole = table(found), page.read_text(encoding="utf-8")
    before, _, rest = whole.partition(BEGIN)
    page.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}", encoding="utf-8")
    draw(found, picture)
    return text


def main() -> int:
    """Count, print and write."""
    found = growths()
    print(written(found, PAGE, PICTURE))
    odd = [
        f"{one.what}: expected exponent {one.expected_exponent:.2f}, got {one.exponent:.2f}"
        for one in found
        if not one.holds
    ]
    print(*odd or ["all as expected"], sep="\n")
    return 1 if odd else 0


if __name__ == "__main__":
    sys.exit(main())
