"""What ``--check``, and every run before anything slow, looks at in stage 3."""

from typing import TYPE_CHECKING

from prod9.errors import ConfigError

if TYPE_CHECKING:
    from prod9.training.config_schema import (
        FSQModelConfig,
        MaskGiTControlNetLightningConfig,
        TransformerConfig,
    )

_SHARED = ("grid", "spacing", "intensity", "label_map")
"""Keys of ``data`` that decide what tokens and labels mean to the base."""


def check_base(
    config: "MaskGiTControlNetLightningConfig",
) -> "tuple[TransformerConfig, FSQModelConfig]":
    """Refuse a base that ``config`` does not fit; return its config and its autoencoder's model section.

    Reads the checkpoint: raises CheckpointError when it is damaged or of another stage, ConfigError when
    ``data`` differs from what the base was trained on.
    """
    from prod9.training.config import config_from_dict
    from prod9.training.config_schema import FSQModelConfig, TransformerConfig
    from prod9.training.model.checkpoint_manager import CheckpointManager

    opened = CheckpointManager.open(str(config.inputs.transformer), stage="transformer")
    base = config_from_dict(opened.header["config"], source=str(opened.path))
    assert isinstance(base, TransformerConfig)
    for key in _SHARED:
        ours, theirs = getattr(config.data, key), getattr(base.data, key, None)
        if ours != theirs:
            raise ConfigError(
                f"data.{key}: expected that of {opened.path}, {_shown(theirs)}, got {_shown(ours)}; the base "
                "knows no other"
            )
    if base.model.num_blocks < 2:
        raise ConfigError(
            f"inputs.transformer: expected a base of at least two blocks, got {opened.path} with one; control "
            "hands a residual to each pair"
        )
    section = FSQModelConfig.model_validate(opened.header["architecture"]["autoencoder"])
    return base, section


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return str(value)
