"""Small pictures of volumes for the page of a check: planes of one volume, or one slice of all scans of a case."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prod9.html.labels import rgb

SIDE = 96
_MIX = 0.55


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """An axial slice of every scan of a case, or three planes of its only one.

    Attributes:
        names: what the squares of ``grey`` show, from left to right.
        grey: uint8 ``[96 W]``.
        labels: canonical labels of the slice, uint8 ``[96 96]``, or None.
    """

    names: tuple[str, ...]
    grey: np.ndarray
    labels: np.ndarray | None = None

    @property
    def picture(self) -> np.ndarray:
        """RGB, uint8 ``[96 W 3]``, with the last scan once more under the labels, if there are any."""
        plain = np.stack([self.grey] * 3, axis=-1)
        if self.labels is None or not self.labels.any():
            return plain
        over = plain[:, -SIDE:].astype(np.float32)
        for label in np.unique(self.labels[self.labels > 0]).tolist():
            colour = np.asarray(rgb(label), dtype=np.float32)
            over[self.labels == label] = (1 - _MIX) * over[self.labels == label] + _MIX * colour
        return np.concatenate([plain, np.rint(over).astype(np.uint8)], axis=1)

    @property
    def titles(self) -> tuple[str, ...]:
        """What each square of the picture shows."""
        marked = self.labels is not None and self.labels.any()
        return (*self.names, *([f"{self.names[-1]} with mask"] if marked else []))


def planes(data: np.ndarray, bright: float) -> np.ndarray:
    """Return the middle axial, coronal and sagittal slices of ``data [H W D]`` in RAS, uint8 ``[96 288]``.

    bright: the intensity that is shown white; 0 is black.
    """
    centre = [side // 2 for side in data.shape]
    middle = [data[:, :, centre[2]], data[:, centre[1], :], data[centre[0], :, :]]
    return np.concatenate([small(np.flipud(plane.T) / max(bright, 1e-6)) for plane in middle], axis=1)


def slices(scans: Mapping[str, tuple[np.ndarray, float]], labels: np.ndarray | None) -> Thumbnail | None:
    """Return the axial slices in which the lesion is widest, or the middle ones; None without scans.

    Args:
        scans: modality → volume ``[H W D]`` in RAS and its brightest intensity.
        labels: canonical labels in RAS, or None; those of another shape than a scan's are left out.
    """
    if not scans:
        return None
    last = list(scans.values())[-1][0].shape
    labels = None if labels is None or labels.shape != last else labels
    share = 0.5
    if labels is not None and labels.any():
        share = (int(np.argmax((labels > 0).sum(axis=(0, 1)))) + 0.5) / last[2]
    grey = [
        small(np.flipud(data[:, :, int(share * data.shape[2])].T) / max(bright, 1e-6))
        for data, bright in scans.values()
    ]
    shown = (
        None if labels is None else _nearest(np.flipud(labels[:, :, int(share * last[2])].T)).astype(np.uint8)
    )
    return Thumbnail(tuple(scans), np.concatenate(grey, axis=1), shown)


def small(plane: np.ndarray) -> np.ndarray:
    """Return ``plane``, 0 to 1, as uint8 [96 96] by nearest neighbours; its longer side fills the picture."""
    return (_nearest(plane).clip(0, 1) * 255).astype(np.uint8)


def _nearest(plane: np.ndarray) -> np.ndarray:
    longest = max(plane.shape)
    rows, columns = (
        np.clip(np.arange(SIDE) * longest // SIDE - (longest - side) // 2, -1, side) for side in plane.shape
    )
    return np.pad(plane, 1)[np.ix_(rows + 1, columns + 1)]
