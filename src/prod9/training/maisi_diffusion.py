"""Stage 2, MAISI: its module lives in ``prod9.training.lightning.maisi_diffusion_lightning``."""

from prod9.training.lightning.maisi_diffusion_lightning import (
    MAISIDiffusionLightning as MAISIDiffusionLightning,
)
