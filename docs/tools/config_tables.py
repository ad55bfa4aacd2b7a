"""Writes the generated tables into ``src/prod9/configs/**/README.md``; ``--check`` only compares.

A README marks where a table goes with ``<!-- generated: NAME -->`` and ``<!-- end generated -->``; NAME is
``configs`` (what is shipped, with its cost) or a stage (its keys).
"""

import re
import sys
from pathlib import Path

from prod9.config.load import CONFIG_ROOT, load_config, shipped_configs
from prod9.config.schema import (
    CONFIGS,
    FSQModelConfig,
    KLModelConfig,
    MaisiControlNetConfig,
    MaisiDiffusionConfig,
    MaskGiTControlNetLightningConfig,
    RefinerConfig,
    RunConfig,
    Stage1Config,
    TransformerConfig,
)
from prod9.config.tables import markdown_table
from prod9.planning.control_flow import estimate_flow_controlnet
from prod9.planning.control_maskgit import estimate_controlnet
from prod9.planning.estimates import Device, Resources, estimate
from prod9.planning.refiner import estimate_refiner

BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


def main() -> int:
    """Regenerate every README; return 1 if ``--check`` was given and one differs."""
    stale = [path for path in sorted(CONFIG_ROOT.rglob("README.md")) if regenerated(path) != path.read_text()]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path}: out of date; run `make docs`")
        return bool(stale)
    for path in stale:
        path.write_text(regenerated(path))
        print(f"{path}: regenerated")
    return 0


def regenerated(path: Path) -> str:
    """Return the text of a README with its tables made anew."""
    return BLOCK.sub(lambda match: match[1] + _table(match[2]) + match[3], path.read_text())


def shipped() -> dict[str, RunConfig]:
    """Return every shipped config by name, variables left as written."""
    return {name: load_config(name, fill_variables=False) for name in shipped_configs()}


def stage1_model(config: RunConfig, configs: dict[str, RunConfig]) -> FSQModelConfig | KLModelConfig | None:
    """Return the autoencoder that a later stage's config names as its input, None for stage 1."""
    if isinstance(config, Stage1Config):
        return None
    if isinstance(config, MaskGiTControlNetLightningConfig | RefinerConfig):
        config = base_config(config, configs)
    if isinstance(config, MaisiControlNetConfig):
        config = flow_config(config, configs)
    for other in configs.values():
        if isinstance(other, Stage1Config) and other.output_dir == config.inputs.autoencoder:
            return other.model
    raise ValueError(f"{config.inputs.autoencoder} is the output_dir of no shipped stage-1 config")


def base_config(
    config: MaskGiTControlNetLightningConfig | RefinerConfig, configs: dict[str, RunConfig]
) -> TransformerConfig:
    """Return the config of the transformer that a control network's or a refiner's config names."""
    for other in configs.values():
        if isinstance(other, TransformerConfig) and other.output_dir == config.inputs.transformer:
            return other
    raise ValueError(f"{config.inputs.transformer} is the output_dir of no shipped stage-2 config")


def flow_config(config: MaisiControlNetConfig, configs: dict[str, RunConfig]) -> MaisiDiffusionConfig:
    """Return the config of the flow that a control network's config names."""
    for other in configs.values():
        if isinstance(other, MaisiDiffusionConfig) and other.output_dir == config.inputs.diffusion:
            return other
    raise ValueError(f"{config.inputs.diffusion} is the output_dir of no shipped stage-2 config")


def need_of(config: RunConfig, configs: dict[str, RunConfig]) -> Resources:
    """Return what training a shipped config needs, on the device that it names or else on a GPU."""
    device: Device = "cpu" if config.trainer.accelerator == "cpu" else "cuda"
    if isinstance(config, RefinerConfig):
        return estimate_refiner(config, device=device)
    autoencoder = stage1_model(config, configs)
    if isinstance(config, MaisiControlNetConfig):
        assert isinstance(autoencoder, KLModelConfig)
        flow = flow_config(config, configs)
        return estimate_flow_controlnet(config, base=flow, autoencoder=autoencoder, device=device)
    if isinstance(config, MaskGiTControlNetLightningConfig):
        assert isinstance(autoencoder, FSQModelConfig)
        base = base_config(config, configs)
        return estimate_controlnet(config, base=base, autoencoder=autoencoder, device=device)
    return estimate(config, autoencoder=autoencoder, device=device)


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
