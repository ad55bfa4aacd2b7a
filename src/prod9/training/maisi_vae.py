"""Stage 1, MAISI: its module lives in ``prod9.training.lightning.maisi_vae_lightning``."""

from prod9.training.lightning.maisi_vae_lightning import MAISIVAELightning as MAISIVAELightning
