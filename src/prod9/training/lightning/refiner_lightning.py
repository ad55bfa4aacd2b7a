"""RefinerLightning: trains the refiner of translations."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prod9.config.schema import RefinerConfig
from prod9.models.checkpoint_places import describe_input
from prod9.models.factory import ModelFactory
from prod9.training.algorithms.refiner_trainer import RefinerInputs
from prod9.training.algorithms.tally import Tally
from prod9.training.building import build_refiner_trainer
from prod9.training.lightning.base import AbstractLightning, Batch, Panel, compile_network
from prod9.training.lightning.translator import Translator, load_translator


class RefinerLightning(AbstractLightning):
    """Final adapter of ``stage: refiner``. upstream: the translator, by default that of ``inputs.transformer``."""

    monitor = ("val/psnr_fitted", "max")
    config: RefinerConfig

    def __init__(self, config: RefinerConfig, upstream: Translator | None = None) -> None:
        super().__init__(config)
        opened = (upstream or load_translator(config)).opened
        self._translator = describe_input(opened.path, opened.sha256, Path(config.output_dir))
        self.refiner = ModelFactory.create_refiner(config.model)
        self.algorithm = build_refiner_trainer(config.loss, refiner=self.refiner)
        self.examples: list[Batch] = []
        if config.training.channels_last:
            self.refiner.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
        if config.training.compile:
            compile_network(self.refiner)

    def networks(self) -> dict[str, nn.Module]:
        """Return the refiner."""
        return {"refiner": self.refiner}

    def peak_rates(self) -> list[float]:
        """Return the peak rate of the refiner."""
        return [self.config.training.learning_rate]

    def architecture(self) -> dict[str, Any]:
        """Return what rebuilds the refiner."""
        return {"refiner": self.config.model.model_dump(mode="json")}

    def inputs(self) -> dict[str, dict[str, str]]:
        """Return where the translator is and its hash."""
        return {"transformer": self._translator}

    def optimise(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Step the refiner towards the scans that were held back."""
        losses = self.algorithm.compute_losses(
            inputs_of(batch), batch["target"], generator=generator, region=batch["region"]
        )
        return self.step_on(losses)

    def tally(self, batch: Batch, batch_idx: int) -> Tally:
        """Count what adds to the scores of refined translations of held-out patients, and of either input alone."""
        if len(self.examples) < self.config.callbacks.num_samples:
            self.examples.append(batch)
        return self.algorithm.tally(inputs_of(batch), batch["target"])

    def on_validation_epoch_start(self) -> None:
        """Forget the batches of the last validation."""
        self.examples = []

    @torch.no_grad()
    def sample_validation(self, num_samples: int) -> list[list[Panel]]:
        """Return held-out translations: sources, as decoded, refined, the scan, and the error expected."""
        names = {label: name for name, label in self.config.data.label_map.items()}
        rows = []
        for batch in self.examples[:num_samples]:
            inputs, target = inputs_of(batch), names[int(batch["label"][0])]
            sources = [
                Panel(names[label], _array(inputs.sources[:, label]))
                for label in inputs.present[0].nonzero()[:, 0].tolist()
            ]
            refined = self.algorithm.refine(inputs)
            results = [
                ("decoded", inputs.decoded[:, 0]),
                ("refined", refined.volume[:, 0]),
                ("scan", batch["target"][:, 0]),
                ("expected error x 3", refined.error[:, 0] * 3),
            ]
            rows.append([*sources, *(Panel(f"{target}, {name}", _array(x)) for name, x in results)])
        return rows


def inputs_of(batch: Batch) -> RefinerInputs:
    """Return what the refiner reads of a batch."""
    return RefinerInputs(
        decoded=batch["decoded"],
        sources=batch["sources"],
        present=batch["present"],
        target_label=batch["label"],
    )


def _array(x: Tensor) -> Any:
    return x[0].float().clamp(0.0, 1.0).cpu().numpy()
