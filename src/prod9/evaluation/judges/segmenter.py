"""A segmenter of whole tumours that is trained on real volumes of one modality and applied to synthetic ones.

Comparing what it finds in a synthetic volume with what it finds in the real one, or with the segmentation that was
asked for, shows whether the lesion is in its place. It is not meant to compete with segmentation methods: it learns in
seconds from any cohort.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn

from prod9.autoencoder.native.voxel_folding import fold_voxels, unfold_voxels
from prod9.autoencoder.padding import crop, pad_to_multiple
from prod9.evaluation.judges.networks import (
    augment_geometry,
    augment_intensity,
    augment_sharpness,
    build_seeded,
    standardise,
    train_judge,
)
from prod9.system.progress import Progress
from prod9.types import Volume

Lesions = Bool[Tensor, "B R H W D"]
"""Masks of one region or of several, which may overlap."""

_FOLD = 2
_WIDTHS = (16, 32, 48)
_MULTIPLE = _FOLD * 2 ** (len(_WIDTHS) - 1)


class TumourUNet(nn.Module):
    """A U-Net over a volume and its mirror image, since lesions break the symmetry of a brain.

    Blocks of 2³ voxels are folded into channels at the input and unfolded at the output: a layer at full resolution
    would cost more than all others together without a better outline.

    Args:
        num_modalities: channels of a volume, each standardised separately.
        num_regions: masks to predict.
    """

    def __init__(self, *, num_modalities: int = 1, num_regions: int = 1) -> None:
        super().__init__()
        depth = len(_WIDTHS)
        self.network = DynUNet(
            spatial_dims=3,
            in_channels=2 * num_modalities * _FOLD**3,
            out_channels=num_regions * _FOLD**3,
            filters=_WIDTHS,
            kernel_size=(3,) * depth,
            strides=(1,) + (2,) * (depth - 1),
            upsample_kernel_size=(2,) * (depth - 1),
            act_name="relu",
            norm_name=("instance", {"affine": True}),
        )

    def expect_few(self) -> None:
        """Make a new network predict almost no lesion: unlearning that half of the brain is one would take long."""
        bias = cast(Any, self.network.output_block).conv.conv.bias
        nn.init.constant_(bias, -2.0)

    def forward(self, x: Volume) -> Float[Tensor, "B R H W D"]:
        """Return lesion logits of each voxel and region; ``x`` is in [0, 1], of any sides."""
        sides = x.shape[2:]
        x = _each(standardise, x)
        x = pad_to_multiple(torch.cat([x, x.flip(2)], dim=1), _MULTIPLE)
        folded = fold_voxels(x, _FOLD).contiguous(memory_format=torch.channels_last_3d)
        return crop(unfold_voxels(self.network(folded), _FOLD), sides)


@dataclass(frozen=True)
class Segmenter:
    """A trained network in evaluation mode.

    Attributes:
        network: trained on one region or several.
        threshold: on the probability of a voxel.
        region: number of the only one that is predicted; None for all.
    """

    network: TumourUNet
    threshold: float = 0.5
    region: int | None = None

    @torch.no_grad()
    def probabilities(self, volumes: Volume, *, batch_size: int = 4) -> Float[Tensor, "B R H W D"]:
        """Return the probability of lesion of each voxel of ``volumes`` in [0, 1]."""
        return torch.cat([self.network(part).sigmoid() for part in volumes.split(batch_size)])

    def predict(self, volumes: Volume) -> Lesions:
        """Return the masks of the lesions that it finds."""
        found = self.probabilities(volumes) > self.threshold
        return found if self.region is None else found[:, self.region : self.region + 1]


def train_segmenter(
    volumes: Volume,
    masks: Lesions,
    *,
    steps: int,
    seed: int,
    batch_size: int = 2,
    learning_rate: float = 1.2e-2,
    progress: Progress | None = None,
) -> Segmenter:
    """Train on volumes and the lesions in them.

    Because of random gamma, gain and offset it uses contrast and shape only: a synthetic volume of another brightness
    is not scored lower for that.

    Args:
        volumes: ``[N M H W D]`` in [0, 1], usually of one modality.
        masks: ``[N R H W D]``, usually of one region.
        steps: training steps.
        seed: determines the result.
        batch_size: volumes per step.
        learning_rate: highest learning rate.
        progress: called after each step.
    """
    channels = {"num_modalities": volumes.shape[1], "num_regions": masks.shape[1]}
    network = build_seeded(lambda: TumourUNet(**channels), seed=seed).to(volumes.device)
    network.expect_few()
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        index = torch.randint(len(volumes), (batch_size,), generator=generator)
        x = _each(
            lambda part: augment_sharpness(augment_intensity(part, generator), generator), volumes[index]
        )
        # No shift: the mirror image fits the volume only if the midline is in the centre.
        both = augment_geometry(torch.cat([x, masks[index].to(x.dtype)], dim=1), generator, shift=0)
        return _dice_loss(network(both[:, : x.shape[1]]), both[:, x.shape[1] :])

    trained = train_judge(
        network, loss, steps=steps, learning_rate=learning_rate, warmup=0.1, progress=progress
    )
    return Segmenter(trained)


def dice(prediction: Lesions, truth: Lesions) -> Float[Tensor, " B"]:
    """Return the Dice overlap of each pair over all its regions, in [0, 1]; NaN where ``truth`` is empty.

    Average it with ``nanmean``. Whether a lesion is found where there is none is another question; see
    :class:`~prod9.evaluation.judges.lesions.LesionDetector`.
    """
    both = (prediction & truth).flatten(1).sum(1)
    sizes = prediction.flatten(1).sum(1) + truth.flatten(1).sum(1)
    return torch.where(truth.flatten(1).any(1), 2 * both / sizes.clamp_min(1), torch.nan)


def _each(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply ``function`` to each channel as a volume of its own."""
    return function(x.flatten(0, 1)[:, None]).reshape(x.shape)


def _dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the cross-entropy plus, if the batch holds a lesion, one minus its soft Dice.

    Without a lesion, the gradient of the Dice term would grow the less the network predicts, until it predicts nothing
    and learns nothing more.
    """
    p = logits.sigmoid()
    overlap = 2 * (p * truth).sum() / (p.sum() + truth.sum()).clamp_min(1.0)
    cells = F.binary_cross_entropy_with_logits(logits, truth)
    return cells + torch.where(truth.any(), 1.0 - overlap, 0.0)
