"""From a segmentation, source images, a label or several to brain volumes: MAISI's flow under a control network.

``MAISIControlPipeline.from_checkpoint`` needs a stage-3 run, checkpoint or export folder and nothing else: its
header names the diffusion network by path and SHA-256, and that one's the autoencoder.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from prod9.config.load import config_from_dict, config_to_dict
from prod9.config.schema import MaisiControlNetConfig
from prod9.controlnet.condition import ControlCondition
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.models.checkpoint_manager import CheckpointManager, Source
from prod9.pipelines.maisi import MAISIPipeline
from prod9.pipelines.steering import AbstractControlPipeline


class MAISIControlPipeline(AbstractControlPipeline):
    """Steers a MAISIPipeline with a control network that was trained on its diffusion network.

    For the strengths see the base class.
    """

    generator: MAISIPipeline
    controlnet: ControlNetRF

    @classmethod
    def from_checkpoint(
        cls,
        path: Source,
        *,
        device: str | torch.device = "cpu",
        diffusion: Source | None = None,
        autoencoder: Source | None = None,
        overrides: Sequence[str | tuple[str, Any]] = (),
    ) -> "MAISIControlPipeline":
        """Build from a stage-3 run folder, checkpoint file or export folder.

        diffusion, autoencoder: where the earlier stages are now, if they have moved; their hashes must still
        be the recorded ones. overrides: changes to the recorded config, such as ``["sampler.steps=8"]``.
        Raises CheckpointError for a missing, damaged, foreign or replaced file, ConfigError for bad settings.
        """
        loaded = CheckpointManager.load_flow_controlnet(path, device=device)
        config = config_from_dict(loaded.header["config"], source=str(loaded.path), overrides=overrides)
        assert isinstance(config, MaisiControlNetConfig)  # load_flow_controlnet checked the stage
        values = config_to_dict(config)
        generator = MAISIPipeline.from_checkpoint(
            CheckpointManager.open_recorded(loaded, "diffusion", path=diffusion),
            device=device,
            autoencoder=autoencoder or config.inputs.autoencoder,
            overrides=[(name, values[name]) for name in ("sampler", "sliding_window")],
        )
        generator.sha256 = {"controlnet": loaded.sha256, **generator.sha256}
        return cls(generator=generator, controlnet=loaded.network, **config.control.kwargs())

    @property
    def condition_type(self) -> str:
        """What the control network is told, in words."""
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
        report: Callable[[float], None] | None = None,
    ) -> torch.Tensor:
        """Return latents ``[B Z h w d]`` of the class ``label`` under control, in the autoencoder's scale."""
        told = ControlCondition(
            seg=None if segs is None else torch.from_numpy(np.ascontiguousarray(segs)),
            label=torch.full((len(seeds),), label, dtype=torch.int64),
            images=None if images is None else torch.from_numpy(np.ascontiguousarray(images)),
        )
        return self.generator.sample_latents(
            self.generator.condition_of(label, len(seeds)),
            seeds=seeds,
            report=report,
            controlnet=self.controlnet.residuals,
            control=self.controlnet.encode(told.to(self.generator.device)),
            control_strength=self.control_strength,
            control_guidance_scale=self.control_guidance_scale,
        )
