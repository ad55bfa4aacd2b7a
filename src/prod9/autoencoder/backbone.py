"""The base of both autoencoders: MONAI's MAISI encoder and decoder, faster, and with voxels folded first."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NotRequired, TypedDict

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from torch import Tensor, nn

from prod9.autoencoder.checks import require_choice, require_multiples
from prod9.autoencoder.native.full_precision import apply_in_full
from prod9.autoencoder.native.layout import inference_layout
from prod9.autoencoder.native.ops import bfloat16_pays, use_native_ops
from prod9.autoencoder.native.recompute import call
from prod9.autoencoder.native.voxel_folding import FRONT_ENDS
from prod9.types import Latent, Volume, VolumeOut

Runner = Callable[[Iterable[nn.Module], Tensor], Tensor]
"""Applies blocks to an activation ``[B C H W D]``, one after another."""


class BackboneOptions(TypedDict):
    """Keywords that a family hands on to `MaisiBackbone`; the ``model`` section of stage 1 describes them."""

    num_channels: Sequence[int]
    num_res_blocks: Sequence[int]
    norm_num_groups: int
    in_channels: NotRequired[int]
    out_channels: NotRequired[int]
    attention_levels: NotRequired[Sequence[bool] | None]
    space_to_depth: NotRequired[int]
    front_end: NotRequired[str]
    use_checkpointing: NotRequired[bool]
    use_convtranspose: NotRequired[bool]
    norm_float16: NotRequired[bool]
    num_splits: NotRequired[int]
    dim_split: NotRequired[int]
    save_mem: NotRequired[bool]
    native_ops: NotRequired[bool]


class MaisiBackbone(AutoencoderKlMaisi):
    """MONAI's AutoencoderKlMaisi with its parameter names, behind the interface of this package.

    Sides of volumes are multiples of ``downsampling_factor``. A family adds what happens between
    ``encode_through`` and ``decode``.

    Args:
        latent_channels: channels Z of the latent.
        num_channels: width at each resolution, from fine to coarse.
        num_res_blocks: number of residual blocks at each resolution.
        norm_num_groups: groups of the normalisation; divides every width.
        in_channels: channels of the volumes.
        out_channels: channels of the reconstructions.
        attention_levels: whether each resolution has self-attention; None for none.
        space_to_depth: n folds n³ voxels into channels before the network and unfolds them after it.
        front_end: ``fold`` takes the voxels as channels, ``haar`` their Haar bands; then n is a power of 2 from 2 on.
        use_checkpointing: recompute activations in the backward pass.
        use_convtranspose: enlarge by transposed convolutions instead of interpolation.
        norm_float16: return normalised values in float16; not on CPUs.
        num_splits: slabs in which each convolution runs, to save memory.
        dim_split: axis of the slabs, 0 to 2.
        save_mem: free the memory that CUDA caches after every block.
        native_ops: use the faster layers of this package.
    """

    # MONAI's modules carry no types.
    encoder: Any
    decoder: Any
    quant_conv_mu: Any
    quant_conv_log_sigma: Any
    post_quant_conv: Any

    def __init__(
        self,
        *,
        latent_channels: int,
        num_channels: Sequence[int],
        num_res_blocks: Sequence[int],
        norm_num_groups: int,
        in_channels: int = 1,
        out_channels: int = 1,
        attention_levels: Sequence[bool] | None = None,
        space_to_depth: int = 1,
        front_end: str = "fold",
        use_checkpointing: bool = False,
        use_convtranspose: bool = False,
        norm_float16: bool = False,
        num_splits: int = 1,
        dim_split: int = 0,
        save_mem: bool = False,
        native_ops: bool = True,
    ) -> None:
        require_choice("front_end", front_end, FRONT_ENDS)
        if front_end == "haar" and (space_to_depth < 2 or space_to_depth.bit_count() > 1):
            raise ValueError(
                f"space_to_depth: expected a power of 2 from 2 on for front_end haar, got {space_to_depth}; use 2"
            )
        super().__init__(
            spatial_dims=3,
            in_channels=in_channels * space_to_depth**3,
            out_channels=out_channels * space_to_depth**3,
            num_res_blocks=num_res_blocks,
            num_channels=num_channels,
            attention_levels=attention_levels or (False,) * len(num_channels),
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            use_checkpointing=use_checkpointing,
            use_convtranspose=use_convtranspose,
            num_splits=num_splits,
            dim_split=dim_split,
            norm_float16=norm_float16,
            save_mem=save_mem,
        )
        self.space_to_depth = space_to_depth
        self._front = FRONT_ENDS[front_end]
        self.downsampling_factor = space_to_depth * 2 ** (len(num_channels) - 1)
        self.norm_float16 = norm_float16
        self.save_mem = save_mem
        self.native_ops = native_ops
        self._runner: Runner | None = None
        if native_ops:
            use_native_ops(self)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's last convolution, for the adaptive adversarial weight."""
        return self.decoder.blocks[-1].conv.conv.weight

    def encode_through(self, x: Volume, *heads: nn.Module) -> list[Tensor]:
        """Return the output of each of ``heads`` on the encoder's output, ``[B Z h w d]`` each.

        The last convolution of the encoder and the heads compute in the dtype of the weights: without autocast, and
        without TF32.
        """
        require_multiples(x.shape[2:], self.downsampling_factor, "sides of volumes")
        *body, last = self.encoder.blocks
        dtype = self.last_layer.dtype
        with self._precision(x.device.type):
            h = self._run(body, self._front.fold(x.to(dtype), self.space_to_depth))
        return apply_in_full(last, heads, h.to(dtype))

    def decode(self, z: Latent) -> VolumeOut:
        """Return the volume of a latent, in the dtype of ``z``, under autocast too."""
        with self._precision(z.device.type):
            h = self._run(self.decoder.blocks, self.post_quant_conv(z.to(self.last_layer.dtype)))
        # In the dtype of z, since autocast may leave half precision, whose sums of bands would be rounded again.
        return self._front.unfold(h.to(z.dtype), self.space_to_depth)

    def _standardise(self, z: Latent) -> None:
        """Rescale ``quant_conv_mu`` in place so that its output ``z`` gets mean 0 and std 1 in each channel."""
        mean = z.mean((0, 2, 3, 4))
        std = z.std((0, 2, 3, 4), correction=0).clamp_min(1e-6)
        conv = self.quant_conv_mu.conv
        conv.bias.sub_(mean).div_(std)
        conv.weight.div_(std.view(-1, 1, 1, 1, 1))

    def decode_stage_2_outputs(self, z: Latent) -> VolumeOut:
        """Return the volume of a latent; MONAI's name for ``decode``."""
        return self.decode(z)

    @contextmanager
    def run_by(self, runner: Runner) -> Iterator[None]:
        """Have ``runner`` apply the blocks of encoder and decoder inside the context."""
        self._runner = runner
        try:
            yield
        finally:
            self._runner = None

    def _precision(self, device_type: str) -> AbstractContextManager[object]:
        """Leave autocast as the caller set it, but turn it off on devices where it is slower."""
        if self.native_ops and not bfloat16_pays(device_type):
            return torch.autocast(device_type, enabled=False)
        return nullcontext()

    def _run(self, blocks: Iterable[nn.Module], h: Tensor) -> Tensor:
        if self.norm_float16 and h.device.type == "cpu":
            raise ValueError(
                "norm_float16: expected false on CPUs, got true; set it to false, the weights still fit"
            )
        if self._runner is not None:
            return self._runner(blocks, h)
        for block in blocks:
            h = inference_layout(h) if self.native_ops else h
            h = call(block, h, recompute=self.use_checkpoint)
            if self.save_mem and h.is_cuda:
                torch.cuda.empty_cache()
        return h
