"""DiffusionModelRF: the 3D U-Net of MAISI that predicts velocities in a latent.

It subclasses MONAI's DiffusionModelUNetMaisi and keeps its parameter names, so NVIDIA's released weights load
strictly, and its forward, so that scripts written for that network go on working.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.native_unet import use_native_unet
from prod9.types import Latent, Time

SPACING_SCALE = 100.0
REGION_SCALE = 100.0
"""MAISI feeds millimetres and one-hot regions times a hundred."""


@dataclass(frozen=True)
class ControlResiduals:
    """What a control network adds to the skip connections (``down``, first to last) and the middle (``mid``)."""

    down: tuple[Tensor, ...]
    mid: Tensor

    def scaled(self, strength: float) -> "ControlResiduals":
        """Return all residuals times ``strength``."""
        if strength == 1:
            return self
        return ControlResiduals(tuple(residual * strength for residual in self.down), self.mid * strength)


class DiffusionModelRF(DiffusionModelUNetMaisi):
    """Time-, class- and spacing-conditioned U-Net over latents ``[B Z h w d]``.

    Sides must be multiples of ``downsampling_factor`` (``check_sides``). num_class_embeds: class labels
    including 0, "unknown"; None for a network without labels. num_head_channels: channels of an attention
    head a resolution, used where ``attention_levels`` is true and, the last one, in the middle.
    use_checkpointing: recompute activations in the backward pass. The other keywords are MONAI's.
    """

    conv_in: Any
    down_blocks: Any
    up_blocks: Any
    middle_block: Any
    out: Any

    def __init__(
        self,
        *,
        latent_channels: int,
        num_channels: Sequence[int],
        attention_levels: Sequence[bool],
        num_head_channels: Sequence[int],
        num_res_blocks: int,
        norm_num_groups: int = 32,
        resblock_updown: bool = True,
        include_fc: bool = True,
        num_class_embeds: int | None = None,
        include_spacing_input: bool = True,
        include_top_region_index_input: bool = False,
        include_bottom_region_index_input: bool = False,
        use_checkpointing: bool = False,
        native_ops: bool = True,
    ) -> None:
        super().__init__(
            spatial_dims=3,
            in_channels=latent_channels,
            out_channels=latent_channels,
            num_res_blocks=num_res_blocks,
            num_channels=num_channels,
            attention_levels=attention_levels,
            norm_num_groups=norm_num_groups,
            resblock_updown=resblock_updown,
            num_head_channels=num_head_channels,
            num_class_embeds=num_class_embeds,
            include_fc=include_fc,
            include_top_region_index_input=include_top_region_index_input,
            include_bottom_region_index_input=include_bottom_region_index_input,
            include_spacing_input=include_spacing_input,
        )
        self.latent_channels = latent_channels
        self.downsampling_factor = 2 ** (len(num_channels) - 1)
        self.use_checkpointing = use_checkpointing
        if native_ops:
            use_native_unet(self)

    def check_sides(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless the last three entries of ``shape`` are multiples of the factor."""
        sides, factor = tuple(shape[-3:]), self.downsampling_factor
        if any(side % factor or side < factor for side in sides):
            fit = tuple(max(factor, -(-side // factor) * factor) for side in sides)
            raise ValueError(f"latent sides must be multiples of {factor}, got {sides}; use {fit}.")

    def predict(
        self,
        x_t: Latent,
        timesteps: Time,
        condition: FlowCondition,
        residuals: ControlResiduals | None = None,
    ) -> Latent:
        """Return the velocity at ``x_t``; ``timesteps`` are the scheduler's ``network_time``."""
        self.check_sides(x_t.shape)
        return self(
            x_t,
            timesteps,
            class_labels=self._labels(condition),
            down_block_additional_residuals=None if residuals is None else residuals.down,
            mid_block_additional_residual=None if residuals is None else residuals.mid,
            top_region_index_tensor=self._given(condition, "top_region", REGION_SCALE, x_t),
            bottom_region_index_tensor=self._given(condition, "bottom_region", REGION_SCALE, x_t),
            spacing_tensor=self._given(condition, "spacing", SPACING_SCALE, x_t),
        )

    def geometry_embedding(self, condition: FlowCondition) -> Tensor:
        """Return what the network adds to the time embedding for spacing and regions: ``[B E]``, E 0 for neither."""
        start = self.conv_in.conv.weight.new_zeros(len(condition), 0)
        return self._get_input_embeddings(
            start,
            self._given(condition, "top_region", REGION_SCALE, start),
            self._given(condition, "bottom_region", REGION_SCALE, start),
            self._given(condition, "spacing", SPACING_SCALE, start),
        )

    def _labels(self, condition: FlowCondition) -> Tensor | None:
        if self.num_class_embeds is None:
            return None
        label = condition.label
        known = ((label >= 0) & (label < self.num_class_embeds)).all()
        if label.device.type == "cuda":
            torch._assert_async(known)  # waiting for the result here would stall every step
        elif label.device.type == "cpu" and not known:
            raise ValueError(
                f"Expected labels from 0 to {self.num_class_embeds - 1}, got {label.tolist()}; "
                "check the label map, or train with more num_class_embeds."
            )
        return label

    def _given(self, condition: FlowCondition, name: str, scale: float, x: Tensor) -> Tensor | None:
        wanted = {
            "spacing": self.include_spacing_input,
            "top_region": self.include_top_region_index_input,
            "bottom_region": self.include_bottom_region_index_input,
        }
        if not wanted[name]:
            return None
        value = getattr(condition, name)
        if value is None:
            raise ValueError(f"this network is conditioned on {name}, got a condition without; add it.")
        return value.to(x.dtype) * scale

    def _apply_down_blocks(
        self,
        h: Tensor,
        emb: Tensor,
        context: Tensor | None,
        down_block_additional_residuals: Sequence[Tensor] | None,
    ) -> tuple[Tensor, list[Tensor]]:
        skips = [h]
        for block in self.down_blocks:
            h, more = self._call(block, h, emb, context)
            skips += more
        if down_block_additional_residuals is not None:
            # MONAI adds in place, which breaks the backward pass of a network that is trained as well. Its last
            # skip is the very tensor that goes on, so released control networks reach the middle block too.
            pairs = zip(skips, down_block_additional_residuals, strict=True)
            skips = [skip + residual for skip, residual in pairs]
            h = skips[-1]
        return h, skips

    def _apply_up_blocks(
        self, h: Tensor, emb: Tensor, context: Tensor | None, down_block_res_samples: Sequence[Tensor]
    ) -> Tensor:
        skips = down_block_res_samples
        for block in self.up_blocks:
            count = len(block.resnets)
            skips, own = skips[:-count], skips[-count:]
            h = self._call(block, h, list(own), emb, context)
        return h

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Latent,
        timesteps: Time,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        top_region_index_tensor: Tensor | None = None,
        bottom_region_index_tensor: Tensor | None = None,
        spacing_tensor: Tensor | None = None,
    ) -> Latent:
        """Return the velocity, from the arguments of MONAI's forward; ``predict`` takes ours."""
        if self.num_class_embeds is not None and class_labels is None:
            raise ValueError("this network is conditioned on class labels, got none; pass class_labels.")
        emb = self._get_time_and_class_embedding(x, timesteps, class_labels)
        emb = self._get_input_embeddings(
            emb, top_region_index_tensor, bottom_region_index_tensor, spacing_tensor
        )
        h, skips = self._apply_down_blocks(self.conv_in(x), emb, context, down_block_additional_residuals)
        h = self._call(self.middle_block, h, emb, context)
        if mid_block_additional_residual is not None:
            h = h + mid_block_additional_residual
        return self.out(self._apply_up_blocks(h, emb, context, skips))

    def _call(self, block: nn.Module, *arguments: Any) -> Any:
        if self.use_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)
