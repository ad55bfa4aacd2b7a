"""LabelConditionalTransformerLightning: stage 2a, tokens of a modality from its label."""

import torch

from prod9.generator.condition import MaskGiTCondition
from prod9.training.lightning.base import Batch, Panel
from prod9.training.lightning.conditions import of_label
from prod9.training.lightning.generative import AbstractGenerativeLightning


class LabelConditionalTransformerLightning(AbstractGenerativeLightning):
    """Final adapter of ``stage: transformer`` with ``model.kind: label_conditional``."""

    def condition(self, batch: Batch) -> MaskGiTCondition:
        """Return the class labels of the batch."""
        return of_label(batch)

    def sample_requests(self, num_samples: int) -> tuple[MaskGiTCondition, list[Panel], list[str]]:
        """Ask for the configured modalities in turn; nothing real corresponds to a sample."""
        names = [
            self.config.data.modalities[k % len(self.config.data.modalities)] for k in range(num_samples)
        ]
        labels = [self.config.data.label_map[name] for name in names]
        return MaskGiTCondition(label=torch.tensor(labels, device=self.device)), [], names
