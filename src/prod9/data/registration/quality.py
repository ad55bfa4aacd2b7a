"""Pictures of preprocessed cases, one page for all: edges of the atlas over every scan."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.ndimage as ndi

from prod9.data.registration.atlas import Atlas
from prod9.data.registration.geometry import Array
from prod9.data.registration.record import CaseRecord
from prod9.files import atomic_write
from prod9.html.page import data_uri, encode_png, render

PICTURE = "quality.png"
PAGE = "preprocess.html"
_SIDE = 190
_BRAIN_EDGE = (255, 140, 0)
_INNER_EDGE = (0, 200, 255)
_TISSUE_EDGE = 0.55
"""Value of the atlas (1 is white matter) that divides the fluid of ventricles and furrows from tissue."""
_WORDS = {
    "atlas": "atlas", "atlas_sha256": "SHA-256 of the atlas", "stripping": "stripping",
    "reference": "--reference", "seg_on": "--seg-on", "spacing_mm": "voxel size, mm",
}  # fmt: skip
"""Settings as the page names them; an empty one was chosen for each case."""


def write_picture(folder: Path, images: Mapping[str, Array], atlas: Atlas) -> None:
    """Write ``quality.png``: a named row per scan, three planes through the atlas's brain, with the atlas's edges."""
    scan, brain = atlas.on_grid()
    centre = [round(float(place)) for place in np.argwhere(brain).mean(axis=0)]
    smooth = ndi.gaussian_filter(
        scan / max(float(np.percentile(scan[brain], 98)), 1e-6), 1 / atlas.affine[0, 0]
    )
    depth = max(1, round(4 / atlas.affine[0, 0]))
    inner = np.asarray(ndi.binary_erosion(brain, iterations=depth), dtype=bool) & (smooth < _TISSUE_EDGE)
    rows = [_named(_row(image, brain, inner, centre), name) for name, image in images.items()]
    with atomic_write(folder / PICTURE) as temporary:
        temporary.write_bytes(encode_png(np.concatenate(rows)))


def write_page(
    path: Path,
    root: Path,
    cases: Sequence[CaseRecord],
    failures: Mapping[str, str],
    settings: Mapping[str, object],
) -> None:
    """Write the page of all cases: those that failed and why, then each with its figures and its picture.

    Args:
        path: the file to write.
        root: folder that holds one folder a case.
        cases: those that were made.
        failures: message by case.
        settings: what the cases were made with.
    """
    shown = [
        (
            case.case_id,
            [_figures(name, case) for name in case.scans],
            data_uri(Path(root, case.case_id, PICTURE).read_bytes()),
        )
        for case in cases
    ]
    text = render(
        "prod9.data.registration",
        "quality.html.jinja",
        brand="prod9 data preprocess",
        title=root.name,
        settings=[
            (_WORDS.get(name, name), "by case" if value in (None, "") else value)
            for name, value in settings.items()
        ],
        failures=list(failures.items()),
        cases=shown,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _figures(name: str, case: CaseRecord) -> tuple[str, ...]:
    scan = case.scans[name]
    moved = np.asarray(scan.to_reference)
    angle = np.rad2deg(np.arccos(np.clip((np.trace(moved[:3, :3]) - 1) / 2, -1, 1)))
    centre = np.asarray(scan.affine) @ [*(np.asarray(scan.shape) - 1) / 2, 1]
    shift = float(np.linalg.norm((moved @ centre - centre)[:3]))
    first = name == case.reference
    return (
        name,
        "reference" if first else f"{angle:.1f}°, {shift:.1f} mm",
        "-" if first else f"{scan.overlap:.0%}",
        f"{scan.information[0]:.2f} → {scan.information[1]:.2f}",
    )


def _row(image: Array, brain: Array, inner: Array, centre: Sequence[int]) -> Array:
    """Return one scan's three planes side by side, uint8 [h w 3]."""
    inside = image[image > 0]
    bright = float(np.percentile(inside, 99)) if inside.size else 1.0
    planes = []
    for axis in (2, 1, 0):
        grey, outline, edges = (
            _enlarged(volume.take(centre[axis], axis)) for volume in (image, brain, inner)
        )
        picture = np.repeat((np.clip(grey / bright, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)
        for mask, colour in ((edges, _INNER_EDGE), (outline, _BRAIN_EDGE)):
            region = mask > 0.5
            picture[region & ~np.asarray(ndi.binary_erosion(region), dtype=bool)] = colour
        planes.append(picture)
    return np.concatenate(planes, axis=1)


def _named(picture: Array, name: str) -> Array:
    """Return a row with the name of its modality in the upper left corner."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((6, 4), name, fill=(255, 255, 255))
    return np.asarray(image)


def _enlarged(plane: Array) -> Array:
    """Return a slice, up at the top, scaled so that its longer side fills the picture, on black."""
    scale = _SIDE / max(plane.shape)
    scaled = np.asarray(ndi.zoom(plane.astype(np.float32), scale, order=1))
    framed = np.zeros((_SIDE, _SIDE), np.float32)
    image = np.flipud(scaled.T)[:_SIDE, :_SIDE]
    top, left = (_SIDE - image.shape[0]) // 2, (_SIDE - image.shape[1]) // 2
    framed[top : top + image.shape[0], left : left + image.shape[1]] = image
    return framed
