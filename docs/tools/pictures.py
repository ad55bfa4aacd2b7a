"""Makes the pictures of the documentation in ``docs/pictures`` from the packaged weights and simulated patients.

``python docs/tools/pictures.py`` makes those of translation and inpainting in a minute; the patients are those of
``prod9 data simulate DIR -n 12 --spacing 3.75 --seed 5``, which the packaged weights (seed 100) never saw.
``--demo outputs/demo`` adds those of what ``prod9 demo`` left (seed 0), with ``--stages control`` also that of control;
the screenshot of its report needs Chromium.
``growth.png`` is drawn by ``benchmarks/growth.py``. Nothing is smoothed or retouched: slices are enlarged by bicubic
interpolation, because at 3.75 mm they are only 60 voxels wide.
"""

import argparse
import io
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

from prod9 import volumes
from prod9.data.simulated.cohort import simulate_cohort
from prod9.pipelines.inpainting import InpaintingPipeline
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.pipelines.placement import align
from prod9.pipelines.translation import TranslationPipeline
from prod9.volumes import VolumeFile

PICTURES = Path(__file__).resolve().parents[1] / "pictures"
WEIGHTS = Path(volumes.__file__).parent / "demo" / "weights"
SEED, PATIENTS, SPACING_MM = 5, 12, 3.75
SHOWN, REMOVED = 6, 10
"""Patients of the two pictures in README; ``translate_all.png`` shows every patient with a tumour."""
FILES = {"T1": "t1n", "T1ce": "t1c", "T2": "t2w", "FLAIR": "t2f", "seg": "seg"}
SOURCES = ("T1", "T1ce", "T2")
TARGET = "FLAIR"
LARGEST_KB = 300
CONTOUR = "#ffb000"
HEADLINE = 0.14
"""Height of the titles, as a share of the width of a panel."""


@dataclass(frozen=True)
class Panel:
    """One axial slice ``[rows columns]`` as radiologists look at it: front up, the patient's right on the left.

    ``white`` is the intensity shown as white, and ``outline`` a region ``[rows columns]`` to draw a line around.
    """

    title: str
    image: np.ndarray
    white: float
    outline: np.ndarray | None = None


def main() -> int:
    """Write the pictures; return 1 if one is larger than README and PyPI should load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, help="folder of a finished `prod9 demo`, for the pictures of it")
    parser.add_argument("--chromium", default="chromium", help="program that takes the screenshot")
    arguments = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    mpl.rcParams["font.family"] = "DejaVu Sans"
    with tempfile.TemporaryDirectory() as folder:
        patients = simulated(Path(folder))
        translated(patients)
        inpainted(patients[REMOVED])
    if arguments.demo:
        from_demo(arguments.demo, arguments.chromium)
    large = [path for path in PICTURES.glob("*.png") if path.stat().st_size > LARGEST_KB * 1000]
    for path in large:
        print(f"{path}: expected at most {LARGEST_KB} KB, got {path.stat().st_size // 1000} KB")
    return bool(large)


def simulated(folder: Path) -> dict[int, dict[str, VolumeFile]]:
    """Simulate the cohort and return the patients with a tumour: number → modality → scan."""
    simulate_cohort(folder, num_subjects=PATIENTS, spacing_mm=SPACING_MM, seed=SEED)
    found = {}
    for number in range(PATIENTS):
        scans = {key: volumes.read(scan_path(folder, number, key)) for key in FILES}
        if scans["seg"].data.any():
            found[number] = scans
    return found


def scan_path(folder: Path, number: int, key: str) -> Path:
    """Return the file of one patient: a modality or ``seg``."""
    name = f"BraTS-GLI-{number:05d}-000"
    return folder / name / f"{name}-{FILES[key]}.nii.gz"


def translated(patients: dict[int, dict[str, VolumeFile]]) -> None:
    """Write ``translate.png`` (one patient) and ``translate_all.png`` (all with a tumour)."""
    pipeline = TranslationPipeline.from_checkpoint(WEIGHTS / "stage2", device="cpu")
    rows = []
    for number, scans in patients.items():
        placed = pipeline.placement.place(align({name: scans[name] for name in SOURCES}))
        made = placed.restore(pipeline.translate(placed.images, TARGET, num_samples=1).mean)
        level = level_of(scans["seg"])
        panels = [panel(f"{name}, given", scans[name], level) for name in SOURCES]
        panels.append(panel(f"{TARGET}, made", replace(scans[TARGET], data=made), level))
        panels.append(panel(f"{TARGET}, true", scans[TARGET], level))
        rows.append(panels)
        if number == SHOWN:
            write(PICTURES / "translate.png", [panels], inches=2.0)
    write(PICTURES / "translate_all.png", rows, inches=1.1, colours=48)


def inpainted(scans: dict[str, VolumeFile]) -> None:
    """Write ``inpaint.png``: T1 and FLAIR of one patient, the region, and what was drawn in it."""
    drawn = InpaintingPipeline(
        generator=MaskGiTPipeline.from_checkpoint(WEIGHTS / "stage2_label", device="cpu")
    )
    tumour, level = scans["seg"].data > 0, level_of(scans["seg"])
    region = replace(scans["seg"], data=binary_dilation(tumour).astype(np.float32))
    panels: list[Panel] = []
    for name in ("T1", TARGET):
        (made,) = drawn.inpaint(scans[name], region, name, num_samples=1)
        after = panel(f"{name}, tumour removed", replace(scans[name], data=made.data), level)
        before = panel(f"{name} and region", scans[name], level, outline=region)
        white = (before.white + after.white) / 2  # one window for both
        panels += [replace(before, white=white), replace(after, white=white)]
    write(PICTURES / "inpaint.png", [panels], inches=2.4)


def from_demo(demo: Path, chromium: str) -> None:
    """Write the pictures that show what the demo left: its volumes, the nearest training scans, its report."""
    shrink(Image.open(demo / "4_montage.png"), PICTURES / "demo_montage.png", width=1200)
    shrink(
        Image.open(demo / "starter" / "audit" / "nearest.png"),
        PICTURES / "nearest.png",
        width=1000,
        colours=128,
    )
    if (control := demo / "2_control.png").exists():
        shrink(Image.open(control), PICTURES / "control.png", width=1000)
    command = [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,1310"]
    graphics = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "report.png"
        page = (demo / "report.html").resolve().as_uri()
        options = [*graphics, "--virtual-time-budget=20000", f"--screenshot={shot}"]
        subprocess.run([*command, *options, page], check=True, capture_output=True, timeout=300)
        shrink(Image.open(shot), PICTURES / "report.png", width=900)


# -- slices -----------------------------------------------------------------------------------------


def level_of(seg: VolumeFile) -> int:
    """Return the axial slice, counted from below, in which the tumour is largest."""
    return int((canonical(seg) > 0).sum((0, 1)).argmax())


def panel(title: str, scan: VolumeFile, level: int, outline: VolumeFile | None = None) -> Panel:
    """Return one axial slice, in a window from 0 to the 99.7% quantile of its head."""
    image = axial(scan, level)
    region = None if outline is None else axial(outline, level) > 0
    return Panel(title, image, white_of(image), region)


def white_of(image: np.ndarray) -> float:
    """Return the 99.7% quantile of what is brighter than the background."""
    return float(np.quantile(image[image > 0.02 * image.max()], 0.997))


def axial(scan: VolumeFile, level: int) -> np.ndarray:
    """Return a slice: rows from front to back, columns from the patient's right to the left."""
    return canonical(scan)[::-1, ::-1, level].T


