"""What ``--check``, and every run before anything slow, looks at in stage 3."""

from pathlib import Path
from typing import TYPE_CHECKING

from prod9.errors import ConfigError

if TYPE_CHECKING:
    from prod9.config.schema import (
        FSQModelConfig,
        KLModelConfig,
        MaisiControlNetConfig,
        MaisiDiffusionConfig,
        MaskGiTControlNetLightningConfig,
        TransformerConfig,
    )
    from prod9.models.checkpoint_manager import Opened

_SHARED = ("grid", "spacing", "intensity", "label_map")
"""Keys of ``data`` that decide what latents and labels mean to the base."""


def check_base(
    config: "MaskGiTControlNetLightningConfig",
) -> "tuple[Opened, TransformerConfig, FSQModelConfig]":
    """Refuse a base that ``config`` does not fit; return it, its config and its autoencoder's model section.

    Reads the checkpoint: raises CheckpointError when it is damaged or of another stage, ConfigError when
    ``data`` differs from what the base was trained on.
    """
    from prod9.config.load import config_from_dict
    from prod9.config.schema import FSQModelConfig, TransformerConfig
    from prod9.models.checkpoint_manager import CheckpointManager

    opened = CheckpointManager.open(str(config.inputs.transformer), stage="transformer")
    base = config_from_dict(opened.header["config"], source=str(opened.path))
    assert isinstance(base, TransformerConfig)
    _require_same_data(config, base, opened.path)
    if base.model.num_blocks < 2:
        raise ConfigError(
            f"inputs.transformer: expected a base of at least two blocks, got {opened.path} with one; control "
            "hands a residual to each pair"
        )
    section = FSQModelConfig.model_validate(opened.header["architecture"]["autoencoder"])
    return opened, base, section


def check_flow_base(config: "MaisiControlNetConfig") -> "tuple[Opened, MaisiDiffusionConfig, KLModelConfig]":
    """Refuse a diffusion network that ``config`` does not fit; return it, its config and its
    autoencoder's model section.

    Reads the checkpoint: raises CheckpointError when it is damaged, of another stage or of another noise schedule,
    ConfigError when ``data`` differs from what it was trained on, or the condition is none that it can be told.
    """
    from prod9.config.load import config_from_dict
    from prod9.config.schema import KLModelConfig, MaisiDiffusionConfig
    from prod9.models.checkpoint_manager import CheckpointManager, require_schedule
    from prod9.models.released import RECTIFIED_FLOW

    opened = CheckpointManager.open(str(config.inputs.diffusion), stage="maisi_diffusion")
    require_schedule(opened.header, RECTIFIED_FLOW, opened.path)
    base = config_from_dict(opened.header["config"], source=str(opened.path))
    assert isinstance(base, MaisiDiffusionConfig)
    # Published weights were trained on other grids and data than theirs who fine-tune them.
    if "released" not in opened.header["data"]:
        _require_same_data(config, base, opened.path)
    section = KLModelConfig.model_validate(opened.header["architecture"]["autoencoder"])
    unit = section.downsampling_factor * base.model.downsampling_factor
    if any(side % unit for side in config.data.grid):
        raise ConfigError(
            f"data.grid: expected multiples of {unit}, the autoencoder's factor {section.downsampling_factor} times "
            f"the U-Net's {base.model.downsampling_factor}, got {list(config.data.grid)}; use "
            f"{[-(-side // unit) * unit for side in config.data.grid]}"
        )
    if "label" in config.condition.conditions and base.model.num_class_embeds is None:
        raise ConfigError(
            f"condition.conditions: expected a base with class labels for label, got {opened.path} without; leave "
            "label out"
        )
    if (
        config.model.encoder == "maisi"
        and 2 ** (len(config.model.channels) - 1) != section.downsampling_factor
    ):
        raise ConfigError(
            f"model.channels: expected {section.downsampling_factor.bit_length()} widths for encoder maisi and the "
            f"downsampling factor {section.downsampling_factor}, got {list(config.model.channels)}"
        )
    return opened, base, section


def _require_same_data(
    config: "MaskGiTControlNetLightningConfig | MaisiControlNetConfig",
    base: "TransformerConfig | MaisiDiffusionConfig",
    path: Path,
) -> None:
    for key in _SHARED:
        ours, theirs = getattr(config.data, key), getattr(base.data, key, None)
        if ours != theirs:
            raise ConfigError(
                f"data.{key}: expected that of {path}, {_shown(theirs)}, got {_shown(ours)}; the base "
                "knows no other"
            )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return str(value)
