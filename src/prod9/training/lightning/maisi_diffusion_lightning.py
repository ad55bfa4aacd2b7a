"""MAISIDiffusionLightning: stage 2 of MAISI, a rectified flow over the latents of a trained autoencoder."""

from typing import Any

import torch
from torch import Tensor, nn

from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.config.schema import MaisiDiffusionConfig
from prod9.diffusion.condition import FlowCondition
from prod9.models.checkpoint_manager import Header, Loaded, require_schedule
from prod9.models.factory import ModelFactory
from prod9.models.released import RECTIFIED_FLOW
from prod9.training.algorithms.tally import Tally
from prod9.training.building import build_diffusion_trainer
from prod9.training.lightning.base import Batch, Panel, compile_network
from prod9.training.lightning.upstream import AbstractUpstreamLightning, load_vae

_BINS = 64


class MAISIDiffusionLightning(AbstractUpstreamLightning[AutoencoderKlMaisi]):
    """Final adapter of ``stage: maisi_diffusion``.

    upstream: the trained autoencoder, by default that of ``inputs.autoencoder``. Latents are multiplied by
    ``scale_factor``, 1 over their deviation in the whole training store; it is kept in the checkpoint, and a
    run that starts from other weights keeps the factor that those were trained with.
    """

    config: MaisiDiffusionConfig

    def __init__(
        self, config: MaisiDiffusionConfig, upstream: Loaded[AutoencoderKlMaisi] | None = None
    ) -> None:
        upstream = upstream or load_vae(config)
        super().__init__(config, upstream)
        self.latent_channels = upstream.network.latent_channels
        self.diffusion = ModelFactory.create_diffusion(config.model, latent_channels=self.latent_channels)
        scheduler = ModelFactory.create_flow_scheduler(config.flow)
        self.algorithm = build_diffusion_trainer(config.loss, network=self.diffusion, scheduler=scheduler)
        self.sampler = ModelFactory.create_flow_sampler(config.sampler, config.flow)
        self.scale_factor: float | None = None
        if config.training.channels_last:
            self.diffusion.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
        if config.training.compile:
            compile_network(self.diffusion)

    def networks(self) -> dict[str, nn.Module]:
        """Return the U-Net."""
        return {"diffusion": self.diffusion}

    def architecture(self) -> dict[str, Any]:
        """Return what rebuilds the U-Net: its section, and the autoencoder's for the latent."""
        upstream = self._upstream.content.header["architecture"]["autoencoder"]
        return {"diffusion": self.config.model.model_dump(mode="json"), "autoencoder": upstream}

    # -- the scale of the latents -------------------------------------------------------------------

    def inherit(self, header: Header) -> None:
        """Keep the scale that the weights of ``header`` were trained with; CheckpointError for a DDPM's."""
        require_schedule(header, RECTIFIED_FLOW, "The weights to start from")
        self.scale_factor = float(header["data"]["scale_factor"])

    def header(self) -> Header:
        """Return the header of this moment, with the scale of the latents."""
        header = super().header()
        header["data"]["scale_factor"] = self.scale_factor
        return header

    def on_fit_start(self) -> None:
        """Bring the autoencoder to the device, and measure the latents of a run that is new."""
        super().on_fit_start()
        if self.scale_factor is None:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.scale_factor = 1.0 / data.latent_std

    def _scaled(self, batch: Batch) -> Tensor:
        assert self.scale_factor is not None  # measured, resumed or inherited
        x = batch["latent"] * self.scale_factor
        return x.contiguous(memory_format=torch.channels_last_3d) if self.config.training.channels_last else x

    # -- training and validation --------------------------------------------------------------------

    def condition(self, batch: Batch) -> FlowCondition:
        """Return the class labels and the spacing of the batch."""
        return FlowCondition.of_heads(batch["label"], batch["spacing"])

    def optimise(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Step the U-Net on corrupted latents."""
        losses = self.algorithm.compute_losses(
            self._scaled(batch), self.condition(batch), generator=generator
        )
        return self.step_on(losses)

    def tally(self, batch: Batch, batch_idx: int) -> Tally:
        """Count what adds to the velocity losses; a batch is corrupted in the same way at every validation."""
        self.keep_example(batch)
        generator = self.seeded_generator(batch_idx, 2)
        return self.algorithm.tally(self._scaled(batch), self.condition(batch), generator=generator)

    # -- sampling -----------------------------------------------------------------------------------

    @torch.no_grad()
    def sample_validation(self, num_samples: int) -> list[list[Panel]]:
        """Sample the configured modalities in turn, decode, log ``val/sample_distance``, return rows.

        Every rank samples the same, so the metric needs no exchange. ``sample_distance``: total variation
        distance between the histograms of sampled and of held-out latent values, averaged over channels; 0
        equal, 1 disjoint.
        """
        data = self.config.data
        names = [data.modalities[k % len(data.modalities)] for k in range(num_samples)]
        labels = torch.tensor([data.label_map[name] for name in names], device=self.device)
        spacing = self.examples[0]["spacing"][:1].expand(num_samples, 3)
        latents = self.sample_latents(FlowCondition.of_heads(labels, spacing))
        held_out = torch.cat([batch["latent"] for batch in self.examples])
        self.log("val/sample_distance", _histogram_distance(latents, held_out))
        return [[Panel(f"{name}, sampled", self.decode(latents[k : k + 1]))] for k, name in enumerate(names)]

    def sample_latents(self, condition: FlowCondition) -> Tensor:
        """Return sampled latents ``[B Z h w d]`` in the autoencoder's scale, the same for the same weights."""
        assert self.scale_factor is not None  # measured, resumed or inherited
        shape = (len(condition), self.latent_channels, *self.latent_grid)
        generators = [self.seeded_generator(k, 3) for k in range(len(condition))]
        return self.sampler.sample(self.diffusion.predict, shape, condition, generators) / self.scale_factor

    def decode(self, latent: Tensor) -> Any:
        """Return the volume of one latent ``[1 Z h w d]`` as a float32 array ``[H W D]`` in [0, 1]."""
        return self.wrapper.decode(latent)[0, 0].float().clamp(0, 1).cpu().numpy()


def _histogram_distance(sampled: Tensor, real: Tensor) -> Tensor:
    distances = []
    for channel in range(real.shape[1]):
        pair = [values[:, channel].float().flatten().cpu() for values in (sampled, real)]
        low, high = pair[1].quantile(0.001).item(), pair[1].quantile(0.999).item()
        # What lies outside counts in the outermost bins.
        counts = [torch.histc(v.clamp(low, high), _BINS, low, high) / v.numel() for v in pair]
        distances.append(0.5 * (counts[0] - counts[1]).abs().sum())
    return torch.stack(distances).mean()
