"""The recipe of the refiner: from a decoded translation and its sources to the scan."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prod9.config.schema import RefinerConfig
from prod9.models.checkpoint_manager import Opened
from prod9.models.checkpoint_places import find_recorded
from prod9.models.factory import ModelFactory
from prod9.training.algorithms.base import Losses
from prod9.training.algorithms.refiner_trainer import RefinerInputs, RefinerTrainer
from prod9.training.algorithms.tally import Tally
from prod9.training.batches import RefinerBatch
from prod9.training.data.module import AbstractDataModule
from prod9.training.data.refiner import BraTSRefinerDataModule
from prod9.training.recipes.base import AbstractRecipe, Draws, Encoding, Panel, Samples, as_array
from prod9.training.recipes.headline import Headline, Yardstick
from prod9.training.recipes.translator import Translator, load_translator


class RefinerRecipe(AbstractRecipe[RefinerConfig, Translator, RefinerBatch]):
    """Stage ``refiner``."""

    monitor = ("val/psnr_fitted", "max")
    metrics = (
        "psnr", "psnr_fitted", "ssim", "psnr_fitted_decoded", "psnr_fitted_sources", "expected_error", "error",
    )  # fmt: skip
    headline = Headline(
        text="translation {value} dB inside the brain (PSNR after fitting brightness and contrast)",
        metric="psnr_fitted",
        digits=1,
        yardsticks=(
            Yardstick(text="it had {value} dB before the refiner", metric="psnr_fitted_decoded"),
            Yardstick(text="the refiner has {value} dB from the sources alone", metric="psnr_fitted_sources"),
        ),
    )
    convolutional = True
    algorithm: RefinerTrainer

    def __init__(self, config: RefinerConfig, bases: Translator | None = None) -> None:
        super().__init__(config, bases)
        self.refiner = ModelFactory.create_refiner(config.model)
        self.algorithm = RefinerTrainer(refiner=self.refiner, **config.loss.kwargs())

    @staticmethod
    def load_bases(config: RefinerConfig, opened: Opened | None = None) -> Translator:
        """Load the translator of ``inputs.transformer``."""
        return load_translator(config, opened=opened)

    @classmethod
    def data_module(cls, config: RefinerConfig, bases: Translator, encoding: Encoding) -> AbstractDataModule:
        """Return the translations of ``config``."""
        return BraTSRefinerDataModule(config, translator=replace(bases, device=encoding.device))

    def networks(self) -> dict[str, nn.Module]:
        """Return the refiner."""
        return {"refiner": self.refiner}

    def architecture(self) -> dict[str, Any]:
        """Return what rebuilds the refiner."""
        return {"refiner": self.config.model.model_dump(mode="json")}

    def inputs(self) -> dict[str, dict[str, str]]:
        """Return where the translator is and its hash."""
        return {"transformer": self.describe(self.bases.opened)}

    def kept_inputs(self) -> dict[str, Path]:
        """Return the translator and what that builds on, which this run does not name."""
        opened = self.bases.opened
        below = {name: find_recorded(opened.path, opened.header, name) for name in opened.header["inputs"]}
        return super().kept_inputs() | {name: path for name, path in below.items() if path is not None}

    def losses(self, batch: RefinerBatch, *, step: int, generator: torch.Generator) -> Losses:
        """Return the losses of refined translations against the scans that were held back."""
        del step
        return self.algorithm.compute_losses(
            inputs_of(batch), batch["target"], generator=generator, region=batch["region"]
        )

    def tally(self, batch: RefinerBatch, index: int, draws: Draws) -> Tally:
        """Count what adds to the scores of refined translations of held-out patients, and of either input alone."""
        del index, draws
        self.keep_example(batch)
        return self.algorithm.tally(inputs_of(batch), batch["target"])

    @torch.no_grad()
    def samples(self, count: int, draws: Draws) -> Samples:
        """Return held-out translations: sources, as decoded, refined, the scan, and the expected error."""
        del draws
        names = {label: name for name, label in self.config.data.label_map.items()}
        rows = []
        for batch in self.examples[:count]:
            inputs, target = inputs_of(batch), names[int(batch["label"][0])]
            sources = [
                Panel(names[label], as_array(inputs.sources[:, [label]]))
                for label in inputs.present[0].nonzero()[:, 0].tolist()
            ]
            refined = self.algorithm.refine(inputs)
            results = {
                "decoded": inputs.decoded,
                "refined": refined.volume,
                "scan": batch["target"],
                "expected error x 3": refined.error * 3,
            }
            rows.append([*sources, *(Panel(f"{target}, {name}", as_array(x)) for name, x in results.items())])
        return Samples(rows)


def inputs_of(batch: RefinerBatch) -> RefinerInputs:
    """Return what the refiner reads of a batch."""
    return RefinerInputs(
        decoded=batch["decoded"],
        sources=batch["sources"],
        present=batch["present"],
        target_label=batch["label"],
        head_voxels=batch.get("head_voxels"),
    )
