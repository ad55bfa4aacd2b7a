"""TransformerLightning: stage 2 with a source, tokens of one modality from the latent of another."""

from functools import reduce

from prod9.generator.condition import MaskGiTCondition
from prod9.training.lightning.base import Batch, Panel
from prod9.training.lightning.conditions import of_source
from prod9.training.lightning.generative import AbstractGenerativeLightning


class TransformerLightning(AbstractGenerativeLightning):
    """Final adapter of ``stage: transformer`` with ``model.kind: decoder``."""

    def condition(self, batch: Batch) -> MaskGiTCondition:
        """Return the target's label, and label and latent of the co-registered source."""
        return of_source(batch)

    def sample_requests(self, num_samples: int) -> tuple[MaskGiTCondition, list[Panel], list[str]]:
        """Ask for held-out targets from their own sources, beside what the tokens of the target decode to."""
        conditions = [self.condition(batch) for batch in self.examples]
        merged = reduce(MaskGiTCondition.cat, conditions)
        names = {label: name for name, label in self.config.data.label_map.items()}
        count = min(num_samples, len(merged))
        titles = [names[int(label)] for label in merged.label[:count]]
        targets = [tokens for batch in self.examples for tokens in batch["target_indices"].split(1)][:count]
        real = [Panel(title, self.decode(tokens)) for title, tokens in zip(titles, targets, strict=True)]
        return _first(merged, count), real, titles


def _first(condition: MaskGiTCondition, count: int) -> MaskGiTCondition:
    source, label = condition.source_latent, condition.source_label
    return MaskGiTCondition(
        label=condition.label[:count],
        source_latent=None if source is None else source[:count],
        source_label=None if label is None else label[:count],
    )
