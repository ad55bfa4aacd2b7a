"""Stage 3, MaskGiT: its schema lives in ``prod9.training.config_controlnet``."""

from prod9.training.config_controlnet import (
    MaskGiTControlNetLightningConfig as MaskGiTControlNetLightningConfig,
)
