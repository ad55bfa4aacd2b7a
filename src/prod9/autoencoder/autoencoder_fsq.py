"""Stage 1, MaskGiT: an autoencoder whose latent is a grid of discrete tokens.

Finite scalar quantisation (Mentzer et al., arXiv 2309.15505) rounds each latent channel to a few levels;
the product of the levels is the vocabulary, and there is no codebook to learn. The network is MONAI's
AutoencoderKlMaisi with its parameter names.
"""

import warnings
from collections.abc import Sequence
from math import prod
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn

from prod9.autoencoder.backbone import BackboneOptions, MaisiBackbone
from prod9.autoencoder.checks import require_below
from prod9.autoencoder.native.fsq_function import FSQConstants, Radix, quantize
from prod9.label_maps import TOP, classes_of, coded
from prod9.types import AutoencoderOutput, Latent, TokenGrid, Volume, VolumeOut

EPSILON = 1e-3
MAX_LEVELS = 1000  # beyond, the margin ε of the half-range is wider than half a level


class FiniteScalarQuantizer(nn.Module):
    """Rounds channel i of a latent to ``levels[i]`` values; computes in float32, and indices are exact.

    For a channel with L levels: half-range h = (L−1)(1+ε)/2, offset o = ½ for even L, else 0,
    bounded = tanh(z + artanh(o/h))·h − o, level = round(bounded), code = level/⌊L/2⌋. Codes of even L lie
    in [−1, 1−2/L]. ``symmetric`` uses ⌊(L−1)(tanh z + 1)/2 + ½⌋ instead, with codes over all of [−1, 1].
    An index packs the digits (levels counted from 0) in mixed radix, first channel fastest.

    Attributes:
        levels: number of values of each channel, int64 ``[Z]`` on the device of the module.
        num_levels: how many entries ``levels`` has, the number of latent channels Z.
        vocab_size: number of tokens, the product of ``levels``.

    Raises ValueError for levels outside 2..1000 and vocabularies beyond int64. Warns for levels below 5, which
    lose quality.

    Example:
        >>> import torch
        >>> from prod9.autoencoder.autoencoder_fsq import FiniteScalarQuantizer
        >>> quantizer = FiniteScalarQuantizer([8, 5])
        >>> quantizer.num_levels, quantizer.vocab_size
        (2, 40)
        >>> codes, tokens = quantizer(torch.zeros(1, 2, 1, 1, 1))
        >>> tokens.item(), torch.equal(quantizer.indices_to_codes(tokens), codes)
        (20, True)
    """

    levels: Tensor
    basis: Tensor
    _shift: Tensor
    _scale: Tensor
    _offset: Tensor
    _centre: Tensor
    _width: Tensor

    def __init__(self, levels: Sequence[int], *, symmetric: bool = False) -> None:
        super().__init__()
        _check_levels(levels)
        self.symmetric = symmetric
        self.num_levels = len(levels)
        # On the host too: reading the buffer would wait for the device.
        self._sizes = tuple(levels)
        self.vocab_size = prod(levels)
        strides = tuple(prod(levels[:i]) for i in range(len(levels)))
        self.register_buffer("levels", torch.tensor(self._sizes))
        self.register_buffer("basis", torch.tensor(strides))
        for name, value in _constants(self._sizes, symmetric)._asdict().items():
            self.register_buffer(f"_{name}", value, persistent=False)
        # The digit of a code of 0: half-integer for even symmetric levels.
        zeros = tuple((n - 1) / 2 if symmetric else float(n // 2) for n in levels)
        self._radix = Radix(strides, zeros, self.vocab_size)

    def forward(self, z: Latent) -> tuple[Latent, TokenGrid]:
        """Return codes with straight-through gradient, in the dtype of ``z``, and their indices."""
        codes, tokens = self._quantize(z)
        return codes.to(z.dtype), tokens

    def quantize(self, z: Latent) -> Latent:
        """Return the code nearest to each bounded value, with the gradient of the bounded value."""
        return self._quantize(z)[0].to(z.dtype)

    def codes_to_indices(self, codes: Latent) -> TokenGrid:
        """Return the indices of ``codes``; exact for float16 codes too, and for bfloat16 up to 256 levels."""
        level = codes.detach().flatten(2).float() * self._width
        level = level.add_(self._centre).round_().sub_(self._centre)
        return self._radix.pack(level).long().view(len(codes), *codes.shape[2:])

    def indices_to_codes(self, indices: TokenGrid) -> Latent:
        """Return the float32 codes ``[B Z h w d]`` of ``indices``: the exact inverse of codes_to_indices.

        Raises ValueError for numbers that are no tokens, on CUDA an error of the device.
        """
        if not torch.compiler.is_compiling():
            require_below(indices, self.vocab_size, "tokens")
        digits = self.indices_to_digits(indices.flatten(1)).movedim(-1, 1).to(self._width.dtype)
        zero = self._centre if self.symmetric else self._width
        codes = ((digits - zero) / self._width).contiguous()
        return codes.view(len(indices), self.num_levels, *indices.shape[1:])

    def indices_to_digits(self, indices: Int64[Tensor, "*grid"]) -> Int64[Tensor, "*grid Z"]:
        """Unpack indices into one digit per channel, 0 ≤ digit < level, on a new last axis."""
        return (indices.unsqueeze(-1) // self.basis) % self.levels

    def digits_to_indices(self, digits: Int64[Tensor, "*grid Z"]) -> Int64[Tensor, "*grid"]:
        """Pack digits into indices; the inverse of indices_to_digits."""
        return (digits * self.basis).sum(-1)

    def _load_from_state_dict(  # pyrefly: ignore[bad-override]
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        """Refuse the state of other levels: the same number of them would load and mean something else."""
        stored = state_dict.get(f"{prefix}levels")
        if stored is not None and not stored.is_meta and tuple(stored.tolist()) != self._sizes:
            *_, errors = args
            errors.append(f"levels: expected {list(self._sizes)}, got {stored.tolist()}; build with those")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if z.shape[1] != self.num_levels:
            raise ValueError(
                f"z: expected {self.num_levels} channels, one per level, got {z.shape[1]}; use the encoder's latent"
            )
        with torch.autocast(z.device.type, enabled=False):
            z = z if z.dtype == torch.float64 else z.float()
            constants = FSQConstants(self._shift, self._scale, self._offset, self._centre, self._width)
            return quantize(z, self.symmetric, self._radix, constants)


def _check_levels(levels: Sequence[int]) -> None:
    if not levels or min(levels) < 2 or max(levels) > MAX_LEVELS:
        raise ValueError(
            f"levels: expected integers from 2 to {MAX_LEVELS}, got {list(levels)}; use for example [8, 8, 8, 6, 5]"
        )
    if prod(levels) >= 2**63:
        raise ValueError(
            f"levels: expected a product within int64, got {prod(levels)}; use fewer or lower levels"
        )
    if min(levels) < 5:
        warnings.warn(
            f"levels below 5 lose quality (FSQ paper, section 4), got {list(levels)}.", stacklevel=3
        )


def _constants(levels: Sequence[int], symmetric: bool) -> FSQConstants:
    count = torch.tensor(levels, dtype=torch.float64)
    half = (count - 1) / 2
    if symmetric:
        values = FSQConstants(torch.zeros_like(half), half, half, half, half)
    else:
        reach = half * (1 + EPSILON)
        shift = torch.where(count % 2 == 0, 0.5, 0.0)
        values = FSQConstants(torch.atanh(shift / reach), reach, -shift, torch.zeros_like(half), count // 2)
    return FSQConstants(*(v.float().view(1, -1, 1) for v in values))


class AutoencoderFSQ(MaisiBackbone):
    """Encoder, finite scalar quantiser and decoder over whole volumes or crops.

    With ``label_maps``, volumes are label maps, coded as numbers (:mod:`prod9.label_maps`): channels inside the network
    are classes, the reconstruction of a forward pass holds their logits ``[B C H W D]``, and decoding gives the coded
    map of the likeliest class ``[B 1 H W D]``.

    For the other keywords, and the sides that a volume may have, see
    :class:`~prod9.autoencoder.backbone.MaisiBackbone`.

    Example:
        >>> import torch
        >>> from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
        >>> network = AutoencoderFSQ(levels=[8, 5], num_channels=[8, 8], num_res_blocks=[1, 1], norm_num_groups=4)
        >>> output = network.eval()(torch.rand(1, 1, 16, 16, 16))
        >>> tuple(output.tokens.shape), network.vocab_size
        ((1, 8, 8, 8), 40)
        >>> tuple(network.decode_tokens(output.tokens).shape)
        (1, 1, 16, 16, 16)
    """

    def __init__(
        self,
        *,
        levels: Sequence[int],
        symmetric: bool = False,
        label_maps: bool = False,
        **backbone: Unpack[BackboneOptions],
    ) -> None:
        super().__init__(latent_channels=len(levels), **backbone)
        # FSQ has no variance; parameters without a gradient would hang distributed training.
        del self.quant_conv_log_sigma
        self.quantizer = FiniteScalarQuantizer(levels, symmetric=symmetric)
        self.levels = tuple(levels)
        self.vocab_size = self.quantizer.vocab_size
        self.label_maps = label_maps

    def encode(self, x: Volume) -> Latent:  # pyrefly: ignore[bad-override]
        """Return z before quantisation, in float32, as are the last two convolutions."""
        if self.label_maps:
            x = F.one_hot(classes_of(x[:, 0]), TOP + 1).movedim(-1, 1).to(x.dtype)
        (z,) = self.encode_through(x, self.quant_conv_mu)
        return z.float()

    def decode(self, z: Latent) -> VolumeOut:
        """Return the volume of a latent, in the dtype of ``z``; of label maps, the coded map of the likeliest class."""
        return self.likeliest(self.decode_values(z))

    def decode_values(self, z: Latent) -> VolumeOut:
        """Return the output of the decoder: intensities, or of label maps logits ``[B C H W D]``."""
        return super().decode(z)

    def likeliest(self, values: Volume) -> VolumeOut:
        """Return what :meth:`decode` makes of the output of the decoder: of label maps, one code per voxel."""
        return coded(values.argmax(1, keepdim=True)).to(values.dtype) if self.label_maps else values

    def quantize(self, z: Latent) -> Latent:
        """Return codes in [−1, 1] with straight-through gradient."""
        return self.quantizer.quantize(z)

    def embed(self, codes: Latent) -> TokenGrid:
        """Return the token of each code vector; ValueError for NaN and infinity."""
        _refuse_non_finite(codes)
        return self.quantizer.codes_to_indices(codes)

    def indices_to_codes(self, tokens: TokenGrid) -> Latent:
        """Return the codes of ``tokens``; the exact inverse of ``embed``."""
        return self.quantizer.indices_to_codes(tokens)

    def decode_tokens(self, tokens: TokenGrid) -> VolumeOut:
        """Return the volume of ``tokens``."""
        return self.decode(self.indices_to_codes(tokens))

    def forward(self, x: Volume) -> AutoencoderOutput:  # pyrefly: ignore[bad-override]
        """Encode, quantise, decode; deterministic in training and evaluation."""
        z = self.encode(x)
        if not self.training:
            # In training a bad batch gives a bad loss, and the run skips the step; a device assert would end the run.
            _refuse_non_finite(z)
        codes, tokens = self.quantizer(z)
        return AutoencoderOutput(self.decode_values(codes), codes, z, None, tokens)

    def reconstruct(self, x: Volume) -> VolumeOut:
        """Return the volume after a pass through the tokens."""
        return self.decode(self.quantize(self.encode(x)))

    def encode_stage_2_inputs(self, x: Volume) -> Latent:
        """Return the codes of ``x``."""
        return self.quantize(self.encode(x))

    def sampling(self, z_mu: Tensor, z_sigma: Tensor) -> Tensor:
        """Raise TypeError: a quantised latent ``[B Z h w d]`` has no variance to sample from."""
        raise TypeError(
            "sampling: expected a latent with a variance, got a quantised one; use quantize(encode(x))"
        )

    @torch.no_grad()
    def calibrate(self, x: Volume) -> None:
        """Rescale ``quant_conv_mu`` in place so that z of ``x`` has mean 0 and std 1 in each channel.

        Outside of the quantiser's range tanh saturates and nothing is learnt. Call it once, before training.
        """
        self._standardise(self.encode(x))


def _refuse_non_finite(values: Tensor) -> None:
    if values.device.type == "cuda" or torch.compiler.is_compiling():
        # A check on the host would wait for the device at every step, and would interrupt compiled code.
        torch._assert_async(torch.isfinite(values).all(), "the latent holds NaN or infinity")
    elif not torch.isfinite(values).all():
        raise ValueError(
            "latent: expected finite values, got NaN or infinity; check the input or the training"
        )
