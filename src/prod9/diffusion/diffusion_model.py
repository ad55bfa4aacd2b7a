"""DiffusionModelRF: the 3D U-Net of MAISI that predicts velocities in a latent.

It subclasses MONAI's DiffusionModelUNetMaisi and keeps its parameter names, so that NVIDIA's released weights load
strictly, and the arguments of its forward, so that scripts written for that network still work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, Unpack

import torch
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from torch import Tensor, nn

from prod9.autoencoder.checks import require_below, require_multiples
from prod9.autoencoder.native.recompute import call
from prod9.conditions import CovariateEmbedding
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.native_unet import use_native_unet
from prod9.types import Latent, Time

GEOMETRY_SCALE = 100.0
"""Factor of MAISI for spacings in mm and for one-hot regions."""


class UNetOptions(TypedDict):
    """Keywords of MONAI's U-Net that a control network shares with its base, and ``latent_channels``.

    num_class_embeds: number of class labels including 0, "unknown"; None for a network without labels.
    num_head_channels: channels per attention head at each resolution, used where ``attention_levels`` is true;
    the last one also in the middle.
    """

    latent_channels: int
    num_channels: Sequence[int]
    attention_levels: Sequence[bool]
    num_head_channels: Sequence[int]
    num_res_blocks: int
    norm_num_groups: NotRequired[int]
    resblock_updown: NotRequired[bool]
    include_fc: NotRequired[bool]
    num_class_embeds: NotRequired[int | None]


_DEFAULTS = {"norm_num_groups": 32, "resblock_updown": True, "include_fc": True}


def monai_keywords(unet: UNetOptions) -> dict[str, Any]:
    """Return the keywords of MONAI's constructors for ``unet``, with the defaults of this package."""
    options: dict[str, Any] = {**_DEFAULTS, **unet}
    return {"spatial_dims": 3, "in_channels": options.pop("latent_channels"), **options}


@dataclass(frozen=True)
class ControlResiduals:
    """The output of a control network, added to the skip connections (``down``, in order) and the middle (``mid``)."""

    down: tuple[Tensor, ...]
    mid: Tensor

    def scaled(self, strength: float) -> "ControlResiduals":
        """Return all residuals times ``strength``."""
        if strength == 1:
            return self
        return ControlResiduals(tuple(residual * strength for residual in self.down), self.mid * strength)


