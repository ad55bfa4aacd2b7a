"""The MAISI family: sections and roots of its stages.

Imported by :mod:`prod9.training.config_schema`; import the sections from there.
"""

from typing import Literal

from pydantic import Field

from prod9.training.config_autoencoder import AutoencoderSection, Stage1Config, Stage1LossSection
from prod9.training.config_sections import Count, Ints, NonNegative, PositiveInt

# -- stage 1 --------------------------------------------------------------------------------------


class KLModelConfig(AutoencoderSection):
    """AutoencoderKlMaisi."""

    kind: Literal["kl"] = Field(default="kl", description="Autoencoder family.")
    latent_channels: PositiveInt = Field(default=4, description="Channels Z of the latent.")
    num_channels: Ints = Field(default=(64, 128, 256), description="Width of each resolution.")
    norm_num_groups: PositiveInt = Field(default=32, description="Groups of the group normalisation.")


class MaisiVAELossConfig(Stage1LossSection):
    """VAEGANLoss with a KL divergence."""

    kl_weight: NonNegative = Field(
        default=1e-3,
        description="Weight of the KL divergence, a mean over latent values. MAISI weighs a sum by 1e-7: "
        "multiply by the latent values of a training crop (64³ at ×4 with 4 channels: 16,384, so 1.6e-3).",
    )
    kl_warmup_steps: Count = Field(
        default=0, description="Annealing: steps over which that weight grows from 0."
    )


class MaisiVAEConfig(Stage1Config[KLModelConfig, MaisiVAELossConfig]):
    """Stage 1, MAISI."""

    stage: Literal["maisi_vae"] = Field(default="maisi_vae", description="Stage.")
    model: KLModelConfig = Field(default=KLModelConfig(), description="Autoencoder.")
    loss: MaisiVAELossConfig = Field(default=MaisiVAELossConfig(), description="Loss.")
