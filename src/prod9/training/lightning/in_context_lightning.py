"""InContextTransformerLightning: stage 2b, tokens of one modality from any others of the same patient."""

import logging
from functools import reduce
from typing import cast

from prod9.errors import CheckpointError
from prod9.generator.modality_processor import PADDING, InContextCondition
from prod9.generator.single_stream import TransformerDecoderSingleStream
from prod9.models.checkpoint_manager import CheckpointManager, Opened
from prod9.training.lightning.base import Batch, Panel
from prod9.training.lightning.conditions import in_context
from prod9.training.lightning.generative import AbstractGenerativeLightning

log = logging.getLogger(__name__)


class InContextTransformerLightning(AbstractGenerativeLightning):
    """Final adapter of ``stage: transformer`` with ``model.kind: single_stream``."""

    def take_weights(self, opened: Opened) -> None:
        """Load the weights of another run: of this kind whole, of a label-conditional one what it has.

        The second starts from a network that knows the target's tokens and has only the sources to learn.
        """
        if opened.header["config"]["model"]["kind"] != "label_conditional":
            super().take_weights(opened)
            return
        # From the same file, whatever its folder holds besides; the averaged weights if there are.
        loaded = CheckpointManager.load_transformer(opened.path)
        try:
            fresh = cast(TransformerDecoderSingleStream, self.decoder).start_from(loaded.network)
        except ValueError as error:
            raise CheckpointError(f"{opened.path}: {error}") from error
        log.info("Taken over from a label-conditional transformer; new are %s.", ", ".join(fresh))

    def condition(self, batch: Batch) -> InContextCondition:
        """Return the target's label, and label and latent of each source."""
        return in_context(batch)

    def sample_requests(self, num_samples: int) -> tuple[InContextCondition, list[Panel], list[str]]:
        """Ask for held-out targets from their own sources, beside what the tokens of the target decode to."""
        merged = reduce(InContextCondition.cat, [self.condition(batch) for batch in self.examples])
        targets = [tokens for batch in self.examples for tokens in batch["target_indices"].split(1)]
        merged, targets = merged[:num_samples], targets[:num_samples]
        titles = self._titles(merged)
        names = [title.split(" → ")[1] for title in titles]
        real = [Panel(name, self.decode(tokens)) for name, tokens in zip(names, targets, strict=True)]
        return merged, real, titles

    def _titles(self, condition: InContextCondition) -> list[str]:
        names = {label: name for name, label in self.config.data.label_map.items()}
        titles = []
        for k, target in enumerate(condition.target_label.tolist()):
            there, near = condition.source_labels[k] != PADDING, condition.is_co_registered[k]
            sources = [names[label] for label in condition.source_labels[k][there & near].tolist()]
            examples = int((there & ~near).sum())
            shown = [*sources, *([f"{examples} examples"] if examples else [])]
            titles.append(f"{'+'.join(shown) or 'label'} → {names[target]}")
        return titles
