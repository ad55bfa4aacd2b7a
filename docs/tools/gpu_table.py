"""Writes the table of estimated training times of ``docs/reference/cost.md``; ``--check`` only compares.

The work of a step is counted from the configuration, as ``prod9 plan`` counts it. A GPU is taken to reach a share
that is stated of its dense bfloat16 peak, so a row is an estimate until somebody times it.
"""

import sys
from pathlib import Path
from typing import Any

from prod9.cli.checks.cost import multiplies_matrices, work_of
from prod9.config.schema import RunConfig

sys.path.insert(0, str(Path(__file__).parent))
from config_tables import bases_of, need_of, shipped

PAGE = Path(__file__).resolve().parents[1] / "reference" / "cost.md"
BEGIN, END = "<!-- times by GPU -->\n", "<!-- end of times by GPU -->"
PEAKS = {"RTX 4090": 165.2, "A100": 312.0, "H100 SXM": 989.4}
"""Dense bfloat16 products with float32 sums, 10¹² operations per second, from NVIDIA's data sheets."""
REACHED = {True: 0.30, False: 0.10}
"""Share of the peak by whether a stage multiplies matrices; assumed, not measured."""


def main() -> int:
    """Regenerate the table; return 1 if ``--check`` was given and it differs."""
    old = PAGE.read_text(encoding="utf-8")
    new = regenerated(old)
    if "--check" in sys.argv[1:]:
        if old != new:
            print(f"{PAGE}: out of date; run `make docs`")
        return int(old != new)
    if old != new:
        PAGE.write_text(new, encoding="utf-8")
        print(f"{PAGE}: regenerated")
    return 0


def regenerated(text: str) -> str:
    """Return the page with a new table."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE}: expected the marks {BEGIN} and {END}"
    return f"{before}{BEGIN}{table()}{END}{after}"


def table() -> str:
    """Return a row of each shipped configuration for GPUs whose work is counted."""
    configs = shipped()
    titles = ["configuration", "steps", "10¹² operations per step", *(f"{name}, hours" for name in PEAKS)]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for name, config in configs.items():
        work = None if config.trainer.accelerator == "cpu" else _work(config, configs)
        if work is not None:
            rate = REACHED[multiplies_matrices(config)]
            # An operation is a product or a sum, so a multiply-add counts twice.
            hours = [
                config.training.max_steps * 2 * work / (rate * peak * 1e12) / 3600 for peak in PEAKS.values()
            ]
            cells = [
                f"`{name}`",
                f"{config.training.max_steps:,}",
                _shown(2 * work / 1e12),
                *map(_shown, hours),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _work(config: RunConfig, configs: dict[str, RunConfig]) -> float | None:
    below: Any = next(
        (base for base in bases_of(config, configs) if base.stage in ("autoencoder", "maisi_vae")), None
    )
    return work_of(config, need_of(config, configs), None if below is None else below.model)


def _shown(value: float) -> str:
    return f"{value:.0f}" if value >= 9.5 else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
