"""From a segmentation, a label or both to brain volumes: a trained transformer under a control network.

``ControlPipeline.from_checkpoint`` needs a stage-3 run, checkpoint or export folder and nothing else: its
header names the transformer by path and SHA-256, and that one's the autoencoder.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prod9.errors import ConfigError
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.controlnet_maskgit import ControlCondition, ControlNetMaskGiT
from prod9.pipelines.maskgit import GeneratedVolume, MaskGiTPipeline, Progress, derived_seed
from prod9.pipelines.placement import GridPlacement
from prod9.pipelines.segmentation import PlacedSegmentation, place_segmentation
from prod9.training.config import config_from_dict, config_to_dict
from prod9.training.config_schema import MaskGiTControlNetLightningConfig
from prod9.training.model.checkpoint_manager import CheckpointManager


class ControlPipeline:
    """Steers a MaskGiTPipeline.

    generator: the base, which samples and decodes. controlnet: trained on that base. control_strength: factor
    of all that control adds, 0 being the base bit for bit. control_guidance_scale: how far to go from the
    base's prediction beyond the controlled one.
    """

    def __init__(
        self,
        *,
        generator: MaskGiTPipeline,
        controlnet: ControlNetMaskGiT,
        control_strength: float = 1.0,
        control_guidance_scale: float = 0.0,
    ) -> None:
        self.generator = generator
        self.controlnet = controlnet.to(generator.device).eval()
        self.control_strength = control_strength
        self.control_guidance_scale = control_guidance_scale

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        transformer: str | Path | None = None,
        autoencoder: str | Path | None = None,
        overrides: Sequence[str | tuple[str, Any]] = (),
    ) -> "ControlPipeline":
        """Build from a stage-3 run folder, checkpoint file or export folder.

        transformer, autoencoder: where the earlier stages are now, if they have moved; their hashes must still
        be the recorded ones. overrides: changes to the recorded config, such as ``["sampler.steps=8"]``.
        Raises CheckpointError for a missing, damaged, foreign or replaced file, ConfigError for bad settings.
        """
        loaded = CheckpointManager.load_controlnet(path, device=device)
        config = config_from_dict(loaded.header["config"], source=str(loaded.path), overrides=overrides)
        assert isinstance(config, MaskGiTControlNetLightningConfig)  # load_controlnet checked the stage
        base = CheckpointManager.load_base(loaded, path=transformer)
        values = config_to_dict(config)
        generator = MaskGiTPipeline.from_checkpoint(
            base.path,
            device=device,
            autoencoder=autoencoder or config.inputs.autoencoder,
            overrides=[(name, values[name]) for name in ("sampler", "masking", "sliding_window")],
        )
        generator.sha256 = {"controlnet": loaded.sha256, **generator.sha256}
        return cls(generator=generator, controlnet=loaded.network, **config.control.kwargs())

    @property
    def needs_seg(self) -> bool:
        """Whether a segmentation is part of the condition."""
        return self.controlnet.condition_type != "label"

    @property
    def placement(self) -> GridPlacement:
        """What brings files to the model's grid."""
        if self.generator.placement is None:
            raise ValueError("Expected a generator with a placement; build it with from_checkpoint.")
        return self.generator.placement

    def place(
        self, path: str | Path, *, reference: str | Path | None = None, label_scheme: str = "auto"
    ) -> PlacedSegmentation:
        """Bring a segmentation file to the grid; see :func:`~prod9.pipelines.segmentation.place_segmentation`."""
        return place_segmentation(
            Path(path),
            self.placement,
            num_classes=self.controlnet.num_mask_classes,
            reference=None if reference is None else Path(reference),
            label_scheme=label_scheme,
        )

    @torch.inference_mode()
    def sample_tokens(
        self,
        condition: Any,
        *,
        segs: np.ndarray | None,
        labels: Sequence[int],
        seeds: Sequence[int],
        report: Callable[[float], None] | None = None,
        **arguments: Any,
    ) -> torch.Tensor:
        """Return int64 tokens ``[B h w d]`` for a condition of the base under control.

        segs: uint8 ``[B H W D]`` on the grid; None with condition type ``label``. labels: class of each sample.
        report, arguments: see :meth:`MaskGiTPipeline.sample_tokens`.
        """
        wanted = self.controlnet.condition_type
        if self.needs_seg and segs is None:
            raise ValueError(f"Expected a segmentation for a control network of {wanted!r}, got None.")
        seg = None if segs is None or not self.needs_seg else torch.from_numpy(np.ascontiguousarray(segs))
        label = None if wanted == "mask" else torch.tensor(list(labels))
        control = self.controlnet.encode(ControlCondition(seg, label).to(self.generator.device))
        return self.generator.sample_tokens(
            condition,
            seeds=seeds,
            report=report,
            controlnet=self.controlnet,
            control=control,
            control_strength=self.control_strength,
            control_guidance_scale=self.control_guidance_scale,
            **arguments,
        )

    def generate(
        self,
        label: str,
        *,
        seg: PlacedSegmentation | None,
        num_samples: int,
        seed: int = 0,
        batch_size: int = 1,
        start: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[GeneratedVolume]:
        """Yield samples ``start … start + num_samples - 1`` of the modality ``label`` under ``seg``.

        Sample k has the random numbers of sample k of :meth:`MaskGiTPipeline.generate`, so that strength 0
        gives just that volume; it does not depend on ``batch_size``, ``start`` or the samples beside it. Volumes
        lie where the segmentation lies.
        """
        self.check(label, seg is not None)
        if num_samples < 1 or batch_size < 1 or start < 0:
            raise ValueError(
                "num_samples and batch_size must be at least 1 and start at least 0, "
                f"got {num_samples}, {batch_size} and {start}."
            )
        return self._generate(label, seg, range(start, start + num_samples), seed, batch_size, progress)

    def check(self, label: str, has_seg: bool) -> None:
        """Refuse with a ConfigError what cannot be generated, before anything is computed."""
        names = self.generator.label_names()
        if label not in names:
            raise ConfigError(
                f"Label: expected one of {', '.join(names)}, got {label!r}; the model knows no other."
            )
        if self.generator.kind != "label_conditional":
            raise ConfigError(
                f"expected control of a model of kind 'label_conditional' to generate from a label, got one of "
                f"kind {self.generator.kind!r}, which needs source volumes too; name a stage-3 run on a "
                "stage2_label model."
            )
        if has_seg != self.needs_seg:
            wanted = "a segmentation" if self.needs_seg else "no segmentation"
            raise ConfigError(
                f"expected {wanted} for control of condition_type {self.controlnet.condition_type!r}, got "
                f"{'one' if has_seg else 'none'}; {'pass' if self.needs_seg else 'leave out'} --seg."
            )

    def _generate(
        self,
        label: str,
        seg: PlacedSegmentation | None,
        indices: range,
        seed: int,
        batch_size: int,
        progress: Progress | None,
    ) -> Iterator[GeneratedVolume]:
        number = self.generator.label_map[label]
        affine = self.generator.affine if seg is None else seg.affine
        for first in range(0, len(indices), batch_size):
            batch = indices[first : first + batch_size]

            def report(share: float, done: int = first, size: int = len(batch)) -> None:
                if progress is not None:
                    progress(done + share * size, len(indices))

            tokens = self.sample_tokens(
                MaskGiTCondition(torch.full((len(batch),), number, dtype=torch.int64)),
                segs=None if seg is None else np.repeat(seg.seg[None], len(batch), axis=0),
                labels=[number] * len(batch),
                seeds=[derived_seed(seed + k, number) for k in batch],
                report=report,
            )
            for position, index in enumerate(batch):
                data = self.generator.decode_tokens(tokens[position : position + 1])
                yield GeneratedVolume(data, affine.copy(), label, index, seed + index)
            report(1.0)
