"""What the data modules yield: the keys of a batch, and what each holds.

A loader adds the leading axis B of tensors; texts become lists of B strings.
"""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from torch import Tensor


class Named(TypedDict):
    """What every batch has: ids of the cases and names of the modalities, for messages and pictures."""

    case_id: Sequence[str]
    modality: Sequence[str]


class VolumeBatch(Named):
    """Stage 1. image: float32 ``[B 1 H W D]`` in [0, 1]. label: int64 ``[B]``, the class of the modality."""

    image: Tensor
    label: Tensor


class EncodedBatch(Named):
    """Volumes that an autoencoder has encoded.

    label: int64 ``[B]``. foreground: bool ``[B h w d]``, True where a position's patch holds any of the head. flipped:
    bool ``[B]``, whether the volume was mirrored.
    """

    label: Tensor
    foreground: Tensor
    flipped: Tensor


class Tokens(EncodedBatch):
    """Volumes as tokens. target_indices: int64 ``[B h w d]``."""

    target_indices: Tensor


class TokenBatch(Tokens):
    """Stage 2, tokens.

    seg: uint8 ``[B H W D]``, where the loss weighs regions. covariates: float32 ``[B K C]``, where a run has some.
    """

    seg: NotRequired[Tensor]
    covariates: NotRequired[Tensor]


class TranslationBatch(TokenBatch):
    """Tokens with one co-registered source. source_latent: ``[B Z h w d]``. source_label: int64 ``[B]``."""

    source_latent: Tensor
    source_label: Tensor


class InContextBatch(TokenBatch):
    """Tokens with N sources. source_latents: ``[B N Z h w d]``. source_labels: ``[B N]``. co_registered: ``[B N]``."""

    source_labels: Tensor
    source_latents: Tensor
    co_registered: Tensor


class LatentBatch(EncodedBatch):
    """Stage 2, latents.

    latent: float32 ``[B Z h w d]``. spacing: float32 ``[B 3]`` in mm. covariates: as for tokens.
    """

    latent: Tensor
    spacing: Tensor
    covariates: NotRequired[Tensor]


class ControlTokenBatch(Tokens):
    """Stage 3, tokens. seg: uint8 ``[B H W D]``. has_seg: bool ``[B]``, whether the case has a segmentation."""

    seg: Tensor
    has_seg: Tensor


class ControlLatentBatch(LatentBatch):
    """Stage 3, latents; ``seg`` and ``has_seg`` as for tokens.

    images: ``[B N H W D]``, where sources steer. source_latent: their mean ``[B Z h w d]``, where a flow starts there.
    """

    seg: Tensor
    has_seg: Tensor
    images: NotRequired[Tensor]
    source_latent: NotRequired[Tensor]


class RefinerBatch(Named):
    """Translations of scans.

    decoded, target: ``[B 1 H W D]``. sources: ``[B K H W D]``, channel k of class k. present: bool ``[B K]``. region:
    bool ``[B 1 H W D]``, where the segmentation has any class. label: int64 ``[B]``, the class of the target.
    head_voxels: int64 ``[B]``, how many voxels show any source.
    """

    decoded: Tensor
    target: Tensor
    sources: Tensor
    present: Tensor
    region: Tensor
    label: Tensor
    head_voxels: NotRequired[Tensor]


class DetailBatch(RefinerBatch):
    """Soft volumes of scans, as ``decoded``. clean: the target without noise."""

    clean: Tensor
