"""Stage 1, MAISI: a variational autoencoder whose latent is a grid of a few continuous channels.

The network is MONAI's AutoencoderKlMaisi with its parameter names, so NVIDIA's released weights load strictly.
Evaluation is deterministic; MONAI's ``forward`` and ``encode_stage_2_inputs`` sample the latent in evaluation, too.
"""

import math

import torch
from torch import Tensor

from prod9.autoencoder.backbone import MaisiBackbone
from prod9.types import AutoencoderOutput, Latent, Volume, VolumeOut

# MONAI's bounds of the log-variance: exp stays finite in float32.
_LOG_VARIANCE = (-30.0, 20.0)
_FIRST_SIGMA = 0.1


class AutoencoderKlMaisi(MaisiBackbone):
    """Encoder, Gaussian latent and decoder over whole volumes or crops.

    For the keywords, and the sides that a volume may have, see
    :class:`~prod9.autoencoder.backbone.MaisiBackbone`.

    Example:
        >>> import torch
        >>> from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
        >>> sizes = {"num_channels": [8, 8], "num_res_blocks": [1, 1], "norm_num_groups": 4}
        >>> network = AutoencoderKlMaisi(latent_channels=4, **sizes).eval()
        >>> z_mu, z_sigma = network.encode(torch.rand(1, 1, 16, 16, 16))
        >>> tuple(z_mu.shape), tuple(network.decode(z_mu).shape)
        ((1, 4, 8, 8, 8), (1, 1, 16, 16, 16))
    """

    def encode(self, x: Volume) -> tuple[Latent, Latent]:
        """Return ``(z_mu, z_sigma)``, float32; z_sigma is a standard deviation, as MONAI returns it."""
        z_mu, log_variance = self.encode_through(x, self.quant_conv_mu, self.quant_conv_log_sigma)
        return z_mu.float(), torch.exp(log_variance.float().clamp(*_LOG_VARIANCE) / 2)

    @torch.no_grad()
    def calibrate(self, x: Volume) -> None:
        """Bring z_mu of ``x`` to mean 0 and std 1 in each channel and z_sigma to 0.1, in place.

        Fresh weights give z_sigma near 1 and a smaller z_mu. The decoder would learn to ignore channels that are
        mostly noise, and the KL divergence would keep them so. Call it once, before training from scratch.
        """
        self._standardise(self.encode(x)[0])
        conv = self.quant_conv_log_sigma.conv
        conv.weight.zero_()
        conv.bias.fill_(2 * math.log(_FIRST_SIGMA))

    def reparameterize(
        self, z_mu: Latent, z_sigma: Latent, generator: torch.Generator | None = None
    ) -> Latent:
        """Return z_mu + z_sigma · noise; ``generator`` lives on the device of the latent."""
        # By shape: randn_like would give other noise for the same seed in another memory layout.
        device = z_mu.device if generator is None else generator.device
        noise = torch.randn(z_mu.shape, generator=generator, device=device, dtype=z_mu.dtype).to(z_mu.device)
        return z_mu + z_sigma * noise

    def sampling(self, z_mu: Tensor, z_sigma: Tensor) -> Tensor:
        """Return a sample ``[B Z h w d]`` from the global generator; MONAI's name for ``reparameterize``."""
        return self.reparameterize(z_mu, z_sigma)

    def forward(  # pyrefly: ignore[bad-override]
        self, x: Volume, generator: torch.Generator | None = None
    ) -> AutoencoderOutput:
        """Encode and decode: a sample of the latent in training, its mean in evaluation."""
        z_mu, z_sigma = self.encode(x)
        latent = self.reparameterize(z_mu, z_sigma, generator) if self.training else z_mu
        return AutoencoderOutput(self.decode(latent), latent, z_mu, z_sigma)

    def reconstruct(self, x: Volume) -> VolumeOut:
        """Return the volume after a pass through the mean latent."""
        return self.decode(self.encode(x)[0])

    def encode_stage_2_inputs(self, x: Volume) -> Latent:
        """Return z_mu: a sample would add noise that stage 2 cannot predict."""
        return self.encode(x)[0]
