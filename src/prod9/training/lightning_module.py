"""The old home of the stage-1 and stage-2 modules; import from ``prod9.training.lightning`` instead."""

import warnings

from prod9.training.lightning.autoencoder_lightning import AutoencoderLightning as AutoencoderLightning
from prod9.training.lightning.transformer_lightning import TransformerLightning as TransformerLightning

warnings.warn(
    "prod9.training.lightning_module is deprecated; import from prod9.training.lightning.autoencoder_lightning "
    "and prod9.training.lightning.transformer_lightning",
    DeprecationWarning,
    stacklevel=2,
)
