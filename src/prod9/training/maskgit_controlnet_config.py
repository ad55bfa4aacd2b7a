"""Stage 3, MaskGiT: its schema lives in ``prod9.config.control``."""

from prod9.config.control import (
    MaskGiTControlNetLightningConfig as MaskGiTControlNetLightningConfig,
)
