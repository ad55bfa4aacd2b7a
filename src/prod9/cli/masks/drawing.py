"""Masks that a model draws: the model, what is asked of it, and the training masks that none may copy."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prod9.cli import shared
from prod9.cli.generate.inputs import find_segmentations
from prod9.cli.generate.outputs import Inputs, OutputFolder
from prod9.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from prod9.data.lesions import Lesion
    from prod9.pipelines.masks.draw import DrawnMask, MaskPipeline


def missing_masks(folder: OutputFolder, num: int, inputs: Callable[[int], Inputs]) -> dict[int, str]:
    """Return number and name of those of ``num`` masks that are of this part and that ``folder`` lacks.

    inputs: what a mask is made from, by its number.
    """
    names = [f"mask_{k:04d}_seg.nii.gz" for k in range(num)]
    mine = [k for k in range(num) if folder.part.owns(k)]
    folder.expect([names[k] for k in mine], of=names)
    return {k: names[k] for k in mine if not folder.is_done(names[k], inputs(k))}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A model of masks with all that decides what it draws.

    Attributes:
        pipeline: the model.
        seed: of mask 0.
        volume_ml: of all lesions; None as in training.
        side: of all lesions; None as in training.
        originals: training masks of which no mask may be a copy.
        label_scheme: what the values of ``originals`` mean.
    """

    pipeline: "MaskPipeline"
    seed: int
    volume_ml: float | None = None
    side: str | None = None
    originals: tuple[Path, ...] = ()
    label_scheme: str = "auto"

    @classmethod
    def of(
        cls,
        model: str,
        *,
        device: "str | torch.device",
        autoencoder: str | None = None,
        changes: Sequence[tuple[str, Any]] = (),
        training: Path | None = None,
        **asked: Any,
    ) -> Self:
        """Load ``model``; ConfigError for one that draws no masks, and for what it cannot be asked.

        Args:
            model: a name or a path.
            device: where to compute.
            autoencoder: where its autoencoder is now, if it has moved.
            changes: to its sampler.
            training: folder of the training masks.
            asked: the other attributes.
        """
        if asked.get("side") not in (None, "left", "right"):
            raise ConfigError(f"--side: expected left or right, got {asked['side']}; choose one.")
        from prod9.cli.generate.run import announce, require_models

        require_models(model, autoencoder)
        originals = () if training is None else tuple(find_segmentations([training]).values())
        announce(model)
        from prod9.pipelines.masks.draw import MaskPipeline

        pipeline = MaskPipeline.from_checkpoint(
            Path(model), device=device, autoencoder=autoencoder, overrides=list(changes), detail=None
        )
        drawing = cls(pipeline=pipeline, originals=originals, **asked)
        pipeline.draw((), seed=drawing.seed, wish=drawing.wish)  # refuses what it cannot do
        return drawing

    @property
    def wish(self) -> Any:
        """What is asked of all masks."""
        from prod9.pipelines.masks.wishes import Wish

        return Wish(volume_ml=self.volume_ml, side=self.side)  # pyrefly: ignore[bad-argument-type]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the content of the masks, for a manifest."""
        from prod9.files import sha256

        known = "".join(sorted(sha256(path) for path in self.originals))
        config = self.pipeline.config
        sampler = {} if config is None else config.sampler.model_dump(mode="json")
        return {
            "sha256": self.pipeline.sha256,
            "seed": self.seed,
            "sampler": sampler,
            **({} if self.volume_ml is None else {"volume_ml": self.volume_ml}),
            **({} if self.side is None else {"side": self.side}),
            **({"no_copy_of": hashlib.sha256(known.encode()).hexdigest()} if known else {}),
            **({} if self.label_scheme == "auto" else {"label_scheme": self.label_scheme}),
        }

    def masks(
        self, indices: Sequence[int], report: Callable[[float], None] | None = None
    ) -> "Iterator[DrawnMask]":
        """Yield the masks numbered ``indices``; report: called with the masks done, fractions included."""
        return self.pipeline.draw(
            indices,
            seed=self.seed,
            wish=self.wish,
            refuse=self._refuse if self.originals else None,
            report=report,
        )

    def fill(self, folder: OutputFolder, num: int) -> Iterator[str]:
        """Write those of ``num`` masks that are of this part and that ``folder`` lacks, and yield their names."""
        import numpy as np

        from prod9 import volumes

        missing = missing_masks(folder, num, lambda index: {})
        with shared.progress() as bar:
            task = bar.add_task("Masks", total=len(missing))
            for mask in self.masks(list(missing), lambda done: bar.update(task, completed=done)):
                name = missing[mask.index]
                noted: dict[str, Any] = {"index": mask.index, "seed": mask.seed, **mask.describe()}
                with folder.writing(name, **noted) as place:
                    volumes.write(place, mask.lesion.labels, mask.lesion.affine, dtype=np.uint8)
                yield name

    def _refuse(self, lesion: "Lesion") -> str | None:
        from prod9.evaluation.masks import COPY, describe, nearest

        one = describe("mask", "mask", lesion)
        if one is None:
            return None
        source, dice = nearest([one], self._known)["mask"]
        return None if dice < COPY else f"a copy of {source} (Dice {dice:.2f})"

    @cached_property
    def _known(self) -> list[Any]:
        from prod9.data.lesions import LesionFile
        from prod9.evaluation.masks import describe

        files = [LesionFile.of(path, label_scheme=self.label_scheme) for path in self.originals]
        found = [describe(str(file.path), file.patient, file.load()) for file in files]
        known = [one for one in found if one is not None]
        if not known:
            raise ConfigError("--training: expected masks with a lesion, got none; name another folder.")
        return known
