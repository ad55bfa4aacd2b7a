"""ControlNetLightningMaskGiT: stage 3, a segmentation or a label that steers a trained transformer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.errors import ConfigError
from prod9.evaluation.classifier import ModalityClassifier, train_classifier
from prod9.evaluation.control import contrast_slope
from prod9.evaluation.features import AutoencoderFeatures, extract
from prod9.evaluation.networks import coarsen
from prod9.generator.controlnet_maskgit import ControlCondition
from prod9.generator.token_decoder import AbstractTokenDecoder
from prod9.training.algorithms.controlnet_trainer import ControlNetTrainer
from prod9.training.config import config_from_dict, config_to_dict
from prod9.training.config_schema import (
    FSQModelConfig,
    MaskGiTControlNetLightningConfig,
    TransformerConfig,
)
from prod9.training.lightning.base import Batch, Panel, Unregistered, compile_network
from prod9.training.lightning.conditions import CONDITIONS
from prod9.training.lightning.tokens import AbstractTokenLightning
from prod9.training.model.checkpoint_manager import CheckpointManager, Loaded
from prod9.training.model.model_factory import ModelFactory

_CLASSIFIER_VOLUMES = 64
"""Training volumes that the classifier of the Inception Score is trained on."""


@dataclass(frozen=True)
class ControlUpstream:
    """What stage 3 builds on: the base decoder and the autoencoder whose tokens it speaks."""

    base: Loaded[AbstractTokenDecoder]
    autoencoder: Loaded[AutoencoderFSQ]

    def base_config(self, config: MaskGiTControlNetLightningConfig) -> TransformerConfig:
        """Return the base's config with the data, steps and folders of ``config``: what its samples are."""
        values = config_to_dict(config)
        names = ("output_dir", "seed", "data", "training", "trainer", "sliding_window")
        built = config_from_dict(
            self.base.header["config"],
            source=str(self.base.path),
            overrides=[(name, values[name]) for name in names],
        )
        assert isinstance(built, TransformerConfig)  # load_transformer checked the stage
        return built


@dataclass(frozen=True)
class _Sampled:
    """Volumes ``[1 1 H W D]`` for one held-out segmentation ``[1 H W D]``, on the CPU."""

    title: str
    seg: Tensor
    real: Tensor
    controlled: Tensor
    base: Tensor


