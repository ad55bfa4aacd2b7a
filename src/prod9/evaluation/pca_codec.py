"""A baseline for autoencoders: principal components of blocks, at the same rate.

A volume is cut into blocks as large as one latent position covers. Each block keeps as many coefficients as the latent
has channels, each quantised to as many levels as its channel. This linear transform uses no context beyond the block,
so a trained network should be better.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prod9.measures.metrics import foreground, psnr
from prod9.types import Volume

Blocks = Float[Tensor, "N P"]


@dataclass(frozen=True)
class PCACodec:
    """A fitted codec; see :func:`fit_pca_codec`.

    Attributes:
        block: side of a block in voxels.
        mean: of the blocks, ``[P]``.
        basis: orthonormal, ``[P K]``.
        edges: inner edges of each coefficient's bins; empty where coefficients stay floats.
        centroids: means of each coefficient's bins; empty where coefficients stay floats.
    """

    block: int
    mean: Tensor
    basis: Tensor
    edges: tuple[Tensor, ...] = ()
    centroids: tuple[Tensor, ...] = ()

    def reconstruct(self, volumes: Volume) -> Volume:
        """Encode and decode, clipped to [0, 1]. Sides need not be multiples of the block."""
        padded = _pad(volumes, self.block)
        coefficients = (_cut(padded, self.block) - self.mean) @ self.basis
        for k, (edge, centroid) in enumerate(zip(self.edges, self.centroids, strict=True)):
            coefficients[:, k] = centroid[torch.bucketize(coefficients[:, k].contiguous(), edge, right=True)]
        decoded = _join(coefficients @ self.basis.T + self.mean, padded.shape, self.block)
        h, w, d = volumes.shape[2:]
        return decoded[:, :, :h, :w, :d].clamp(0.0, 1.0)

    def psnr_brain(self, volumes: Volume) -> float:
        """Return the mean over volumes of PSNR inside the brain, in dB."""
        scores = [psnr(self.reconstruct(v), v, mask=foreground(v)) for v in volumes.split(1)]
        return torch.nanmean(torch.cat(scores)).item()


def fit_pca_codec(
    volumes: Volume, *, block: int, num_coefficients: int, levels: Sequence[int] | None = None
) -> PCACodec:
    """Fit a codec on those blocks of training volumes that touch the brain.

    Bins hold equal shares of the training blocks and decode to their mean. The background is left out because rate
    spent on it would make the network look better.

    Args:
        volumes: training volumes.
        block: the autoencoder's downsampling factor.
        num_coefficients: its latent channels.
        levels: of each channel; the highest go to the strongest coefficients. None keeps floats, for comparison with a
            KL autoencoder.
    """
    if num_coefficients > block**3:
        raise ValueError(
            f"num_coefficients: expected at most block³ = {block**3}, got {num_coefficients}; keep fewer"
        )
    if levels is not None and len(levels) != num_coefficients:
        raise ValueError(
            f"levels: expected one entry per coefficient ({num_coefficients}), got {len(levels)}; add or remove some"
        )
    blocks = _cut(_pad(volumes, block), block)
    blocks = blocks[(blocks > 0).any(1)]
    mean = blocks.mean(0)
    centred = blocks - mean
    covariance = (centred.T @ centred).double() / len(blocks)
    basis = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :num_coefficients].float()
    if levels is None:
        return PCACodec(block=block, mean=mean, basis=basis)
    coefficients = centred @ basis
    bins = [_quantile_bins(c, n) for c, n in zip(coefficients.T, sorted(levels, reverse=True), strict=True)]
    edges, centroids = zip(*bins, strict=True)
    return PCACodec(block=block, mean=mean, basis=basis, edges=edges, centroids=centroids)


def _quantile_bins(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count − 1`` inner edges of equally filled bins and the mean of each bin."""
    ordered = values.sort().values
    parts = torch.tensor_split(ordered, count)
    edges = torch.stack([part[0] for part in parts[1:]]) if count > 1 else values.new_empty(0)
    return edges, torch.stack([part.mean() for part in parts])


def _pad(volumes: Volume, block: int) -> Tensor:
    sides = [(-side) % block for side in reversed(volumes.shape[2:])]
    return torch.nn.functional.pad(volumes, [p for side in sides for p in (0, side)])


def _cut(volumes: Tensor, block: int) -> Blocks:
    for axis in (2, 3, 4):
        volumes = volumes.unfold(axis, block, block)
    return volumes.flatten(0, 4).flatten(1)


def _join(blocks: Blocks, shape: Sequence[int], block: int) -> Tensor:
    h, w, d = (side // block for side in shape[2:])
    grid = blocks.view(*shape[:2], h, w, d, block, block, block)
    return grid.permute(0, 1, 2, 5, 3, 6, 4, 7).reshape(*shape)
