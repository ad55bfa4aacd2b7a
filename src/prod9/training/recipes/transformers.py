"""The recipes of stage 2 on tokens, one for each kind of decoder."""

import logging
import math
from abc import abstractmethod
from functools import reduce
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.config.schema import TransformerConfig
from prod9.errors import CheckpointError
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.modality_processor import PADDING, InContextCondition
from prod9.generator.single_stream import TransformerDecoderSingleStream
from prod9.measures.metrics import level_histogram
from prod9.models.checkpoint_manager import CheckpointManager, Loaded, Opened
from prod9.models.factory import ModelFactory
from prod9.training.algorithms.base import Losses
from prod9.training.algorithms.tally import Tally
from prod9.training.algorithms.transformer_trainer import TransformerTrainer
from prod9.training.batches import TokenBatch
from prod9.training.data.module import AbstractDataModule
from prod9.training.recipes.base import AbstractRecipe, Draws, Encoding, Panel, Samples, named_input
from prod9.training.recipes.conditions import CONDITIONS
from prod9.training.recipes.frozen import FrozenAutoencoder, token_data_module
from prod9.training.recipes.headline import Headline, Yardstick

log = logging.getLogger("prod9")
K = TypeVar("K", MaskGiTCondition, InContextCondition)


class AbstractTransformerRecipe(
    AbstractRecipe[TransformerConfig, Loaded[AutoencoderFSQ], TokenBatch], Generic[K]
):
    """Stage ``transformer``. A final class says what to sample."""

    metrics = ("loss", "accuracy", "loss_low_mask", "loss_high_mask", "sample_distance")
    headline = Headline(
        text="loss {value} per hidden token",
        metric="loss",
        yardsticks=(Yardstick(text="guessing all tokens alike has {value}", metric="even_guess"),),
        also=(Yardstick(text="{percent} of them predicted exactly", metric="accuracy"),),
    )
    algorithm: TransformerTrainer

    def __init__(self, config: TransformerConfig, bases: Loaded[AutoencoderFSQ] | None = None) -> None:
        super().__init__(config, bases)
        self.autoencoder = FrozenAutoencoder(self.bases, config)
        self.levels: tuple[int, ...] = tuple(self.autoencoder.section["levels"])
        self.decoder = ModelFactory.create_transformer(config.model, levels=self.levels)
        self.algorithm = TransformerTrainer(
            decoder=self.decoder,
            scheduler=ModelFactory.create_scheduler(config.masking),
            **config.loss.kwargs(),
        )
        self.sampler = ModelFactory.create_sampler(config.sampler, config.masking)

    @abstractmethod
    def sample_requests(self, count: int) -> tuple[K, list[Panel], list[str]]:
        """Return conditions to sample with, a real volume to show beside each (or none), and titles."""

    @staticmethod
    def load_bases(config: TransformerConfig, opened: Opened | None = None) -> Loaded[AutoencoderFSQ]:
        """Load the autoencoder of ``inputs.autoencoder``."""
        path = named_input(config, "autoencoder", what="autoencoder", example="stage1")
        return CheckpointManager.load_autoencoder(opened or path)

    @classmethod
    def data_module(
        cls, config: TransformerConfig, bases: Loaded[AutoencoderFSQ], encoding: Encoding
    ) -> AbstractDataModule:
        """Return the tokens of ``config``."""
        return token_data_module(config, bases, encoding)

    def networks(self) -> dict[str, nn.Module]:
        """Return the decoder."""
        return {"decoder": self.decoder}

    def architecture(self) -> dict[str, Any]:
        """Return what rebuilds the decoder: its section, and the autoencoder's for the codebook."""
        return {
            "transformer": self.config.model.model_dump(mode="json"),
            "autoencoder": self.autoencoder.section,
        }

    def inputs(self) -> dict[str, dict[str, str]]:
        """Return where the autoencoder is and its hash."""
        return {"autoencoder": self.describe(self.bases)}

    def yardsticks(self) -> dict[str, float]:
        """Return the loss of a prediction that gives all tokens the same probability, in nats."""
        return {"even_guess": sum(map(math.log, self.levels))}

    def place(self, device: torch.device) -> None:
        """Bring the autoencoder to ``device``."""
        self.autoencoder.place(device)

    def condition(self, batch: TokenBatch) -> K:
        """Return what the decoder is conditioned on in a batch."""
        return cast(K, CONDITIONS[self.config.model.kind](batch))

    def losses(self, batch: TokenBatch, *, step: int, generator: torch.Generator) -> Losses:
        """Return the losses of hidden tokens."""
        del step
        return self.algorithm.compute_losses(
            batch["target_indices"],
            self.condition(batch),
            generator=generator,
            foreground=batch["foreground"],
            seg=batch.get("seg"),
        )

    def tally(self, batch: TokenBatch, index: int, draws: Draws) -> Tally:
        """Count what adds to the token metrics; a batch is hidden in the same way at every validation."""
        self.keep_example(batch)
        return self.algorithm.tally(
            batch["target_indices"], self.condition(batch), generator=draws.for_batch(index)
        )

    @torch.no_grad()
    def samples(self, count: int, draws: Draws) -> Samples:
        """Sample tokens, decode them with the frozen autoencoder, and measure ``sample_distance``.

        That is the total variation distance between the shares of each FSQ level in sampled and in held-out real
        tokens, averaged over latent channels: 0 equal, 1 disjoint. Every process samples the same, so the metric needs
        no exchange.
        """
        condition, real, titles = self.sample_requests(count)
        tokens = self.sample_tokens(condition, draws)
        held_out = torch.cat([batch["target_indices"] for batch in self.examples])
        rows = [
            [*real[k : k + 1], Panel(f"{title}, sampled", self.autoencoder.decode_tokens(tokens[k : k + 1]))]
            for k, title in enumerate(titles)
        ]
        return Samples(rows, {"sample_distance": level_distance(tokens, held_out, self.levels)})

    def sample_tokens(self, condition: K, draws: Draws) -> Tensor:
        """Return sampled tokens ``[B h w d]``, the same ones for the same weights."""
        shape = (len(condition), *self.autoencoder.latent_grid)
        generators = [draws.for_sample(k) for k in range(len(condition))]
        return self.sampler.sample(self.decoder, shape, condition, generators)

    def held_out_targets(self) -> list[Tensor]:
        """Return the tokens of each kept sample, ``[1 h w d]``."""
        return [tokens for batch in self.examples for tokens in batch["target_indices"].split(1)]

    def label_names(self) -> dict[int, str]:
        """Return the modality of each class label."""
        return {label: name for name, label in self.config.data.label_map.items()}


