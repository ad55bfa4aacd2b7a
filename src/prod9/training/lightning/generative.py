"""AbstractGenerativeLightning: trains a network on what a frozen earlier stage made of the volumes."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.config.schema import TransformerConfig
from prod9.errors import ConfigError
from prod9.models.checkpoint_manager import CheckpointManager, Loaded, Opened
from prod9.models.factory import ModelFactory
from prod9.training.algorithms.tally import Tally
from prod9.training.building import build_transformer_trainer
from prod9.training.lightning.base import Batch, Panel, compile_network
from prod9.training.lightning.conditions import Condition
from prod9.training.lightning.tokens import AbstractTokenLightning


class AbstractGenerativeLightning(AbstractTokenLightning):
    """Stage 2 on tokens. A final class says what the condition of a batch is, and what to sample.

    upstream: the trained autoencoder, by default that of ``inputs.autoencoder``.
    """

    config: TransformerConfig

    def __init__(self, config: TransformerConfig, upstream: Loaded[AutoencoderFSQ] | None = None) -> None:
        super().__init__(config, upstream or load_upstream(config))
        self.decoder = ModelFactory.create_transformer(config.model, levels=self.levels)
        self.algorithm = build_transformer_trainer(
            config.loss, decoder=self.decoder, scheduler=ModelFactory.create_scheduler(config.masking)
        )
        if config.training.compile:
            compile_network(self.decoder)

    # -- what a final class supplies ---------------------------------------------------------------

    @abstractmethod
    def condition(self, batch: Batch) -> Condition:
        """Return what the decoder is told about a batch."""

    @abstractmethod
    def sample_requests(self, num_samples: int) -> tuple[Condition, list[Panel], list[str]]:
        """Return conditions to sample with, a real volume to show beside each (or none), and titles."""

    # -- training and validation --------------------------------------------------------------------

    def networks(self) -> dict[str, nn.Module]:
        """Return the decoder."""
        return {"decoder": self.decoder}

    def architecture(self) -> dict[str, Any]:
        """Return what rebuilds the decoder: its section, and the autoencoder's for the codebook."""
        upstream = self._upstream.content.header["architecture"]["autoencoder"]
        return {"transformer": self.config.model.model_dump(mode="json"), "autoencoder": upstream}

    def optimise(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Step the decoder on hidden tokens."""
        losses = self.algorithm.compute_losses(
            batch["target_indices"],
            self.condition(batch),
            generator=generator,
            foreground=batch["foreground"],
            seg=batch.get("seg"),
        )
        return self.step_on(losses)

    def tally(self, batch: Batch, batch_idx: int) -> Tally:
        """Count what adds to the token metrics; a batch is hidden in the same way at every validation."""
        if len(self.examples) < self.config.callbacks.num_samples:
            self.examples.append(batch)
        generator = self.seeded_generator(batch_idx, 2)
        return self.algorithm.tally(batch["target_indices"], self.condition(batch), generator=generator)

    # -- sampling -----------------------------------------------------------------------------------

    @torch.no_grad()
    def sample_validation(self, num_samples: int) -> list[list[Panel]]:
        """Sample fully, decode with the frozen autoencoder, log ``val/sample_distance``, return rows.

        Every rank samples the same, so the metric needs no exchange. ``sample_distance``: total variation
        distance between the shares of each FSQ level in sampled and in held-out real tokens, averaged over
        latent channels; 0 equal, 1 disjoint.
        """
        condition, real, titles = self.sample_requests(num_samples)
        tokens = self.sample_tokens(condition)
        held_out = torch.cat([batch["target_indices"] for batch in self.examples])
        self.log("val/sample_distance", _level_distance(tokens, held_out, self.levels))
        rows = []
        for k, title in enumerate(titles):
            volume = self.decode(tokens[k : k + 1])
            rows.append([*real[k : k + 1], Panel(f"{title}, sampled", volume)])
        return rows

    def sample_tokens(self, condition: Condition) -> Tensor:
        """Return sampled tokens ``[B h w d]``, the same ones for the same weights."""
        shape = (len(condition), *self.token_grid)
        generators = [self.seeded_generator(k, 3) for k in range(len(condition))]
        return self.sampler.sample(self.decoder, shape, condition, generators)


def load_upstream(config: TransformerConfig, opened: Opened | None = None) -> Loaded[AutoencoderFSQ]:
    """Load the autoencoder of ``inputs.autoencoder``; raises ConfigError when the key is not set."""
    if config.inputs.autoencoder is None:
        raise ConfigError(
            "inputs.autoencoder: expected the run folder or checkpoint of a trained autoencoder, got null; "
            "set it, for example with --set inputs.autoencoder=outputs/stage1."
        )
    return CheckpointManager.load_autoencoder(opened or config.inputs.autoencoder)


def _level_distance(sampled: Tensor, real: Tensor, levels: tuple[int, ...]) -> Tensor:
    distances, stride = [], 1
    for level in levels:
        shares = [
            torch.bincount(((tokens.flatten() // stride) % level).cpu(), minlength=level).float()
            / tokens.numel()
            for tokens in (sampled, real)
        ]
        distances.append(0.5 * (shares[0] - shares[1]).abs().sum())
        stride *= level
    return torch.stack(distances).mean()
