"""The recipes of detail flows: from a soft volume to the scan, with the noise that is asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from prod9.config.schema import DetailConfig, MaisiDetailConfig, TranslationDetailConfig
from prod9.detail.condition import DetailCondition
from prod9.measures.metrics import foreground
from prod9.measures.noise import noise_level
from prod9.models.checkpoint_manager import Header, Opened
from prod9.models.checkpoint_places import find_recorded
from prod9.models.factory import ModelFactory
from prod9.training.algorithms.base import Losses
from prod9.training.algorithms.detail_trainer import DetailPairs, DetailTrainer
from prod9.training.algorithms.tally import Tally
from prod9.training.batches import DetailBatch
from prod9.training.data.detail import BraTSReconstructionDetailDataModule, BraTSTranslationDetailDataModule
from prod9.training.data.module import AbstractDataModule
from prod9.training.recipes.base import AbstractRecipe, Draws, Encoding, Panel, Samples, as_array
from prod9.training.recipes.headline import Headline, Yardstick
from prod9.training.recipes.reconstructor import Reconstructor, load_reconstructor
from prod9.training.recipes.translator import Translator, load_refined_translator

_HEAD = 0.1
"""Decoded intensities above it count as head in training: a little more than pipelines keep, so that the border is
learnt too."""

C = TypeVar("C", bound=DetailConfig | MaisiDetailConfig | TranslationDetailConfig)
B = TypeVar("B", Reconstructor, Translator)


class AbstractDetailRecipe(AbstractRecipe[C, B, DetailBatch]):
    """What the detail flows have in common. A final class defines what makes the soft volumes.

    The checkpoint keeps how noisy the training scans are, so that generated volumes can be as noisy.
    """

    metrics = (
        "loss", "psnr_fitted", "psnr_fitted_1", "psnr_fitted_soft", "noise", "noise_1", "noise_soft",
        "edges", "edges_1", "edges_soft",
    )  # fmt: skip
    headline = Headline(
        text="error of the predicted velocity {value}",
        metric="loss",
        digits=3,
        also=(Yardstick(text="edges {value} times as strong as in the scans", metric="edges"),),
        yardsticks=(Yardstick(text="soft volumes have edges {value} times as strong", metric="edges_soft"),),
    )
    convolutional = True
    algorithm: DetailTrainer

    def __init__(self, config: C, bases: B | None = None) -> None:
        super().__init__(config, bases)
        self.detail = ModelFactory.create_detail(config.model)
        self.flow = ModelFactory.create_detail_flow(config.flow)
        self.algorithm = DetailTrainer(
            network=self.detail, flow=self.flow, steps=config.sampler.steps, **config.loss.kwargs()
        )
        self.noise: dict[str, list[float]] = {}

    base_key: ClassVar[str]
    """The key of ``inputs`` that names what makes the soft volumes."""

    def networks(self) -> dict[str, nn.Module]:
        """Return the network."""
        return {"detail": self.detail}

    def architecture(self) -> dict[str, Any]:
        """Return what rebuilds the network."""
        return {"detail": self.config.model.model_dump(mode="json")}

    def inputs(self) -> dict[str, dict[str, str]]:
        """Return where the maker of the soft volumes is and its hash."""
        return {self.base_key: self.describe(self.bases.opened)}

    def kept_inputs(self) -> dict[str, Path]:
        """Return that and what it builds on, which this run does not name."""
        opened = self.bases.opened
        below = {name: find_recorded(opened.path, opened.header, name) for name in opened.header["inputs"]}
        return super().kept_inputs() | {name: path for name, path in below.items() if path is not None}

    def inherit(self, header: Header, *, same_run: bool) -> None:
        """Take over the noise of the scans of the same run."""
        if same_run:
            self.noise = header["data"].get("noise", {})

    def prepare(self, data: AbstractDataModule) -> None:
        """Measure the noise of the training scans, once a run."""
        self.noise = self.noise or data.noise_levels()

    def header_data(self) -> dict[str, Any]:
        """Return the levels of noise by modality, quantiles from the least to the greatest."""
        return {"noise": self.noise}

    def losses(self, batch: DetailBatch, *, step: int, generator: torch.Generator) -> Losses:
        """Return the losses of points on the way from soft volumes to scans."""
        del step
        return self.algorithm.compute_losses(self._pairs(batch), generator=generator)

    def tally(self, batch: DetailBatch, index: int, draws: Draws) -> Tally:
        """Count what adds to the scores of held-out volumes; each draws the same noise at every validation."""
        self.keep_example(batch)
        return self.algorithm.tally(self._pairs(batch), generator=draws.for_batch(index))

    @torch.no_grad()
    def samples(self, count: int, draws: Draws) -> Samples:
        """Return held-out volumes: soft, sharp with the noise of the scan and without noise, the scan."""
        names = {label: name for name, label in self.config.data.label_map.items()}
        rows = []
        for index, batch in enumerate(self.examples[:count]):
            told, name = self._pairs(batch).told, names[int(batch["label"][0])]

            def made(told: DetailCondition, index: int = index) -> Tensor:
                generator = draws.for_sample(index)
                return self.flow.sample(self.detail, told, self.config.sampler.steps, generator)

            panels = {
                "soft": told.soft,
                "detailed": made(told),
                "without noise": made(replace(told, noise=torch.zeros_like(told.noise))),
                "scan": batch["target"],
            }
            rows.append([Panel(f"{name}, {title}", as_array(volume)) for title, volume in panels.items()])
        return Samples(rows)

    def _pairs(self, batch: DetailBatch) -> DetailPairs:
        soft, scan = batch["decoded"], batch["target"]
        has_sources = self.config.model.num_sources > 0
        brain = foreground(scan)
        # Where a volume is generated its head is found by this threshold; dark parts inside are filled.
        head = brain | foreground(soft, above=_HEAD)
        if has_sources:
            head = head | (batch["sources"] > 0).any(1, keepdim=True)
        told = DetailCondition(
            soft=soft,
            label=batch["label"],
            noise=noise_level(scan, brain)[:, 0].nan_to_num(0.0),
            head=head,
            sources=batch["sources"] if has_sources else None,
            present=batch["present"] if has_sources else None,
        )
        return DetailPairs(told, scan, batch["clean"], batch["region"])


class ReconstructionDetailRecipe(AbstractDetailRecipe[DetailConfig | MaisiDetailConfig, Reconstructor]):
    """Stages ``detail`` and ``maisi_detail``."""

    base_key = "autoencoder"

    @staticmethod
    def load_bases(config: DetailConfig | MaisiDetailConfig, opened: Opened | None = None) -> Reconstructor:
        """Open the autoencoder of ``inputs.autoencoder``."""
        return load_reconstructor(config, opened=opened)

    @classmethod
    def data_module(
        cls, config: DetailConfig | MaisiDetailConfig, bases: Reconstructor, encoding: Encoding
    ) -> AbstractDataModule:
        """Return the reconstructions of ``config``."""
        reconstructor = replace(bases, device=encoding.device)
        return BraTSReconstructionDetailDataModule(config, reconstructor=reconstructor)


class TranslationDetailRecipe(AbstractDetailRecipe[TranslationDetailConfig, Translator]):
    """Stage ``translation_detail``."""

    base_key = "transformer"

    @staticmethod
    def load_bases(config: TranslationDetailConfig, opened: Opened | None = None) -> Translator:
        """Open the translator of ``inputs.transformer`` with its refiner."""
        return load_refined_translator(config, opened=opened)

    @classmethod
    def data_module(
        cls, config: TranslationDetailConfig, bases: Translator, encoding: Encoding
    ) -> AbstractDataModule:
        """Return the translations of ``config``."""
        return BraTSTranslationDetailDataModule(config, translator=replace(bases, device=encoding.device))

    def header_data(self) -> dict[str, Any]:
        """Return the same, and which refiner had corrected the translations, by its hash."""
        refiner = self.bases.refiner
        return super().header_data() | {"refiner": None if refiner is None else refiner.sha256}
