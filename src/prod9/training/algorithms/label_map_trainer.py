"""Training of an autoencoder of label maps: the losses of stage 1, and how well labels come back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prod9.label_maps import BRAIN, FIRST_LABEL, classes_of
from prod9.modalities import LABEL_MAP_CLASSES
from prod9.training.algorithms.autoencoder_trainer import AutoencoderTrainer, evaluating
from prod9.training.algorithms.base import Losses
from prod9.training.algorithms.tally import Tally, mean_of
from prod9.types import Volume


@dataclass(kw_only=True, eq=False)
class LabelMapTrainer(AutoencoderTrainer):
    """Losses and metrics of stage 1 on label maps; its attributes are those of AutoencoderTrainer."""

    def tally(self, x: Volume) -> Tally:
        """Count scores of reconstructions of whole coded label maps, in evaluation mode, without gradient.

        Means over the volumes: accuracy, the share of voxels whose class comes back; dice_brain, dice_lesion (all
        labels together) and dice, the mean over labels, each over the volumes that show any. Over all tokens, what
        AutoencoderTrainer counts.
        """
        with torch.no_grad(), evaluating(self.autoencoder):
            output = self.autoencoder(x)
            found, true = output.reconstruction.argmax(1).flatten(1), classes_of(x).flatten(1)
            pairs = [(found == one, true == one) for one in range(FIRST_LABEL, LABEL_MAP_CLASSES)]
            labels = torch.cat([_dice(*pair) for pair in pairs])
            shown = torch.cat([there.any(1) for _, there in pairs])
            lesion = found >= FIRST_LABEL, true >= FIRST_LABEL
            means = {
                "accuracy": mean_of((found == true).float()),
                "dice_brain": mean_of(_dice(found >= BRAIN, true >= BRAIN)),
                "dice_lesion": mean_of(_dice(*lesion), lesion[1].any(1)),
                "dice": mean_of(labels, shown),
            }
        return Tally(means, self.count_latents(output))

    def summarise(self, tally: Tally) -> Losses:
        """Return the scores of the set that ``tally`` is of; there is no combined metric of label maps."""
        metrics = tally.averages()
        return metrics | self.count_scores(tally)


def _dice(found: Tensor, true: Tensor) -> Tensor:
    """Return Dice ``[B]`` of bool ``[B N]``; 1 where both are empty."""
    both, either = (found & true).sum(1), found.sum(1) + true.sum(1)
    return torch.where(either > 0, 2 * both / either.clamp_min(1), 1.0)
