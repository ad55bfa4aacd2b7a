"""GAN training of an autoencoder, without Lightning."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prod9.measures.metrics import (
    LARGEST_HISTOGRAM,
    CombinedMetric,
    codebook_usage,
    foreground,
    level_histogram,
    level_usage,
    perplexity,
    psnr,
    ssim3d,
    token_histogram,
)
from prod9.training.algorithms.base import (
    AbstractAlgorithm,
    Autoencoder,
    Backward,
    Losses,
    TokenAutoencoder,
    frozen_call,
)
from prod9.training.algorithms.tally import Tally, exact, mean_of
from prod9.training.losses import VAEGANLoss, kl_divergence
from prod9.types import AutoencoderOutput, Volume


@dataclass(kw_only=True, eq=False)
class AutoencoderTrainer(AbstractAlgorithm):
    """Losses, discriminator step and metrics of stage 1, for discrete and continuous latents.

    Attributes:
        autoencoder: maps ``[B C H W D]`` to AutoencoderOutput and names its ``last_layer``.
        discriminator: maps a volume to the outputs of all its layers, logits last; required when the loss is
            adversarial.
        loss: of the autoencoder and the discriminator.
        lpips: adds the metric of that name.
        combined: adds ``combined_metric``.
        sampling: True for an autoencoder whose forward pass draws its latent and so takes ``generator``.
    """

    autoencoder: Autoencoder
    discriminator: nn.Module | None
    loss: VAEGANLoss
    lpips: nn.Module | None = None
    combined: CombinedMetric | None = None
    sampling: bool = False

    def __post_init__(self) -> None:
        if self.discriminator is None and self.loss.adversarial_weight:
            raise ValueError(
                f"discriminator: expected one for an adversarial weight of {self.loss.adversarial_weight:g}, got None; "
                "pass one or set the weight to 0"
            )

    def compute_generator_losses(
        self, x: Volume, *, step: int, generator: torch.Generator | None = None
    ) -> tuple[Losses, AutoencoderOutput]:
        """Return the losses of the autoencoder on a batch, and its output.

        ``total`` is to be differentiated; no gradient of it reaches the discriminator. ``step`` counts training
        batches from 0. ``generator``: for autoencoders that draw their latent.
        """
        output = self.autoencoder(x, generator=generator) if self.sampling else self.autoencoder(x)
        fake, real = None, None
        if self.discriminator is not None and self.loss.is_adversarial(step):
            fake = frozen_call(self.discriminator, output.reconstruction)
            if self.loss.matches_features:
                with torch.no_grad():
                    real = self.discriminator(x)
        losses = self.loss.generator_losses(
            x,
            output,
            last_layer=self.autoencoder.last_layer,
            fake_features=fake,
            real_features=real,
            step=step,
        )
        return losses, output

    def compute_discriminator_losses(self, real: Volume, reconstruction: Volume, *, step: int) -> Losses:
        """Return the losses of the discriminator, {} before it starts.

        The reconstruction is detached here, so no gradient reaches the autoencoder.
        """
        if self.discriminator is None or not self.loss.is_adversarial(step):
            return {}
        real = real.detach().requires_grad_(self.loss.gradient_penalty > 0)
        real_logits = self.discriminator(real)[-1]
        fake_logits = self.discriminator(reconstruction.detach())[-1]
        return self.loss.discriminator_losses(real_logits, fake_logits, real=real)

    def update_discriminator(
        self,
        real: Volume,
        reconstruction: Volume,
        optimizer: torch.optim.Optimizer,
        *,
        step: int,
        backward: Backward,
        clip: Callable[[torch.optim.Optimizer], None] | None = None,
    ) -> Losses:
        """Take one optimizer step of the discriminator and return its losses; before it starts, do nothing, return {}.

        Args:
            real: volumes.
            reconstruction: of them.
            optimizer: of the discriminator.
            step: training batches done.
            backward: differentiates the loss.
            clip: called with the optimizer between backward and step.
        """
        losses = self.compute_discriminator_losses(real, reconstruction, step=step)
        if not losses:
            return {}
        optimizer.zero_grad(set_to_none=True)
        backward(losses["total"])
        if clip is not None:
            clip(optimizer)
        optimizer.step()
        return {name: value.detach() for name, value in losses.items()}

    def tally(self, x: Volume) -> Tally:
        """Count scores of reconstructions of whole volumes in [0, 1], in evaluation mode, without gradient.

        Means over the volumes: psnr and psnr_brain in dB (the latter over those with any foreground), ssim, l1; with
        an LPIPS network lpips. psnr_brain_averages is what one number per cell of the latent grid, interpolated, has
        as psnr_brain. Over all tokens of the set: per channel level_usage_0 …, and codebook_usage and perplexity of
        vocabularies up to ``LARGEST_HISTOGRAM`` tokens; for continuous latents kl, and latent_std over all values of
        z_mu (stage 2 wants it near 1). combined_metric.
        """
        with torch.no_grad(), evaluating(self.autoencoder):
            output = self.autoencoder(x)
            reconstruction = output.reconstruction.float().clamp(0.0, 1.0)
            brain = foreground(x)
            means = {
                "psnr": mean_of(psnr(reconstruction, x)),
                "psnr_brain": mean_of(psnr(reconstruction, x, mask=brain), brain.flatten(1).any(1)),
                "psnr_brain_averages": mean_of(
                    psnr(_averages(x, output.z_mu.shape[2:]), x, mask=brain), brain.flatten(1).any(1)
                ),
                "ssim": mean_of(ssim3d(reconstruction, x)),
                "l1": mean_of((reconstruction - x).abs().flatten(1).mean(1)),
            }
            volumes = x.new_tensor(float(len(x)))
            if self.lpips is not None:
                means["lpips"] = mean_of(self.lpips.to(x.device)(reconstruction, x), volumes)
            if output.z_sigma is not None:
                means["kl"] = mean_of(kl_divergence(output.z_mu, output.z_sigma), volumes)
        return Tally(means, self.count_latents(output))

    def summarise(self, tally: Tally) -> Losses:
        """Return the scores of the set that ``tally`` is of."""
        metrics = tally.averages() | self.count_scores(tally)
        if self.combined is not None:
            metrics["combined_metric"] = self.combined(metrics)
        return metrics

    def count_scores(self, tally: Tally) -> Losses:
        """Return the scores of what was counted over the latents of a set."""
        metrics: Losses = {}
        if "tokens" in tally.counts:
            histogram = tally.counts["tokens"]
            metrics |= {"codebook_usage": codebook_usage(histogram), "perplexity": perplexity(histogram)}
        if "digits" in tally.counts and isinstance(self.autoencoder, TokenAutoencoder):
            per_level = level_usage(tally.counts["digits"], self.autoencoder.levels)
            metrics |= {f"level_usage_{i}": share for i, share in enumerate(per_level)}
        if "latent" in tally.counts:
            count, total, squares = tally.counts["latent"]
            metrics["latent_std"] = ((squares - total**2 / count) / (count - 1)).clamp_min(0).sqrt().float()
        return metrics

    def count_latents(self, output: AutoencoderOutput) -> dict[str, Tensor]:
        """Return what of an output adds up over a set: tokens by digit and as a whole, or moments of the latent."""
        if output.tokens is not None and isinstance(self.autoencoder, TokenAutoencoder):
            counts = {"digits": level_histogram(output.tokens, self.autoencoder.levels)}
            if self.autoencoder.vocab_size <= LARGEST_HISTOGRAM:
                counts["tokens"] = token_histogram(output.tokens, self.autoencoder.vocab_size)
            return counts
        if output.z_sigma is None:
            return {}
        z = exact(output.z_mu)
        return {"latent": torch.stack([z.new_tensor(z.numel()), z.sum(), z.square().sum()])}


def _averages(x: Volume, grid: Sequence[int]) -> Volume:
    """Return ``x`` as its averages over the cells of ``grid`` give it back by linear interpolation.

    What is lost is what one number per cell cannot hold: a yardstick that needs no training.
    """
    h, w, d = grid
    return F.interpolate(
        F.adaptive_avg_pool3d(x, (h, w, d)), size=x.shape[2:], mode="trilinear", align_corners=False
    )


@contextmanager
def evaluating(network: Autoencoder) -> Iterator[None]:
    """Put ``network`` in evaluation mode for a while; each submodule gets its own mode back."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
