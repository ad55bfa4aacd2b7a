"""Stage 3, MaskGiT: its module lives in ``prod9.training.lightning.controlnet_maskgit_lightning``."""

from prod9.training.lightning.controlnet_maskgit_lightning import (
    ControlNetLightningMaskGiT as ControlNetLightningMaskGiT,
)