class DiffusionModelRF(DiffusionModelUNetMaisi):
    """Time-, class- and spacing-conditioned U-Net over latents ``[B Z h w d]``.

    Sides of latents are multiples of ``downsampling_factor``.

    Args:
        include_spacing_input: condition on the spacing of the image.
        include_top_region_index_input: condition on the body region of the first slice.
        include_bottom_region_index_input: condition on the body region of the last slice.
        num_step_sizes: condition on the number of steps of the sampling run, of 1, 2, 4, … in all ``num_step_sizes``
            numbers. Its embedding is added to that of the time and starts at zero: a network that starts from weights
            without it first computes what those compute. None for a flow, which knows no step size.
        covariates: numbers K and C of covariates and of features of each; None for a network without them. Their
            embedding is added to that of the time and starts at zero, like that of the step size.
        use_checkpointing: recompute activations in the backward pass.
        native_ops: use the faster layers of this package.
        **unet: see :class:`UNetOptions`.

    Example:
        >>> import torch
        >>> from prod9.diffusion.condition import FlowCondition
        >>> from prod9.diffusion.diffusion_model import DiffusionModelRF
        >>> unet = {"num_channels": [8, 8], "attention_levels": [False, True], "num_head_channels": [0, 8]}
        >>> unet |= {"latent_channels": 4, "num_res_blocks": 1, "norm_num_groups": 4, "num_class_embeds": 5}
        >>> condition = FlowCondition.of_heads(torch.tensor([1]), spacing=torch.ones(1, 3))
        >>> tuple(DiffusionModelRF(**unet).predict(torch.rand(1, 4, 8, 8, 8), torch.tensor([500.0]), condition).shape)
        (1, 4, 8, 8, 8)
    """

    conv_in: Any
    down_blocks: Any
    up_blocks: Any
    middle_block: Any
    out: Any
    time_embed: Any

    def __init__(
        self,
        *,
        include_spacing_input: bool = True,
        include_top_region_index_input: bool = False,
        include_bottom_region_index_input: bool = False,
        num_step_sizes: int | None = None,
        covariates: Sequence[int] | None = None,
        use_checkpointing: bool = False,
        native_ops: bool = True,
        **unet: Unpack[UNetOptions],
    ) -> None:
        super().__init__(
            **monai_keywords(unet),
            out_channels=unet["latent_channels"],
            include_top_region_index_input=include_top_region_index_input,
            include_bottom_region_index_input=include_bottom_region_index_input,
            include_spacing_input=include_spacing_input,
        )
        self.latent_channels = unet["latent_channels"]
        self.downsampling_factor = 2 ** (len(unet["num_channels"]) - 1)
        self.use_checkpointing = use_checkpointing
        self.num_step_sizes = num_step_sizes
        if num_step_sizes is not None:
            width = self.time_embed[-1].out_features
            self.step_size_embedding = nn.Embedding(num_step_sizes, width)
            nn.init.zeros_(self.step_size_embedding.weight)
        self.covariate_embedding: CovariateEmbedding | None = None
        if covariates is not None:
            width = self.time_embed[-1].out_features
            self.covariate_embedding = CovariateEmbedding(covariates=covariates, embed_dim=width)
            nn.init.zeros_(self.covariate_embedding.output.weight)
            nn.init.zeros_(self.covariate_embedding.output.bias)
        if native_ops:
            use_native_unet(self)

    def predict(
        self,
        x_t: Latent,
        timesteps: Time,
        condition: FlowCondition,
        residuals: ControlResiduals | None = None,
    ) -> Latent:
        """Return the velocity at ``x_t``.

        Args:
            x_t: ``[B Z h w d]``.
            timesteps: ``[B]``, the scheduler's ``network_time``.
            condition: of the samples.
            residuals: of a control network, added to the skip connections.
        """
        require_multiples(x_t.shape[2:], self.downsampling_factor, "sides of latents")
        if self.num_class_embeds is not None:
            require_below(condition.label, self.num_class_embeds, "labels")
        top_region, bottom_region, spacing = self._geometry(condition, x_t)
        return self(
            x_t,
            timesteps,
            class_labels=None if self.num_class_embeds is None else condition.label,
            down_block_additional_residuals=None if residuals is None else residuals.down,
            mid_block_additional_residual=None if residuals is None else residuals.mid,
            top_region_index_tensor=top_region,
            bottom_region_index_tensor=bottom_region,
            spacing_tensor=spacing,
            steps=condition.steps,
            covariates=condition.covariates,
        )

    def geometry_embedding(self, condition: FlowCondition) -> Tensor:
        """Return the embedding of spacing and regions, ``[B E]``; E is 0 for a network that takes neither."""
        start = self.conv_in.conv.weight.new_zeros(len(condition), 0)
        return self._get_input_embeddings(start, *self._geometry(condition, start))

    def _geometry(self, condition: FlowCondition, like: Tensor) -> list[Tensor | None]:
        """Return top region, bottom region and spacing in MAISI's scale; None for what the network does not take."""
        taken = {
            "top_region": self.include_top_region_index_input,
            "bottom_region": self.include_bottom_region_index_input,
            "spacing": self.include_spacing_input,
        }
        for name, wanted in taken.items():
            if wanted and getattr(condition, name) is None:
                raise ValueError(f"{name}: expected in the condition of this network, got None; add it")
        return [
            getattr(condition, name).to(like.dtype) * GEOMETRY_SCALE if wanted else None
            for name, wanted in taken.items()
        ]

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
            # MONAI adds in place, which breaks the backward pass where the U-Net is trained as well. Its last skip
            # is the tensor that the middle block gets, so the last residual must reach that block here, too.
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

    def forward(
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
        steps: Tensor | None = None,
        covariates: Tensor | None = None,
    ) -> Latent:
        """Return the velocity from the arguments of MONAI's forward, ``steps`` and ``covariates``; see ``predict``.

        Raises ValueError where the network has classes and ``class_labels`` is None.

        Args:
            x: ``[B Z h w d]``.
            timesteps: ``[B]``.
            context: as MONAI's.
            class_labels: int64 ``[B]``.
            down_block_additional_residuals: of a control network, one for each skip connection.
            mid_block_additional_residual: of a control network, for the middle.
            top_region_index_tensor: as MONAI's.
            bottom_region_index_tensor: as MONAI's.
            spacing_tensor: ``[B 3]`` in mm × 100.
            steps: ``[B]``, for few-step networks.
            covariates: ``[B K]``, for networks that know some.
        """
        if self.num_class_embeds is not None and class_labels is None:
            raise ValueError("class_labels: expected by this network, got None; pass one per sample")
        emb = self._get_time_and_class_embedding(x, timesteps, class_labels)
        if self.num_step_sizes is not None:
            emb = emb + self.step_size_embedding(step_size_index(steps, self.num_step_sizes)).to(emb.dtype)
        if self.covariate_embedding is not None:
            emb = emb + self.covariate_embedding(covariates, len(x)).to(emb.dtype)
        emb = self._get_input_embeddings(
            emb, top_region_index_tensor, bottom_region_index_tensor, spacing_tensor
        )
        h, skips = self._apply_down_blocks(self.conv_in(x), emb, context, down_block_additional_residuals)
        h = self._call(self.middle_block, h, emb, context)
        if mid_block_additional_residual is not None:
            h = h + mid_block_additional_residual
        return self.out(self._apply_up_blocks(h, emb, context, skips))

    def _call(self, block: nn.Module, *arguments: Any) -> Any:
        return call(block, *arguments, recompute=self.use_checkpointing)


def step_size_index(steps: Tensor | None, num_step_sizes: int) -> Tensor:
    """Return the place of each of ``steps [B]`` among 1, 2, 4, …; ValueError for other numbers, or for None."""
    known = [2**k for k in range(num_step_sizes)]
    names = f"{', '.join(map(str, known[:-1]))} or {known[-1]}" if len(known) > 1 else "1"
    if steps is None:
        raise ValueError(f"steps: expected {names} in the condition of this network, got None; add them")
    index = steps.float().log2().round().long()
    wrong = (index < 0) | (index >= num_step_sizes) | (torch.pow(2, index.clamp_min(0)) != steps)
    if wrong.device.type == "cuda":
        torch._assert_async(~wrong.any())  # as for labels: waiting for the result would stall every step
    elif bool(wrong.any()):
        got = sorted(set(steps[wrong].tolist()))
        raise ValueError(
            f"steps: expected {names}, which this network was distilled to, got {got}; use one of these"
        )
    return index
