"""From a segmentation, source images, a label or several to brain volumes: MAISI's flow under a control network.

``MAISIControlPipeline.from_checkpoint`` needs a stage-3 run, checkpoint or export folder and nothing else: its
header names the diffusion network by path and SHA-256, whose own header names the autoencoder.
"""

from collections.abc import Sequence

import numpy as np
import torch

from prod9.config.schema import MaisiControlNetConfig, RunConfig
from prod9.controlnet.condition import ControlCondition
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.devices import torch_device
from prod9.diffusion.sampler import SourceStart
from prod9.errors import ConfigError
from prod9.models.checkpoint_manager import CheckpointManager, Source
from prod9.pipelines.detail import BESIDE, DetailChoice
from prod9.pipelines.maisi import MAISIPipeline
from prod9.pipelines.recorded import Overrides, config_of
from prod9.pipelines.steering import AbstractControlPipeline
from prod9.system.progress import Share


class MAISIControlPipeline(AbstractControlPipeline):
    """Steers a MAISIPipeline with a control network that was trained on its diffusion network.

    For the strengths see the base class.
    """

    generator: MAISIPipeline
    controlnet: ControlNetRF
    start_noise: float | None = None
    """Deviation of the noise at the start of a flow from the mean of the sources; None for a flow from noise."""

    @classmethod
    def from_checkpoint(
        cls,
        path: Source,
        *,
        device: str | torch.device = "auto",
        diffusion: Source | None = None,
        autoencoder: Source | None = None,
        overrides: Overrides = (),
        settings: RunConfig | None = None,
        detail: DetailChoice | None = BESIDE,
    ) -> "MAISIControlPipeline":
        """Build from a stage-3 run folder, checkpoint file or export folder.

        Args:
            diffusion: where the flow is now, if it has moved, or its pipeline.
            others: see :meth:`prod9.pipelines.control.ControlPipeline.from_checkpoint`.
        """
        device = torch_device(device)
        loaded = CheckpointManager.load_flow_controlnet(path, device=device)
        config = config_of(loaded, MaisiControlNetConfig, overrides=overrides, settings=settings)
        generator = MAISIPipeline.from_checkpoint(
            CheckpointManager.open_recorded(loaded, "diffusion", path=diffusion),
            device=device,
            autoencoder=autoencoder or config.inputs.autoencoder,
            settings=config,
            detail=detail,
            beside=[loaded.path],
        )
        pipeline = cls._of_loaded(loaded, config.control, generator)
        pipeline.start_noise = None if config.start is None else config.start.noise
        return pipeline

    @property
    def condition_type(self) -> str:
        """The parts of the condition, in words."""
        return " and ".join(self.controlnet.conditions)

    @property
    def needs_seg(self) -> bool:
        """Whether a segmentation is part of the condition."""
        return "mask" in self.controlnet.conditions

    @property
    def source_modalities(self) -> tuple[str, ...]:
        """Slots of source images in the condition."""
        return self.controlnet.source_modalities

    @torch.inference_mode()
    def sample_label(
        self,
        label: int,
        *,
        segs: np.ndarray | None,
        seeds: Sequence[int],
        images: np.ndarray | None = None,
        report: Share | None = None,
    ) -> torch.Tensor:
        """Return latents ``[B Z h w d]`` of the class ``label`` under control, in the autoencoder's scale.

        A flow from the mean of the sources raises ConfigError where there is no source beside the target.

        Args:
            label: the class.
            segs: segmentations uint8 ``[H W D]``, canonical labels; None without any.
            seeds: one for each sample.
            images: source volumes ``[C H W D]``. That of the class itself is left out, as in training.
            report: called with the share done.
        """
        images = self._without_target(label, images)
        condition = ControlCondition(
            seg=None if segs is None else torch.from_numpy(np.ascontiguousarray(segs)),
            label=torch.full((len(seeds),), label, dtype=torch.int64),
            images=None if images is None else torch.from_numpy(np.ascontiguousarray(images)),
        )
        start = {}
        if self.start_noise is not None and self.control_strength > 0:
            start["start"] = SourceStart(
                self._origin(label, images).expand(len(seeds), -1, -1, -1, -1), self.start_noise
            )
        return self.generator.sample_latents(
            self.generator.condition_of(label, seeds),
            seeds=seeds,
            report=report,
            controlnet=self.controlnet.residuals,
            control=self.controlnet.encode(condition.to(self.generator.device)),
            control_strength=self.control_strength,
            control_guidance_scale=self.control_guidance_scale,
            **start,
        )

    def _target(self, label: int) -> str:
        return next(name for name, number in self.generator.label_map.items() if number == label)

    def _without_target(self, label: int, images: np.ndarray | None) -> np.ndarray | None:
        """Return ``images [B N H W D]`` with zeros for the modality that is made: the image would give it away."""
        target = self._target(label)
        if images is None or target not in self.source_modalities:
            return images
        shown = images.copy()
        shown[:, self.source_modalities.index(target)] = 0.0
        return shown

    def _origin(self, label: int, images: np.ndarray | None) -> torch.Tensor:
        """Return the mean latent ``[1 Z h w d]`` of ``images [B N H W D]``, alike for all B, in the flow's scale."""
        target = self._target(label)
        shown = [] if images is None else [
            torch.from_numpy(np.ascontiguousarray(images[0, slot]))
            for slot, name in enumerate(self.source_modalities)
            if name != target and images[0, slot].any()
        ]  # fmt: skip
        if not shown:
            raise ConfigError(
                f"sources: expected one of {', '.join(self.source_modalities)} other than {target} for a flow that "
                "starts at the mean of the sources, got none; pass --source NAME=FILE."
            )
        # One at a time: encoding is where the memory goes.
        encode = self.generator.autoencoder.encode
        latents = [encode(image[None, None].to(self.generator.device))[0] for image in shown]
        return torch.stack(latents).mean(0) * self.generator.scale_factor
