"""What both autoencoder families share: MONAI's MAISI encoder and decoder, faster, with voxels folded first."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prod9.autoencoder.native.full_precision import apply_in_full
from prod9.autoencoder.native.layout import inference_layout
from prod9.autoencoder.native.ops import bfloat16_pays, use_native_ops
from prod9.autoencoder.native.voxel_folding import fold_voxels, unfold_voxels
from prod9.types import Latent, Volume, VolumeOut

Runner = Callable[[Iterable[nn.Module], Tensor], Tensor]
"""Applies blocks to an activation ``[B C H W D]``, one after another."""


class MaisiBackbone(AutoencoderKlMaisi):
    """MONAI's AutoencoderKlMaisi, its parameter names kept, behind the interface of this package.

    Sides must be multiples of ``downsampling_factor`` (``check_sides``). ``space_to_depth`` folds n³ voxels
    into channels before the network and unfolds them after it, without parameters. A family adds what
    happens between ``encode_through`` and ``decode``. The keywords are those of the ``model`` section of a
    stage-1 configuration and mean what they say there.
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
        in_channels: int,
        out_channels: int,
        attention_levels: Sequence[bool] | None,
        space_to_depth: int,
        use_checkpointing: bool,
        use_convtranspose: bool,
        norm_float16: bool,
        num_splits: int,
        dim_split: int,
        save_mem: bool,
        native_ops: bool,
    ) -> None:
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

    def check_sides(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless the last three entries of ``shape`` are multiples of the factor."""
        sides, factor = tuple(shape[-3:]), self.downsampling_factor
        if any(side % factor or side < factor for side in sides):
            fit = tuple(max(factor, -(-side // factor) * factor) for side in sides)
            raise ValueError(f"sides must be multiples of {factor}, got {sides}; pad to {fit}.")

    def encode_through(self, x: Volume, *heads: nn.Module) -> list[Tensor]:
        """Return what each of ``heads`` makes of the encoder's output ``[B Z h w d]``.

        The last convolution of the encoder and the heads run in the dtype of the weights: never under autocast, and
        float32 in full.
        """
        self.check_sides(x.shape)
        *body, last = self.encoder.blocks
        dtype = self.last_layer.dtype
        with self._precision(x.device.type):
            h = self._run(body, fold_voxels(x.to(dtype), self.space_to_depth))
        return apply_in_full(last, heads, h.to(dtype))

    def decode(self, z: Latent) -> VolumeOut:
        """Return the volume of a latent, in the dtype of ``z`` whatever autocast does inside."""
        with self._precision(z.device.type):
            h = self._run(self.decoder.blocks, self.post_quant_conv(z.to(self.last_layer.dtype)))
        return unfold_voxels(h, self.space_to_depth).to(z.dtype)

    def _standardise(self, z: Latent) -> None:
        """Rescale ``quant_conv_mu`` in place so that ``z``, which it gave, has mean 0 and std 1 in each channel."""
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
        """Let ``runner`` apply the blocks of encoder and decoder inside the context."""
        self._runner = runner
        try:
            yield
        finally:
            self._runner = None

    def _precision(self, device_type: str) -> AbstractContextManager[object]:
        """Leave autocast as the caller set it, or turn it off where it would cost time as well as accuracy."""
        if self.native_ops and not bfloat16_pays(device_type):
            return torch.autocast(device_type, enabled=False)
        return nullcontext()

    def _run(self, blocks: Iterable[nn.Module], h: Tensor) -> Tensor:
        if self.norm_float16 and h.device.type == "cpu":
            raise ValueError(
                "norm_float16 does not run on CPU; set norm_float16 to false, the weights are the same."
            )
        if self._runner is not None:
            return self._runner(blocks, h)
        for block in blocks:
            h = inference_layout(h) if self.native_ops else h
            h = checkpoint(block, h, use_reentrant=False) if self.use_checkpoint else block(h)
            if self.save_mem and h.is_cuda:
                torch.cuda.empty_cache()
        return h
