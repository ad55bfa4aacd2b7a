"""Finds and loads the refiner of a translator."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prod9.errors import CheckpointError
from prod9.generator.refiner import Refined, Refiner
from prod9.models.checkpoint_manager import CheckpointManager, Source
from prod9.models.checkpoint_places import places_beside as places_beside
from prod9.pipelines.maskgit import MaskGiTPipeline

log = logging.getLogger("prod9")


@dataclass(frozen=True, eq=False)
class LoadedRefiner:
    """A refiner that ``TranslationPipeline`` can call. sha256: of its file."""

    network: Refiner
    sha256: str

    @torch.inference_mode()
    def __call__(
        self,
        decoded: Tensor,
        sources: Tensor,
        present: Tensor,
        target_label: Tensor,
        head: Tensor | None = None,
    ) -> Refined:
        """Return the refined target and its expected error, float32.

        Args:
            decoded: ``[B 1 H W D]``.
            sources: ``[B num_classes H W D]``, zeros where ``present`` is False.
            present: bool ``[B num_classes]``.
            target_label: int64 ``[B]``.
            head: bool ``[B H W D]``; None for where any source is above 0.
        """
        refined = self.network(decoded, sources, present, target_label, head)
        return Refined(refined.volume.float(), refined.error.float())


def load_refiner(path: Source, generator: MaskGiTPipeline) -> LoadedRefiner:
    """Load the refiner of a run folder, checkpoint file or export folder for the translator ``generator``.

    Raises CheckpointError when it was trained on another translator, or on a model of other modalities.
    """
    loaded = CheckpointManager.load_refiner(path, device=generator.device)
    recorded, used = loaded.header["inputs"]["transformer"]["sha256"], generator.sha256["transformer"]
    if recorded != used:
        raise CheckpointError(
            f"{loaded.path}: expected the refiner of the translator in use ({used[:12]}…), got that of another "
            f"({recorded[:12]}…), whose errors it corrects. Train a refiner for this one, or pass "
            "--no-refine."
        )
    if loaded.header["data"]["label_map"] != generator.label_map:
        raise CheckpointError(
            f"{loaded.path}: expected the labels {generator.label_map} of the translator, got "
            f"{loaded.header['data']['label_map']}; train it again with the same data.label_map."
        )
    return LoadedRefiner(loaded.network, loaded.sha256)


def find_refiner(model: Source, generator: MaskGiTPipeline) -> LoadedRefiner | None:
    """Load the refiner that lies beside a translator; None where there is none that fits it.

    For a run or an export folder ``RUN`` it is looked for in ``RUN_refiner`` and ``RUN/refiner``.
    """
    for place in places_beside(Path(model)):
        if not place.is_dir():
            continue
        try:
            return load_refiner(place, generator)
        except CheckpointError as error:
            log.warning("%s Going on without a refiner.", error)
    return None
