"""Feature extractors by the names of ``--extractor``, and autoencoders from runs, checkpoints and exports."""

from typing import Any

import torch
from torch import Tensor, nn

from prod9.autoencoder.padding import pad_to_multiple
from prod9.evaluation.judges.classifier import ModalityClassifier
from prod9.evaluation.judges.features import (
    AutoencoderFeatures,
    ClassifierFeatures,
    RandomFeatures,
    SliceExtractor,
)
from prod9.evaluation.judges.file_features import load_file_features
from prod9.models.checkpoint_manager import CheckpointManager, Loaded, Source
from prod9.stages import STAGES, stage_named

KINDS = ("random", "autoencoder", "classifier")
FIRST_STAGES = tuple(name for name, stage in STAGES.items() if stage.number == 1)


def load_extractor(
    name: str, *, autoencoder: Source | None, classifier: ModalityClassifier | None, device: torch.device
) -> SliceExtractor:
    """Return the extractor called ``name`` on ``device``.

    Args:
        name: one of ``KINDS``, or ``file:PATH``.
        autoencoder: run folder, checkpoint or export of a stage 1; needed for ``autoencoder``.
        classifier: needed for ``classifier``.
        device: where features are computed.
    """
    if name == "random":
        extractor = RandomFeatures(seed=0)
        extractor.network.to(device)
        return extractor
    if name == "classifier":
        assert classifier is not None
        return ClassifierFeatures(classifier.to(device))
    if name == "autoencoder":
        assert autoencoder is not None
        opened = CheckpointManager.open(autoencoder, stage=FIRST_STAGES)
        network = load_autoencoder(opened, device=device).network
        return AutoencoderFeatures(_PaddedEncoder(network.eval().requires_grad_(False)))
    return load_file_features(name.removeprefix("file:"))


def load_autoencoder(model: Source, *, device: torch.device) -> Loaded[Any]:
    """Return the autoencoder that ``model`` is or builds on, whichever stage and family it belongs to."""
    opened = CheckpointManager.open(model)
    stage = stage_named(opened.header["stage"])
    if stage.family == "maisi":
        if stage.number == 1:
            return CheckpointManager.load_autoencoder(opened, stage="maisi_vae", device=device)
        return CheckpointManager.load_vae(opened, device=device)
    if stage.number == 1:
        return CheckpointManager.load_autoencoder(opened, device=device)
    return CheckpointManager.load_upstream(opened, device=device)


class _PaddedEncoder:
    """An autoencoder that takes volumes of any size."""

    def __init__(self, network: Any) -> None:
        self.network: nn.Module = network
        self._multiple = int(network.downsampling_factor)

    def encode(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Encode ``x`` after padding it with background to a size that the network takes."""
        return self.network.encode(pad_to_multiple(x, self._multiple))  # pyrefly: ignore[not-callable]

    def state_dict(self) -> dict[str, Any]:
        """Return the network's weights."""
        return self.network.state_dict()
