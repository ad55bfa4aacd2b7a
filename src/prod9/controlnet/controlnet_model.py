"""ControlNetRF: steers a frozen DiffusionModelRF with a segmentation, source images, a label, or several.

A copy of the U-Net's encoder runs in parallel to it, on the same latent plus the encoded condition, and adds a residual
to each skip connection and to the middle (ControlNet, arXiv 2302.05543). The output layers start at zero, so that the
controlled network first equals the base. It subclasses MONAI's ControlNetMaisi and keeps its parameter names, so that
NVIDIA's released weights load strictly, and the arguments of its forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import torch
from jaxtyping import Float
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from torch import Tensor, nn

from prod9.autoencoder.checks import require_below, require_multiples
from prod9.autoencoder.native.recompute import call
from prod9.controlnet.condition import NUM_BITS, ControlCondition, bit_planes, one_hot_planes
from prod9.controlnet.condition_encoder import ConditionEncoder
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import ControlResiduals, DiffusionModelRF, UNetOptions, monai_keywords
from prod9.diffusion.native_unet import use_native_unet
from prod9.types import Latent, Time, Volume

Part = Literal["mask", "image", "label"]
FRESH = ("controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_mid_block.")
"""Prefixes of weights that a diffusion network lacks: the encoder of the condition and the output layers."""
_GEOMETRY = ".time_emb_proj."


@dataclass(frozen=True)
class Initialisation:
    """Names of the tensors of a control network by their origin.

    copied: from the base, unchanged. folded: from the base, with its embedding of the geometry (spacing, body regions)
    added to the bias, since the control network takes no geometry. fresh: new (``FRESH``).
    """

    copied: tuple[str, ...]
    folded: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.copied)} tensors copied from the diffusion network, {len(self.folded)} with its geometry "
            f"folded in, {len(self.fresh)} fresh (encoder of the condition and zero convolutions)"
        )


class ControlNetRF(ControlNetMaisi):
    """A control network for one kind of U-Net; ``start_from`` copies the weights of such a U-Net.

    Args:
        downsampling_factor: voxels per latent position along each axis.
        conditions: what ``encode`` takes, in any combination.
        num_mask_classes: classes of a segmentation, background included.
        seg_planes: ``one_hot``, one plane per class, or ``bits``, MAISI's eight binary digits.
        source_modalities: names of the channels of ``image``, in order.
        encoder: ``condition_encoder``, which sees small lesions at every scale and takes labels, or ``maisi``, that
            of the published network, which halves the sides with each of ``channels`` after the first.
        channels: widths of the encoder's stages.
        use_checkpointing: recompute activations in the backward pass.
        native_ops: use the faster layers of this package.
        **unet: those of the base, see :class:`~prod9.diffusion.diffusion_model.UNetOptions`.

    Example:
        >>> import torch
        >>> from prod9.controlnet.condition import ControlCondition
        >>> from prod9.controlnet.controlnet_model import ControlNetRF
        >>> unet = {"num_channels": [8, 8], "attention_levels": [False, True], "num_head_channels": [0, 8]}
        >>> unet |= {"latent_channels": 4, "num_res_blocks": 1, "norm_num_groups": 4}
        >>> seg = torch.zeros(1, 16, 16, 16, dtype=torch.int64)
        >>> tuple(ControlNetRF(downsampling_factor=4, **unet).encode(ControlCondition(seg)).shape)
        (1, 8, 4, 4, 4)
    """

    down_blocks: Any
    middle_block: Any
    controlnet_cond_embedding: Any

    def __init__(
        self,
        *,
        downsampling_factor: int,
        conditions: Sequence[Part] = ("mask",),
        num_mask_classes: int = 4,
        seg_planes: Literal["one_hot", "bits"] = "one_hot",
        source_modalities: Sequence[str] = (),
        encoder: Literal["condition_encoder", "maisi"] = "condition_encoder",
        channels: Sequence[int] = (16, 32, 64),
        use_checkpointing: bool = False,
        native_ops: bool = True,
        **unet: Unpack[UNetOptions],
    ) -> None:
        num_class_embeds = unet.get("num_class_embeds")
        self._check(conditions, source_modalities, num_class_embeds, encoder, channels, downsampling_factor)
        mask_planes = NUM_BITS if seg_planes == "bits" else num_mask_classes
        planes = mask_planes * ("mask" in conditions) + len(source_modalities)
        super().__init__(
            **monai_keywords(unet),
            conditioning_embedding_in_channels=max(planes, 1),
            conditioning_embedding_num_channels=tuple(channels) if encoder == "maisi" else (1,),
            use_checkpointing=use_checkpointing,
        )
        self.latent_channels = unet["latent_channels"]
        self.downsampling_factor = downsampling_factor
        self.conditions = tuple(conditions)
        self.num_mask_classes = num_mask_classes
        self.seg_planes = seg_planes
        self.source_modalities = tuple(source_modalities)
        self.num_labels = num_class_embeds or 0
        if encoder == "condition_encoder":
            self.controlnet_cond_embedding = ConditionEncoder(
                in_channels=planes,
                num_labels=self.num_labels if "label" in conditions else 0,
                out_channels=unet["num_channels"][0],
                downsampling_factor=downsampling_factor,
                channels=channels,
            )
        if native_ops:
            use_native_unet(self)

    @staticmethod
    def _check(
        conditions: Sequence[str],
        source_modalities: Sequence[str],
        num_class_embeds: int | None,
        encoder: str,
        channels: Sequence[int],
        downsampling_factor: int,
    ) -> None:
        if ("image" in conditions) != bool(source_modalities):
            raise ValueError(
                "source_modalities: expected names if and only if conditions hold 'image', got "
                f"{list(source_modalities)} and {list(conditions)}; name them, or leave 'image' out"
            )
        if "label" in conditions and (num_class_embeds is None or encoder == "maisi"):
            raise ValueError(
                "conditions: expected encoder 'condition_encoder' and a base with class labels for 'label', got "
                f"encoder {encoder!r} and num_class_embeds {num_class_embeds}; leave 'label' out"
            )
        if encoder == "maisi" and 2 ** (len(channels) - 1) != downsampling_factor:
            raise ValueError(
                f"channels: expected {downsampling_factor.bit_length()} entries for encoder 'maisi' and a downsampling "
                f"factor of {downsampling_factor}, since each after the first halves the sides, got "
                f"{list(channels)}; add or remove some"
            )

    # -- weights of the base -------------------------------------------------------------------------

    @torch.no_grad()
    def start_from(self, base: DiffusionModelRF, *, geometry: FlowCondition) -> Initialisation:
        """Copy the weights of ``base`` and return the origin of each tensor.

        geometry: a batch of one, whose embedding becomes part of the biases, so that the copies compute what their
        originals compute for it. Raises ValueError, without any change, when ``base`` lacks a tensor or has it with
        another shape.
        """
        theirs, extra = base.state_dict(), base.geometry_embedding(geometry)
        values: dict[str, Tensor] = {}
        folded: list[str] = []
        for name in [name for name in self.state_dict() if not name.startswith(FRESH)]:
            if name not in theirs:
                continue
            values[name] = theirs[name]
            if _GEOMETRY in name and extra.shape[1]:
                values[name] = _folded(name, theirs, extra)
                folded.append(name)
        self._require_complete(values)
        self.load_state_dict(values, strict=False)
        fresh = tuple(name for name in self.state_dict() if name not in values)
        return Initialisation(tuple(name for name in values if name not in folded), tuple(folded), fresh)

    def _require_complete(self, values: dict[str, Tensor]) -> None:
        faults = []
        for name, own in self.state_dict().items():
            if name.startswith(FRESH):
                continue
            if name not in values:
                faults.append(f"{name} is missing")
            elif values[name].shape != own.shape:
                faults.append(f"{name} has shape {tuple(values[name].shape)}, not {tuple(own.shape)}")
        if faults:
            raise ValueError(
                f"base: expected the diffusion network that this control network copies, got another ({len(faults)} "
                f"tensors differ: {'; '.join(faults[:3])}); build it with that network's own settings"
            )

    # -- condition and residuals ---------------------------------------------------------------------

    def encode(self, control: ControlCondition) -> Tensor:
        """Return the features of the condition ``[B E h w d]``, computed once per sample.

        For a label alone, which is the same everywhere, the sides are 1. Raises ValueError for a part that is missing,
        and for classes, labels and sides that do not fit the network.
        """
        planes = self._planes(control)
        if not isinstance(self.controlnet_cond_embedding, ConditionEncoder):
            assert planes is not None  # _check: labels need the other encoder
            return self.controlnet_cond_embedding(planes * ~control.is_dropped.view(-1, 1, 1, 1, 1))
        label = control.label if self._takes("label", control.label) else None
        if label is not None:
            require_below(label, self.num_labels, "labels")
        grid = (1, 1, 1) if planes is None else tuple(n // self.downsampling_factor for n in planes.shape[2:])
        return self.controlnet_cond_embedding(planes, label, grid=grid, dropped=control.is_dropped)

    def _planes(self, control: ControlCondition) -> Volume | None:
        parts: list[Tensor] = []
        if self._takes("mask", control.seg):
            make = bit_planes if self.seg_planes == "bits" else one_hot_planes
            assert control.seg is not None
            parts.append(make(control.seg, self.num_mask_classes))
        if self._takes("image", control.images):
            assert control.images is not None
            if control.images.shape[1] != len(self.source_modalities):
                raise ValueError(
                    f"images: expected one channel for each of {', '.join(self.source_modalities)}, got "
                    f"{control.images.shape[1]}; fill those of missing sources with 0"
                )
            parts.append(control.images)
        if not parts:
            return None
        planes = torch.cat(parts, dim=1)
        require_multiples(planes.shape[2:], self.downsampling_factor, "sides of segmentation and images")
        return planes

    def _takes(self, name: Part, given: Tensor | None) -> bool:
        """Return whether the network takes ``name``; ValueError where it does and got none."""
        if name in self.conditions and given is None:
            raise ValueError(
                f"control: expected {' and '.join(self.conditions)}, got no {name}; give every part"
            )
        return name in self.conditions

    def residuals(
        self, x_t: Latent, timesteps: Time, condition: FlowCondition, control: Tensor
    ) -> ControlResiduals:
        """Return what to add to the base at ``x_t``.

        Args:
            x_t: ``[B Z h w d]``.
            timesteps: ``[B]``, the scheduler's ``network_time``.
            condition: of the base.
            control: the output of ``encode`` for these samples, ``[B E h w d]``; ValueError for another grid.
        """
        labels = condition.label if self.num_class_embeds is not None else None
        if control.shape[2:] not in (x_t.shape[2:], (1, 1, 1)):
            raise ValueError(
                f"control: expected features on the latent's grid {tuple(x_t.shape[2:])}, got "
                f"{tuple(control.shape[2:])}; resample the segmentation to the model's grid"
            )
        # Called as a module, so that hooks and compilation of its calls apply.
        down, mid = self(x_t, timesteps, class_labels=labels, encoded=control)
        return ControlResiduals(tuple(down), mid)

    def forward(
        self,
        x: Latent,
        timesteps: Time,
        controlnet_cond: Volume | None = None,
        conditioning_scale: float = 1.0,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        encoded: Float[Tensor, "B E _h _w _d"] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Return residuals from the arguments of MONAI's forward, which encodes the planes at every call.

        Args:
            x: ``[B Z h w d]``.
            timesteps: ``[B]``.
            controlnet_cond: planes ``[B C H W D]`` on the voxel grid.
            conditioning_scale: factor of the residuals.
            context: refused (ValueError) unless None.
            class_labels: int64 ``[B]``.
            encoded: the output of ``encode``, instead of ``controlnet_cond``; ValueError for both or none.
        """
        if context is not None:
            raise ValueError("context: expected None, got a tensor; leave it out")
        if (encoded is None) == (controlnet_cond is None):
            raise ValueError("controlnet_cond, encoded: expected one of them, got none or both; pass one")
        features, embedding = encoded, self.controlnet_cond_embedding
        if features is None and isinstance(embedding, ConditionEncoder):
            features = embedding(controlnet_cond, None, grid=x.shape[2:])
        elif features is None:
            features = embedding(controlnet_cond)
        residuals = self._run(x, timesteps, features, class_labels).scaled(conditioning_scale)
        return list(residuals.down), residuals.mid

    def _run(self, x: Tensor, timesteps: Tensor, features: Tensor, labels: Tensor | None) -> ControlResiduals:
        emb = self._prepare_time_and_class_embedding(x, timesteps, labels)
        h = self.conv_in(x)
        h = h + features.to(h.dtype)
        skips = [h]
        for block in self.down_blocks:
            h, own = self._call(block, h, emb, None)
            skips += own
        h = self._call(self.middle_block, h, emb, None)
        down = tuple(zero(skip) for zero, skip in zip(self.controlnet_down_blocks, skips, strict=True))
        return ControlResiduals(down, self.controlnet_mid_block(h))

    def _call(self, block: nn.Module, *arguments: Any) -> Any:
        return call(block, *arguments, recompute=self.use_checkpointing)


def _folded(name: str, theirs: dict[str, Tensor], extra: Tensor) -> Tensor:
    """Return the weight of a time projection without its columns for the geometry, or the bias with their product."""
    stem = name.rpartition(".")[0]
    weight, width = theirs[f"{stem}.weight"], extra.shape[1]
    if name.endswith(".weight"):
        return weight[:, :-width]
    silu = nn.functional.silu(extra[0].to(weight.dtype))
    return theirs[name] + weight[:, -width:] @ silu
