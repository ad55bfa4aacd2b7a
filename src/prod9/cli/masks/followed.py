"""The segmentations that patients follow: given ones, or one drawn for each patient."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, overload

from prod9.cli.generate.outputs import Inputs, digest_of
from prod9.cli.masks.drawing import Drawing
from prod9.errors import ConfigError

if TYPE_CHECKING:
    from prod9.pipelines.segmentation import PlacedSegmentation

AUTO = Path("auto")
"""Instead of a file: each segmentation is drawn."""


def is_automatic(
    seg: Sequence[Path] | None, masks: str | None, training: Path | None, label_scheme: str
) -> bool:
    """Return whether segmentations are drawn; ConfigError where the options about that do not go together.

    Args:
        seg: ``--seg``.
        masks: ``--draw-masks``.
        training: ``--training``.
        label_scheme: ``--label-scheme``.
    """
    automatic = AUTO in (seg or ())
    if automatic and len(seg or ()) > 1:
        raise ConfigError("--seg: expected auto alone or files, got both; leave one out")
    if automatic and masks is None:
        raise ConfigError(
            "--draw-masks: expected the model that draws the segmentations of --seg auto, got none; name one, for "
            "example --draw-masks runs/masks_stage2"
        )
    if automatic and label_scheme != "auto":
        raise ConfigError(
            f"--label-scheme: expected none with --seg auto, whose labels are known, got {label_scheme}; leave it out"
        )
    for option, given in (("--draw-masks", masks), ("--training", training)):
        if given is not None and not automatic:
            raise ConfigError(
                f"{option}: expected --seg auto with it, got no such option; add it, or leave {option} out"
            )
    return automatic


class Followed(Sequence["PlacedSegmentation"]):
    """Segmentations on the grid of a model, one for each patient in turn."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the settings of the output folder say of where they come from."""
        return {}

    @abstractmethod
    def inputs(self, index: int) -> Inputs:
        """Return what the files of patient ``index`` are made from."""

    @abstractmethod
    def source(self, index: int) -> str:
        """Return where the segmentation of patient ``index`` comes from, for the manifest."""

    @abstractmethod
    def at(self, index: int) -> "PlacedSegmentation":
        """Return segmentation ``index``, from 0."""

    @overload
    def __getitem__(self, index: int) -> "PlacedSegmentation": ...

    @overload
    def __getitem__(self, index: slice) -> "Sequence[PlacedSegmentation]": ...

    def __getitem__(self, index: int | slice) -> "PlacedSegmentation | Sequence[PlacedSegmentation]":
        """Return one segmentation, or several."""
        if isinstance(index, slice):
            return [self.at(k) for k in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.at(index)


class GivenSegmentations(Followed):
    """Those of files. names: of the files. segs: their content."""

    def __init__(self, names: Sequence[str], segs: "Sequence[PlacedSegmentation]") -> None:
        self._names, self._segs = names, segs
        self._inputs: list[Inputs] = [
            {"segmentation": {"sha256": digest_of(seg.seg, seg.affine)}} for seg in segs
        ]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._segs)

    def at(self, index: int) -> "PlacedSegmentation":
        """Return segmentation ``index``."""
        return self._segs[index]

    def inputs(self, index: int) -> Inputs:
        """Return the hash of the segmentation that the patient follows; nothing without any."""
        return self._inputs[index % len(self._inputs)] if self._inputs else {}

    def source(self, index: int) -> str:
        """Return the name of the file that the patient follows."""
        return self._names[index % len(self._names)]


class DrawnSegmentations(Followed):
    """Masks that a model draws when they are asked for: mask k depends on the seed and k alone.

    Args:
        drawing: the model.
        num: of the patients.
        place: brings a file to the grid of the patients.
    """

    def __init__(self, drawing: Drawing, num: int, place: "Callable[[Path], PlacedSegmentation]") -> None:
        self._drawing, self._num, self._place = drawing, num, place
        self._last: tuple[int, PlacedSegmentation] | None = None

    def __len__(self) -> int:
        """Return how many there are: one for each patient."""
        return self._num

    def at(self, index: int) -> "PlacedSegmentation":
        """Return mask ``index``, drawn unless it was the last one."""
        if self._last is None or self._last[0] != index:
            self._last = index, self._drawn(index)
        return self._last[1]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return the model of masks and what decides what it draws."""
        return {"masks": self._drawing.settings}

    def inputs(self, index: int) -> Inputs:
        """Return nothing: the settings name the model, and the index says the rest."""
        del index
        return {}

    def source(self, index: int) -> str:
        """Return which mask of which model it is."""
        return f"drawn, mask {index} of seed {self._drawing.seed}"

    def _drawn(self, index: int) -> "PlacedSegmentation":
        import numpy as np

        from prod9 import volumes

        (mask,) = self._drawing.masks([index])
        with TemporaryDirectory() as folder:  # files are how a segmentation comes to a grid
            path = Path(folder) / f"mask_{index:04d}_seg.nii.gz"
            volumes.write(path, mask.labels, mask.lesion.affine, dtype=np.uint8)
            return self._place(path)
