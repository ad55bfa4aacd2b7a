"""Stage 2a, MaskGiT: its module lives in ``prod9.training.lightning.label_conditional_lightning``."""

from prod9.training.lightning.label_conditional_lightning import (
    LabelConditionalTransformerLightning as LabelConditionalTransformerLightning,
)
