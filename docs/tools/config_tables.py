"""Writes the generated tables into ``src/prod9/configs/**/README.md``; ``--check`` only compares.

A README marks the place of a table by ``<!-- generated: NAME -->`` and ``<!-- end generated -->``; NAME is
``configs`` (the shipped configs with their costs) or a stage (its keys).
"""

import re
import sys
from pathlib import Path
from typing import Any

from prod9.config.load import CONFIG_ROOT, load_config, shipped_configs
from prod9.config.schema import CONFIGS, RunConfig
from prod9.config.tables import markdown_table
from prod9.models.meta import count_parameters
from prod9.planning.estimates import Resources, estimate
from prod9.planning.footprint import Device
from prod9.stages import CORRECTORS, STAGES

BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


def main() -> int:
    """Regenerate every README; return 1 if ``--check`` was given and one differs."""
    stale = [
        path
        for path in sorted(CONFIG_ROOT.rglob("README.md"))
        if regenerated(path) != path.read_text(encoding="utf-8")
    ]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path}: out of date; run `make docs`")
        return bool(stale)
    for path in stale:
        path.write_text(regenerated(path), encoding="utf-8")
        print(f"{path}: regenerated")
    return 0


def regenerated(path: Path) -> str:
    """Return the text of a README with new tables."""
    return BLOCK.sub(lambda match: match[1] + _table(match[2]) + match[3], path.read_text(encoding="utf-8"))


def shipped() -> dict[str, RunConfig]:
    """Return every shipped config by name, variables left as written."""
    return {name: load_config(name, fill_variables=False) for name in shipped_configs()}


def bases_of(config: RunConfig, configs: dict[str, RunConfig]) -> list[RunConfig]:
    """Return the shipped configs whose runs a config builds on, the nearest first."""
    bases = STAGES[config.stage].bases
    if not bases:
        return []
    key, stage = next(iter(bases.items()))
    path = config.model_dump()["inputs"][key]
    for other in configs.values():
        if (other.stage, other.output_dir) == (stage, path):
            return [other, *bases_of(other, configs)]
    raise ValueError(f"inputs.{key}: expected the output_dir of a shipped {stage}, got {path}")


def need_of(config: RunConfig, configs: dict[str, RunConfig]) -> Resources:
    """Return what training a shipped config needs, on the device that it names or else on a GPU."""
    below: dict[str, Any] = {}
    if config.stage not in CORRECTORS:  # which are trained on volumes
        below = {
            {1: "autoencoder", 2: "base"}[STAGES[base.stage].number]: base
            for base in bases_of(config, configs)
        }
    if "autoencoder" in below:
        below["autoencoder"] = below["autoencoder"].model
    device: Device = "cpu" if config.trainer.accelerator == "cpu" else "cuda"
    return estimate(config, count=count_parameters, **below, device=device)


def _table(name: str) -> str:
    return _config_table() if name == "configs" else markdown_table(CONFIGS[name])


def _config_table() -> str:
    configs = shipped()
    lines = ["| name | stage | tokens | parameters | memory | checkpoint |", "|---|---|---|---|---|---|"]
    for name, config in configs.items():
        need = need_of(config, configs)
        tokens = " × ".join(map(str, need.latent_grid)) + f" = {need.tokens:,}" if need.tokens else "none"
        lines.append(
            f"| `{name}` | {config.stage} | {tokens} | {need.parameters / 1e6:.1f} M "
            f"| {max(need.memory_gib, 0.1):.1f} GiB | {need.checkpoint_bytes / 1e6:,.0f} MB |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
