"""Stage-2 training: hide tokens, predict them, compare."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor

from prod9.conditions import hide_covariates
from prod9.generator.heads import TokenLogits
from prod9.generator.maskgit import MaskGiTScheduler
from prod9.generator.token_decoder import MaskedDecoder
from prod9.host_copies import host_generator, placed
from prod9.measures.metrics import count_values
from prod9.training.algorithms.base import Droppable, weighted_mean
from prod9.training.algorithms.control_regions import AbstractWeightedAlgorithm
from prod9.training.algorithms.tally import Tally, mean_of
from prod9.types import MaskedSample, TokenGrid

_LOW_TIME, _HIGH_TIME = 0.8, 0.2


@dataclass(kw_only=True, eq=False)
class TransformerTrainer(AbstractWeightedAlgorithm):
    """Losses and metrics of a masked decoder; steps no optimizer and owns no network.

    Attributes:
        decoder: any ``MaskedDecoder``.
        scheduler: γ.
        label_smoothing: share given to the uniform distribution.
        condition_dropout: share of samples trained without condition, for guidance.
        covariate_dropout: share of the covariates, each by itself, that are hidden where a condition has them.
        ordinal_weight: of the expected distance to the true levels.
    """

    decoder: MaskedDecoder
    scheduler: MaskGiTScheduler
    label_smoothing: float = 0.1
    condition_dropout: float = 0.1
    covariate_dropout: float = 0.3
    ordinal_weight: float = 0.0

    def generate_training_data(self, tokens: TokenGrid, *, generator: torch.Generator) -> MaskedSample:
        """Hide a share of each sample's tokens: that of the schedule at a random time."""
        return self.scheduler.corrupt(tokens, generator)

    def compute_losses(
        self,
        tokens: TokenGrid,
        condition: Droppable,
        *,
        generator: torch.Generator,
        foreground: Bool[Tensor, "B h w d"] | None = None,
        seg: Integer[Tensor, "B H W D"] | None = None,
    ) -> dict[str, Tensor]:
        """Return ``total``, ``cross_entropy``, with coupled groups ``marginal``, and, if weighted, ``ordinal``.

        All are means over hidden tokens; ``marginal`` is the cross-entropy of each group by itself.

        Args:
            tokens: whole grids.
            condition: of the decoder.
            generator: of all that is drawn.
            foreground: True where a token's patch holds any of the head; others weigh ``background_weight``.
            seg: segmentation of the volumes. Lesions are a hundredth of a brain; with equal weights they are learnt
                last.
        """
        sample = self.generate_training_data(tokens, generator=generator)
        if self.condition_dropout > 0:
            draws = torch.rand(tokens.shape[0], generator=host_generator(generator))
            condition = condition.drop(placed(draws < self.condition_dropout, tokens.device))
        condition = hide_covariates(condition, self.covariate_dropout, generator)
        logits, rows = self._predict_hidden(sample, condition)
        target = sample.target.flatten()[rows]
        weights = self.weights_of(tokens, foreground=foreground, seg=seg).flatten()[rows]
        losses = {
            "cross_entropy": weighted_mean(
                logits.cross_entropy(target, label_smoothing=self.label_smoothing), weights
            )
        }
        losses["total"] = losses["cross_entropy"]
        if logits.coupling is not None:
            # Expected codes are those of each group by itself, and the coupling reads its logits.
            losses["marginal"] = weighted_mean(logits.marginal.cross_entropy(target), weights)
            losses["total"] = losses["total"] + losses["marginal"]
        if self.ordinal_weight > 0:
            losses["ordinal"] = weighted_mean(logits.level_distance(target), weights)
            losses["total"] = losses["total"] + self.ordinal_weight * losses["ordinal"]
        return losses

    def _predict_hidden(self, sample: MaskedSample, condition: Droppable) -> tuple[TokenLogits, Tensor]:
        rows = sample.rows  # 40% less head and softmax than for all tokens
        return self.decoder(sample.tokens, sample.mask, self.decoder.prepare(condition), rows=rows), rows

    @torch.no_grad()
    def tally(self, tokens: TokenGrid, condition: Droppable, *, generator: torch.Generator) -> Tally:
        """Count scalars over all hidden tokens of the set, in nats and shares, without smoothing or weights.

        ``loss`` and ``accuracy`` at random times; ``accuracy_level_i`` and ``distance_level_i`` (mean
        absolute error in levels) of the most likely token; ``loss_low_mask`` and ``loss_high_mask`` at the
        times 0.8 and 0.2. Context is used once the former falls below the latter. Put the decoder into
        evaluation mode first.
        """
        sample = self.generate_training_data(tokens, generator=generator)
        logits, rows = self._predict_hidden(sample, condition)
        target, guess = sample.target.flatten()[rows], logits.mode()
        means = {
            "loss": mean_of(logits.cross_entropy(target)),
            "accuracy": mean_of((guess == target).float()),
            "loss_low_mask": self._loss_at(_LOW_TIME, tokens, condition, generator),
            "loss_high_mask": self._loss_at(_HIGH_TIME, tokens, condition, generator),
        }
        matrices = self.confusion_matrices(guess, target)
        return Tally(means, {f"confusion_{i}": matrix for i, matrix in enumerate(matrices)})

    def summarise(self, tally: Tally) -> dict[str, Tensor]:
        """Return the scores of the set that ``tally`` is of."""
        metrics = tally.averages()
        for i in range(len(tally.counts)):
            confusion = tally.counts[f"confusion_{i}"]
            digit = torch.arange(len(confusion), device=confusion.device, dtype=confusion.dtype)
            gap = (digit[:, None] - digit).abs()
            metrics[f"accuracy_level_{i}"] = confusion.diagonal().sum() / confusion.sum()
            metrics[f"distance_level_{i}"] = (confusion * gap).sum() / confusion.sum()
        return metrics

    def _loss_at(
        self, time: float, tokens: Tensor, condition: Droppable, generator: torch.Generator
    ) -> Tensor:
        times = torch.full((tokens.shape[0],), time, dtype=torch.float64)
        sample = self.scheduler.corrupt_at(tokens, times, generator)
        logits, rows = self._predict_hidden(sample, condition)
        return mean_of(logits.cross_entropy(sample.target.flatten()[rows]))

    def confusion_matrices(
        self, guess: Int64[Tensor, "..."], target: Int64[Tensor, "..."]
    ) -> list[Float[Tensor, "L L"]]:
        """Return, for each level, how often each true digit (row) was taken for each digit (column)."""
        vocabulary = self.decoder.vocabulary
        rows, columns = vocabulary.digits(target.flatten()), vocabulary.digits(guess.flatten())
        return [
            count_values(rows[:, i] * level + columns[:, i], level**2).view(level, level).float()
            for i, level in enumerate(vocabulary.levels)
        ]
