"""Stage 3, MaskGiT: its schema lives in ``prod9.config.control_maskgit``."""

from prod9.config.control_maskgit import (
    MaskGiTControlNetLightningConfig as MaskGiTControlNetLightningConfig,
)
