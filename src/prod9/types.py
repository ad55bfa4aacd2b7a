"""Axis legend, tensor aliases and the small results that networks pass to each other.

=======  ==================================================================
letter   meaning
=======  ==================================================================
B        batch
C        image channels
H W D    array axes 2, 3, 4 after reorientation to RAS; no anatomical meaning
h w d    the same axes on the latent grid
Z        latent channels (for FSQ: one per entry of ``levels``)
V        vocabulary, the product of ``levels``
E        width of a transformer
M        mask classes
N        source modalities
S        context length
=======  ==================================================================

Image intensities inside the models are in [0, 1]. A ``mask`` is True where a token is hidden; a segmentation is
``seg``.

Head, brain and foreground are one region: the voxels of a scan that are not background. It is found once, on the raw
voxels of the file (:func:`prod9.data.intensity.find_background`): the values that fill the outer faces are
background, 0 where none does and hardly anything lies below it. Preprocessing sets the background to exactly 0 and
the head above 0, so the head of a model's input is ``volume > 0``. Decoders leave the background near 0 instead, so the
head of their output is looked for above a threshold (:func:`prod9.measures.metrics.foreground`).

The aliases are checked at test time only (jaxtyping's import hook with beartype); equal letters bind within one
signature.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from prod9.host_copies import positions

Image = Float[Tensor, "C H W D"]
Volume = Float[Tensor, "B C H W D"]
VolumeOut = Float[Tensor, "B C2 H2 W2 D2"]
Latent = Float[Tensor, "B Z h w d"]
TokenGrid = Int64[Tensor, "B h w d"]
TokenMask = Bool[Tensor, "B h w d"]
Logits = Float[Tensor, "B V h w d"]
Segmentation = Float[Tensor, "B M H W D"]
Label = Int64[Tensor, " B"]
Time = Float[Tensor, " B"]


@dataclass(frozen=True)
class AutoencoderOutput:
    """What a forward pass of either autoencoder returns.

    Attributes:
        reconstruction: ``[B C H W D]``.
        latent: ``[B Z h w d]``, the decoder's input (FSQ: codes with straight-through gradient; KL: a sample in
            training, the mean in evaluation).
        z_mu: ``[B Z h w d]``, before quantisation or sampling.
        z_sigma: standard deviation of the same shape, None for FSQ.
        tokens: int64 ``[B h w d]``, None for KL.
    """

    reconstruction: Tensor
    latent: Tensor
    z_mu: Tensor
    z_sigma: Tensor | None = None
    tokens: Tensor | None = None


@dataclass(frozen=True)
class MaskedSample:
    """Tokens with some hidden: ``tokens`` and ``target`` int64 ``[B h w d]``, ``mask`` True where hidden.

    ``tokens`` holds 0 where ``mask`` is True, so that nothing of the target can leak through it. counts: hidden tokens
    of each sample, where the host knows them.
    """

    tokens: Tensor
    mask: Tensor
    target: Tensor
    counts: tuple[int, ...] | None = None

    @property
    def rows(self) -> Tensor:
        """Flattened indices of the hidden tokens, ``[R]``."""
        return positions(self.mask, None if self.counts is None else sum(self.counts))


@dataclass(frozen=True)
class FlowSample:
    """Latents mixed with noise: ``x_t`` and the regression target ``velocity``, both ``[B Z h w d]``."""

    x_t: Tensor
    velocity: Tensor