class ControlNetLightningMaskGiT(AbstractTokenLightning):
    """Final adapter of ``stage: maskgit_controlnet``.

    The base stays out of the module tree, as the autoencoder does: frozen, neither stored nor averaged.
    A validation samples with and without control for held-out segmentations; see ``on_validation_epoch_end``.
    """

    config: MaskGiTControlNetLightningConfig

    def __init__(
        self, config: MaskGiTControlNetLightningConfig, upstream: ControlUpstream | None = None
    ) -> None:
        upstream = upstream or load_control_upstream(config)
        super().__init__(config, upstream.autoencoder)
        base = upstream.base.network.requires_grad_(False).eval()
        self._base = Unregistered(upstream.base)
        sections = upstream.base.header["architecture"]
        self._condition_of = CONDITIONS[sections["transformer"]["kind"]]
        self.controlnet = ModelFactory.create_controlnet(
            config.model,
            config.condition,
            base=base,
            base_model=upstream.base_config(config).model,
            autoencoder=FSQModelConfig.model_validate(sections["autoencoder"]),
        )
        self._algorithm = Unregistered(
            ModelFactory.create_controlnet_trainer(
                config.loss,
                decoder=base,
                controlnet=self.controlnet,
                scheduler=ModelFactory.create_scheduler(config.masking),
            )
        )
        self._samples: list[_Sampled] = []
        self._classifier: Unregistered[ModalityClassifier] | None = None
        if config.training.compile:
            compile_network(self.controlnet)

    @property
    def base(self) -> AbstractTokenDecoder:
        """The frozen decoder."""
        return self._base.content.network

    @property
    def algorithm(self) -> ControlNetTrainer:
        """The losses and metrics."""
        return self._algorithm.content

    def networks(self) -> dict[str, nn.Module]:
        """Return the control network."""
        return {"controlnet": self.controlnet}

    def inputs(self) -> dict[str, dict[str, str]]:
        """Return where base and autoencoder are, and their hashes."""
        return {"transformer": self.describe(self._base.content), **super().inputs()}

    def architecture(self) -> dict[str, Any]:
        """Return what rebuilds the control network: its sections, and those of what it was copied from."""
        earlier = self._base.content.header["architecture"]
        return {
            "controlnet": self.config.model.model_dump(mode="json"),
            "condition": self.config.condition.model_dump(mode="json"),
            "transformer": earlier["transformer"],
            "autoencoder": earlier["autoencoder"],
        }

    def on_fit_start(self) -> None:
        """Bring autoencoder and base to the device; Lightning does not know them."""
        super().on_fit_start()
        self.base.to(self.device).eval()

    def control(self, batch: Batch) -> ControlCondition:
        """Return what the control network is told about a batch; nothing where a segmentation is missing."""
        wanted = self.config.condition.condition_type
        return ControlCondition(
            seg=None if wanted == "label" else batch["seg"],
            label=None if wanted == "mask" else batch["label"],
            dropped=None if wanted == "label" else ~batch["has_seg"],
        )

    def optimise(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Step the control network on hidden tokens."""
        losses = self.algorithm.compute_losses(
            batch["target_indices"],
            self._condition_of(batch),
            self.control(batch),
            generator=generator,
            foreground=batch["foreground"],
        )
        self.step_with(losses["total"], self.optimizer_list()[0])
        return {name: value.detach() for name, value in losses.items()}

    def evaluate(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return token metrics; sample for the first held-out lesions, here, where averaged weights are."""
        if len(self._samples) < self.config.validation.num_volumes and self._is_worth_sampling(batch):
            self._samples.append(self._sample(batch, batch_idx))
        return self.algorithm.compute_metrics(
            batch["target_indices"],
            self._condition_of(batch),
            self.control(batch),
            generator=self.seeded_generator(batch_idx, 2),
            foreground=batch["foreground"],
        )

    # -- sampling -----------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the samples of the last validation."""
        super().on_validation_epoch_start()
        self._samples = []

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Log what the samples are worth: ``val/fid``, ``val/region_contrast`` and more.

        ``fid``: Fréchet distance to the real volumes of the same segmentations, in features of the
        autoencoder. ``region_contrast``: 1 where classes stand out from the brain as in those volumes, 0
        without trace. ``…_base``: the same of samples without control. With a classifier its
        ``classifier_accuracy`` and the ``inception_score``. Every rank has the same samples.
        """
        super().on_validation_epoch_end()
        self._log_samples("val")

    def on_test_epoch_end(self) -> None:
        """Log the same of the test patients, as ``test/fid`` …"""
        self._log_samples("test")

    def sample_validation(self, num_samples: int) -> list[list[Panel]]:
        """Return segmentation, real volume, and samples with and without control, centred on the lesion."""
        classes = self.config.condition.num_mask_classes
        return [
            [
                Panel(f"{s.title}: segmentation", _centred(s.seg[0].float() / (classes - 1), s.seg[0])),
                Panel("real", _centred(s.real[0, 0], s.seg[0])),
                Panel("with control", _centred(s.controlled[0, 0], s.seg[0])),
                Panel("without", _centred(s.base[0, 0], s.seg[0])),
            ]
            for s in self._samples[:num_samples]
        ]

    def _is_worth_sampling(self, batch: Batch) -> bool:
        return self.config.condition.condition_type == "label" or bool((batch["seg"] > 0).any())

    @torch.no_grad()
    def _sample(self, batch: Batch, batch_idx: int) -> _Sampled:
        """Sample the first of a batch with and without control, from the same random numbers."""
        one = {name: value[:1] for name, value in batch.items()}
        condition, shape = self._condition_of(one), (1, *self.token_grid)
        controlled = self.sampler.sample_with_controlnet(
            self.base,
            shape,
            condition,
            [self.seeded_generator(batch_idx, 3)],
            controlnet=self.controlnet,
            control=self.controlnet.encode(self.control(one)),
            **self.config.control.kwargs(),
        )
        base = self.sampler.sample(self.base, shape, condition, [self.seeded_generator(batch_idx, 3)])
        volumes = [
            torch.from_numpy(self.decode(tokens))[None, None]
            for tokens in (one["target_indices"], controlled, base)
        ]
        return _Sampled(one["modality"][0], one["seg"].cpu(), *volumes)

    def _log_samples(self, part: str) -> None:
        if len(self._samples) < 2:
            return
        seg, real, controlled, base = (
            torch.cat([getattr(sampled, name) for sampled in self._samples])
            for name in ("seg", "real", "controlled", "base")
        )
        features = AutoencoderFeatures(self.wrapper.autoencoder)

        def extractor(volumes: Tensor) -> Tensor:
            return extract(features, volumes.to(self.device), batch_size=1)

        classify = self._trained_classifier(part, real)
        metrics: dict[str, Any] = {}
        for suffix, volumes in (("", controlled), ("_base", base)):
            scores = self.algorithm.compute_sample_metrics(
                volumes, real, extractor=extractor, classify=classify
            )
            scores["region_contrast"] = torch.tensor(contrast_slope(volumes, real, seg))
            metrics |= {f"{part}/{k}{suffix}": v.float() for k, v in scores.items() if v.isfinite()}
        self.log_dict(metrics)

    def _trained_classifier(self, part: str, real: Tensor) -> Any:
        """Return volumes → class probabilities, and log how far it can be trusted; None if not asked for."""
        steps = self.config.validation.classifier_steps
        if not steps:
            return None
        if self._classifier is None:
            self._classifier = Unregistered(self._train_classifier(steps))
        names = self.config.data.label_map
        labels = torch.tensor([names[sampled.title] for sampled in self._samples])
        classifier = self._classifier.content
        self.log(f"{part}/classifier_accuracy", classifier.accuracy(coarsen(real), labels))
        return lambda generated: classifier.probabilities(coarsen(generated))

    def _train_classifier(self, steps: int) -> ModalityClassifier:
        """Train a judge of modalities on what training tokens decode to."""
        samples: Any = self.trainer.datamodule.build_dataset("train")  # pyright: ignore[reportAttributeAccessIssue]
        chosen = np.linspace(0, len(samples) - 1, min(_CLASSIFIER_VOLUMES, len(samples))).astype(int)
        items = [samples[int(index)] for index in chosen]
        volumes = [self.decode(item["target_indices"][None].to(self.device)) for item in items]
        # A validation runs without gradients, and what it makes cannot take part in any.
        with torch.inference_mode(False), torch.enable_grad():
            return train_classifier(
                torch.cat([coarsen(torch.from_numpy(volume)[None, None]) for volume in volumes]),
                torch.stack([item["label"].clone() for item in items]),
                num_classes=self.controlnet.num_labels,
                seed=self.config.seed,
                steps=steps,
            )


def load_control_upstream(config: MaskGiTControlNetLightningConfig) -> ControlUpstream:
    """Load ``inputs.transformer`` and its autoencoder; raises ConfigError when the key is not set."""
    if config.inputs.transformer is None:
        raise ConfigError(
            "inputs.transformer: expected the run folder or checkpoint of a trained transformer, got null; "
            "set it, for example with --set inputs.transformer=outputs/stage2."
        )
    base = CheckpointManager.load_transformer(config.inputs.transformer)
    return ControlUpstream(base, CheckpointManager.load_upstream(base, path=config.inputs.autoencoder))


def _centred(volume: Tensor, seg: Tensor) -> np.ndarray:
    """Return ``volume [H W D]`` moved so that the middle of the lesion is its middle: pictures show that."""
    inside = (seg > 0).nonzero()
    if not len(inside):
        return volume.numpy()
    moved = volume
    for axis, (side, middle) in enumerate(zip(seg.shape, inside.float().mean(0).tolist(), strict=True)):
        shift = side // 2 - round(middle)
        moved = moved.roll(shift, axis)
        edge = slice(None, shift) if shift > 0 else slice(side + shift, None)
        moved.movedim(axis, 0)[edge] = 0.0
    return moved.numpy()