class LabelConditionalRecipe(AbstractTransformerRecipe[MaskGiTCondition]):
    """Kind ``label_conditional``: tokens of a modality from its label.

    lesions: of label maps, what is measured of each training patient: what masks that are drawn later are asked for.
    """

    def __init__(self, config: TransformerConfig, bases: Loaded[AutoencoderFSQ] | None = None) -> None:
        super().__init__(config, bases)
        self.lesions: list[dict[str, float]] = []
        config.require_autoencoder_of(label_maps=self.autoencoder.loaded.network.label_maps)

    def prepare(self, data: AbstractDataModule) -> None:
        """Measure the lesions of the training patients, where volumes are label maps."""
        if not self.config.data.shows_labels:
            return
        found = data.lesions("train").values()
        self.lesions = [{name: round(value, 4) for name, value in one.items()} for one in found]

    def header_data(self) -> dict[str, Any]:
        """Return the lesions."""
        return {"lesions": self.lesions} if self.lesions else {}

    def sample_requests(self, count: int) -> tuple[MaskGiTCondition, list[Panel], list[str]]:
        """Ask for the configured modalities in turn; nothing real corresponds to a sample."""
        data = self.config.data
        names = [data.modalities[k % len(data.modalities)] for k in range(count)]
        device = next(self.decoder.parameters()).device
        return (
            MaskGiTCondition(label=torch.tensor([data.label_map[name] for name in names], device=device)),
            [],
            names,
        )


class TranslationRecipe(AbstractTransformerRecipe[MaskGiTCondition]):
    """Kind ``decoder``: tokens of one modality from the latent of another."""

    def sample_requests(self, count: int) -> tuple[MaskGiTCondition, list[Panel], list[str]]:
        """Ask for held-out targets from their own sources, beside what the tokens of the target decode to."""
        merged = reduce(MaskGiTCondition.cat, map(self.condition, self.examples))
        count, names = min(count, len(merged)), self.label_names()
        source, label = merged.source_latent, merged.source_label
        first = MaskGiTCondition(
            label=merged.label[:count],
            source_latent=None if source is None else source[:count],
            source_label=None if label is None else label[:count],
        )
        titles = [names[int(label)] for label in first.label]
        real = [
            Panel(title, self.autoencoder.decode_tokens(tokens))
            for title, tokens in zip(titles, self.held_out_targets()[:count], strict=True)
        ]
        return first, real, titles


class InContextRecipe(AbstractTransformerRecipe[InContextCondition]):
    """Kind ``single_stream``: tokens of one modality from any others of the same patient."""

    def take_weights(self, opened: Opened) -> None:
        """Load the weights of another run: of this kind all, of a label-conditional one those that it has.

        The latter network has learnt the target's tokens, and only has to learn to read the sources.
        """
        if opened.header["config"]["model"]["kind"] != "label_conditional":
            super().take_weights(opened)
            return
        loaded = CheckpointManager.load_transformer(opened)
        try:
            fresh = cast(TransformerDecoderSingleStream, self.decoder).start_from(loaded.network)
        except ValueError as error:
            raise CheckpointError(f"{opened.path}: {error}") from error
        log.info("Taken over from a label-conditional transformer; new are %s.", ", ".join(fresh))

    def sample_requests(self, count: int) -> tuple[InContextCondition, list[Panel], list[str]]:
        """Ask for held-out targets from their own sources, beside what the tokens of the target decode to."""
        merged = reduce(InContextCondition.cat, map(self.condition, self.examples))[:count]
        titles = self._titles(merged)
        real = [
            Panel(title.split(" → ")[1], self.autoencoder.decode_tokens(tokens))
            for title, tokens in zip(titles, self.held_out_targets()[:count], strict=True)
        ]
        return merged, real, titles

    def _titles(self, condition: InContextCondition) -> list[str]:
        names, titles = self.label_names(), []
        for k, target in enumerate(condition.target_label.tolist()):
            there, near = condition.source_labels[k] != PADDING, condition.is_co_registered[k]
            sources = [names[label] for label in condition.source_labels[k][there & near].tolist()]
            examples = int((there & ~near).sum())
            shown = [*sources, *([f"{examples} examples"] if examples else [])]
            titles.append(f"{'+'.join(shown) or 'label'} → {names[target]}")
        return titles


def level_distance(sampled: Tensor, real: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Return the total variation distance of the digits of tokens, averaged over the ``levels``; on the CPU."""
    shares = [level_histogram(tokens, levels).cpu().float() / tokens.numel() for tokens in (sampled, real)]
    gaps = (shares[0] - shares[1]).abs().split(list(levels))
    return torch.stack([0.5 * gap.sum() for gap in gaps]).mean()
