"""A whole-tumour segmenter trained on the real volumes of one modality, to judge synthetic ones by.

What it finds in a synthetic volume, compared with what it finds in the real one or with the segmentation that
was asked for, says whether the lesion is there, where it belongs. It is no contribution to segmentation: it
learns in seconds, from whatever cohort is at hand.
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
)
from prod9.types import Volume

Progress = Callable[[int, int], None]
"""Called with (steps done, total)."""

Lesions = Bool[Tensor, "B R H W D"]
"""Masks of one region or of several, which may overlap."""

_FOLD = 2
_WIDTHS = (16, 32, 48)
_MULTIPLE = _FOLD * 2 ** (len(_WIDTHS) - 1)


class TumourUNet(nn.Module):
    """A U-Net over a volume and its mirror image, since lesions break the symmetry of a brain.

    Blocks of 2³ voxels are folded into channels first and unfolded last: a full-resolution layer would cost
    more than all others together, and a lesion's outline is read as well from eight voxels at once.
    num_modalities: channels of a volume, each standardised by itself. num_regions: masks to predict.
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
        """Let a fresh network call next to nothing a lesion; unlearning "half of the brain" takes long."""
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
    """A trained network, in evaluation mode. threshold: on the probability of a voxel, in (0, 1)."""

    network: TumourUNet
    threshold: float = 0.5

    @torch.no_grad()
    def probabilities(self, volumes: Volume, *, batch_size: int = 4) -> Float[Tensor, "B R H W D"]:
        """Return the probability of lesion of each voxel of ``volumes`` in [0, 1]."""
        return torch.cat([self.network(part).sigmoid() for part in volumes.split(batch_size)])

    def predict(self, volumes: Volume) -> Lesions:
        """Return where it finds a lesion."""
        return self.probabilities(volumes) > self.threshold


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
    """Train on ``volumes`` in [0, 1] and the lesions in them; deterministic in ``seed``.

    volumes: ``[N M H W D]``, usually of one modality. masks: ``[N R H W D]``, usually of one region. Random gamma,
    gain and offset leave it contrast and shape to go by: a synthetic volume of another brightness is not
    punished for that.
    """
    channels = {"num_modalities": volumes.shape[1], "num_regions": masks.shape[1]}
    network = build_seeded(lambda: TumourUNet(**channels), seed=seed).to(volumes.device)
    network.expect_few()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=steps, pct_start=0.1
    )
    for step in range(steps):
        index = torch.randint(len(volumes), (batch_size,), generator=generator)
        x = _each(
            lambda part: augment_sharpness(augment_intensity(part, generator), generator), volumes[index]
        )
        # No shift: the mirrored volume lies on the volume only while the midline is central.
        both = augment_geometry(torch.cat([x, masks[index].to(x.dtype)], dim=1), generator, shift=0)
        loss = _dice_loss(network(both[:, : x.shape[1]]), both[:, x.shape[1] :])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, steps)
    return Segmenter(network.eval().requires_grad_(False))


def dice(prediction: Lesions, truth: Lesions) -> Float[Tensor, " B"]:
    """Return the Dice overlap of each pair, in [0, 1]; NaN where ``truth`` is empty. Regions count together.

    Average with ``nanmean``: whether a lesion is found where there is none is another question, which
    ``lesions.LesionDetector`` answers.
    """
    both = (prediction & truth).flatten(1).sum(1)
    sizes = prediction.flatten(1).sum(1) + truth.flatten(1).sum(1)
    return torch.where(truth.flatten(1).any(1), 2 * both / sizes.clamp_min(1), torch.nan)


def _each(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply ``function`` to each channel as if it were a volume of its own."""
    return function(x.flatten(0, 1)[:, None]).reshape(x.shape)


def _dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy plus, where there is a lesion in the batch, one minus its soft Dice.

    Without a lesion the Dice term would ask for silence ever more loudly the closer the network is to it, and
    a network that has fallen silent learns nothing more.
    """
    p = logits.sigmoid()
    overlap = 2 * (p * truth).sum() / (p.sum() + truth.sum()).clamp_min(1.0)
    cells = F.binary_cross_entropy_with_logits(logits, truth)
    return cells + torch.where(truth.any(), 1.0 - overlap, 0.0)
