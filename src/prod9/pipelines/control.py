"""From a segmentation, a label or both to brain volumes: a trained transformer under a control network.

``ControlPipeline.from_checkpoint`` needs a stage-3 run, checkpoint or export folder and nothing else: its
header names the transformer by path and SHA-256, whose own header names the autoencoder.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from prod9.config.schema import MaskGiTControlNetLightningConfig, RunConfig
from prod9.controlnet.condition import ControlCondition
from prod9.devices import torch_device
from prod9.errors import ConfigError
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.controlnet_maskgit import ControlNetMaskGiT
from prod9.models.checkpoint_manager import CheckpointManager, Source
from prod9.pipelines.detail import BESIDE, DetailChoice
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.pipelines.recorded import Overrides, config_of
from prod9.pipelines.steering import AbstractControlPipeline
from prod9.system.progress import Share


class ControlPipeline(AbstractControlPipeline):
    """Steers a MaskGiTPipeline with a control network that was trained on its decoder.

    For the strengths see the base class.
    """

    generator: MaskGiTPipeline
    controlnet: ControlNetMaskGiT

    @classmethod
    def from_checkpoint(
        cls,
        path: Source,
        *,
        device: str | torch.device = "auto",
        transformer: Source | MaskGiTPipeline | None = None,
        autoencoder: Source | None = None,
        overrides: Overrides = (),
        settings: RunConfig | None = None,
        detail: DetailChoice | None = BESIDE,
    ) -> "ControlPipeline":
        """Build from a stage-3 run folder, checkpoint file or export folder.

        Args:
            transformer: where stage 2 is now, if it has moved; its hash is compared with the recorded one. It may be a
                pipeline, whose networks are then used, its detail flow too.
            others: see :meth:`prod9.pipelines.maskgit.MaskGiTPipeline.from_checkpoint`.
        """
        device = torch_device(device)
        loaded = CheckpointManager.load_controlnet(path, device=device)
        config = config_of(loaded, MaskGiTControlNetLightningConfig, overrides=overrides, settings=settings)
        if isinstance(transformer, MaskGiTPipeline):
            generator = transformer.as_base_of(loaded, config)
        else:
            opened = CheckpointManager.open_recorded(loaded, "transformer", path=transformer)
            generator = MaskGiTPipeline.from_checkpoint(
                opened,
                device=device,
                autoencoder=autoencoder or config.inputs.autoencoder,
                settings=config,
                detail=None,
            )
            generator.find_detail(detail, loaded.path, opened)
        return cls._of_loaded(loaded, config.control, generator)

    @property
    def condition_type(self) -> str:
        """The parts of the condition: ``mask``, ``label`` or ``both``."""
        return self.controlnet.condition_type

    @property
    def needs_seg(self) -> bool:
        """Whether a segmentation is part of the condition."""
        return self.controlnet.condition_type != "label"

    @property
    def source_modalities(self) -> tuple[str, ...]:
        """None: an in-context base takes source volumes itself."""
        return ()

    @torch.inference_mode()
    def sample_tokens(
        self,
        condition: Any,
        *,
        segs: np.ndarray | None,
        labels: Sequence[int],
        seeds: Sequence[int],
        report: Share | None = None,
        **arguments: Any,
    ) -> torch.Tensor:
        """Return int64 tokens ``[B h w d]`` for a condition of the base under control.

        Args:
            condition: of B samples.
            segs: uint8 ``[B H W D]`` on the grid; None with condition type ``label``.
            labels: class of each sample.
            seeds: one per sample.
            report: see :meth:`MaskGiTPipeline.sample_tokens`.
            arguments: see there.

        Raises:
            ValueError: without ``segs`` where the condition has them.
        """
        wanted = self.controlnet.condition_type
        if self.needs_seg and segs is None:
            raise ValueError(f"segs: expected segmentations for a control network of {wanted!r}, got None.")
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

    def sample_label(
        self,
        label: int,
        *,
        segs: np.ndarray | None,
        seeds: Sequence[int],
        images: np.ndarray | None = None,
        report: Share | None = None,
    ) -> torch.Tensor:
        """Return int64 tokens ``[B h w d]`` of the class ``label`` under control.

        Args:
            label: the class.
            segs: segmentations uint8 ``[H W D]``, canonical labels; None without any.
            seeds: one for each sample.
            images: refused unless None: this family takes none.
            report: called with the share done.
        """
        if images is not None:
            raise ValueError("images: expected None for a control network of tokens, got some.")
        labels = [label] * len(seeds)
        condition = MaskGiTCondition(torch.tensor(labels), covariates=self.generator.covariates_of(seeds))
        return self.sample_tokens(condition, segs=segs, labels=labels, seeds=seeds, report=report)

    def check(self, label: str, has_seg: bool, has_images: bool = False) -> None:
        """Refuse with a ConfigError what cannot be generated, before anything is computed."""
        if self.generator.kind != "label_conditional":
            raise ConfigError(
                f"model: expected control of a model of kind 'label_conditional' to generate from a label, got one of "
                f"kind {self.generator.kind!r}, which needs source volumes too; name a stage-3 run on a "
                "stage2_label model."
            )
        super().check(label, has_seg, has_images)
