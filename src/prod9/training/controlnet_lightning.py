"""Stage 3, MAISI: its module lives in ``prod9.training.lightning.controlnet_lightning``."""

from prod9.training.lightning.controlnet_lightning import ControlNetLightning as ControlNetLightning