def canonical(scan: VolumeFile) -> np.ndarray:
    """Return the voxels with axes to the right, to the front and up."""
    image = nib.Nifti1Image(scan.data.astype(np.float32), scan.header.affine)
    return np.asarray(nib.as_closest_canonical(image).dataobj)


# -- files ------------------------------------------------------------------------------------------


def write(path: Path, rows: list[list[Panel]], *, inches: float, colours: int = 256) -> None:
    """Draw rows of panels on black, ``inches`` wide each and all cut to the box that holds every head."""
    panels = [panel for row in rows for panel in row]
    used = np.any([panel.image > 0 for panel in panels], axis=0)
    box = tuple(
        slice(where[0], where[-1] + 1) for where in (used.any(1).nonzero()[0], used.any(0).nonzero()[0])
    )
    height, width = used[box].shape
    tall = len(rows) * height / width + HEADLINE
    figure, axes = plt.subplots(
        len(rows),
        len(rows[0]),
        figsize=(inches * len(rows[0]), inches * tall),
        facecolor="black",
        squeeze=False,
    )
    for place, panel in zip(axes.flat, panels, strict=True):
        place.imshow(panel.image[box], cmap="gray", vmin=0, vmax=panel.white, interpolation="bicubic")
        if panel.outline is not None:
            place.contour(panel.outline[box], levels=[0.5], colors=CONTOUR, linewidths=1.4)
        place.axis("off")
    for place, panel in zip(axes[0], rows[0], strict=True):
        place.set_title(panel.title, color="white", fontsize=5.2 * inches, pad=3)
    figure.subplots_adjust(0, 0, 1, 1 - HEADLINE / tall, wspace=0.02, hspace=0.02)
    content = io.BytesIO()
    figure.savefig(content, dpi=110, facecolor="black")
    plt.close(figure)
    shrink(Image.open(content), path, width=1100, colours=colours)


def shrink(picture: Image.Image, path: Path, *, width: int, colours: int = 256) -> None:
    """Write a picture, at most ``width`` pixels wide, with few colours."""
    picture = picture.convert("RGB")
    if picture.width > width:
        picture = picture.resize(
            (width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS
        )
    picture.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} KB")


if __name__ == "__main__":
    sys.exit(main())
