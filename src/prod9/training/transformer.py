"""Stage 2, MaskGiT: its module lives in ``prod9.training.lightning.transformer_lightning``."""

from prod9.training.lightning.transformer_lightning import TransformerLightning as TransformerLightning
