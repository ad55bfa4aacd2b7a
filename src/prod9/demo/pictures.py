"""The demo's pictures, drawn from the volumes and scores that its stages left.

All patients are simulated, and every picture says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prod9.demo import removal
from prod9.demo.control import MODALITIES, WITHOUT
from prod9.demo.masks import DemoMasks, draw_picture
from prod9.demo.patients import draw_made
from prod9.demo.scores import Metrics
from prod9.demo.sets import Autoencoder, VolumeSet, reconstruct, show_best
from prod9.evaluation.report.pictures import (
    CONTROL,
    GENERATED,
    LATER,
    MADE,
    MASKS,
    MONTAGE,
    PICTURES,
    REMOVAL,
    TRANSLATION,
)
from prod9.evaluation.translation import TranslationSet, paired_row
from prod9.measures.figures import Panel, Row, write_figure
from prod9.measures.montage import Cell, write_gallery, write_montage
from prod9.measures.slices import View, widest_slice, widest_slices
from prod9.volumes import read

_TARGETS = ("FLAIR", "T1ce", "T2", "T1")
"""In the order in which a target is shown: lesions stand out most in the first."""


@dataclass(frozen=True, kw_only=True)
class DemoPictures:
    """What the pictures of a demo are made of.

    Attributes:
        output_dir: where they go.
        run_dir: where the stages left their volumes.
        held_out: volumes of patients that no stage was trained on.
        label_map: class of each modality.
        view: voxel size and convention.
    """

    output_dir: Path
    run_dir: Path
    held_out: VolumeSet
    label_map: Mapping[str, int]
    view: View

    @property
    def cohort(self) -> str:
        """What every picture says of its patients."""
        size = " × ".join(f"{mm:g}" for mm in dict.fromkeys(self.view.spacing or ()))
        patients = len(self.held_out.patients.unique())
        return f"Simulated patients, {size} mm voxels; {patients} were held out from training. No real scan is shown."

    def draw(self, stages: Metrics, removed: Metrics) -> None:
        """Draw what there are volumes for, and delete pictures of stages that are no longer part of the demo."""
        gone = [picture for name, picture in LATER.items() if name not in stages]
        for picture in (*PICTURES[:3], *gone):
            (self.output_dir / picture.file).unlink(missing_ok=True)
        if "translation" in stages:
            self._draw_translation(stages["translation"])
        if "control" in stages:
            self._draw_control(stages["control"])
        if removed:
            self._draw_removal(removed)

    def draw_overview(self, autoencoder: Autoencoder, generated: Tensor, labels: Tensor) -> None:
        """Draw the montage and one axial slice of every generated volume ``[N 1 H W D]`` of classes ``labels [N]``."""
        rows = []
        for name, label in self.label_map.items():
            own = self.held_out.of(label)
            k = show_best(own) or 0
            real, at = own.volumes[k : k + 1], widest_slices(own.lesions[k, 0].numpy(), own.volumes.shape[2:])
            rows.append([
                Cell(f"{name}, held-out scan", _array(real[0]), at),
                Cell("reconstructed by stage 1", _array(reconstruct(autoencoder, real)[0]), at),
                *(Cell(f"generated {j}", _array(v)) for j, v in enumerate(generated[labels == label][:2])),
            ])  # fmt: skip
        title = f"{MONTAGE.title}: where the lesion is widest, generated ones in the middle. {self.cohort}"
        write_montage(self.output_dir / MONTAGE.file, rows, title=title, view=self.view)
        gallery = [
            (n, [_array(volume) for volume in generated[labels == k]]) for n, k in self.label_map.items()
        ]
        title = f"{GENERATED.title}. {self.cohort}"
        write_gallery(self.output_dir / GENERATED.file, gallery, view=self.view, title=title)

    def draw_masks(self, masks: DemoMasks) -> None:
        """Draw masks of a model beside those of training patients."""
        draw_picture(masks, self.output_dir / MASKS.file, view=self.view, cohort=self.cohort)

    def draw_patients(self, folder: Path, dice: Sequence[float]) -> None:
        """Draw the patients in ``folder``, which follow drawn masks; dice: of what a segmenter finds in each."""
        draw_made(folder, self.output_dir / MADE.file, dice=dice, view=self.view)

    def _draw_translation(self, scores: Metrics) -> None:
        target = next((name for name in _TARGETS if name in scores), None)
        if target is None:
            return
        own = self.held_out.of(self.label_map[target])
        k = show_best(own) or 0
        sources = {
            name: self.held_out.of(n).volumes[k, 0] for name, n in self.label_map.items() if name != target
        }
        made = torch.from_numpy(read(self.run_dir / "translation" / f"{target}_{k:04d}.nii.gz").data)
        truth, lesions = own.volumes[k : k + 1], own.lesions[k : k + 1]
        row = paired_row(
            made[None, None], TranslationSet(torch.stack(list(sources.values()))[None], truth, lesions)
        )
        caption = f"PSNR in the brain {row['psnr_brain_fitted']:.1f} dB, SSIM {row['ssim_brain_fitted']:.2f}"
        if "psnr_tumour_fitted" in row:
            caption += f"\nPSNR in the tumour {row['psnr_tumour_fitted']:.1f} dB"
        panels = [Panel(title=f"{name}, given", volume=volume.numpy()) for name, volume in sources.items()]
        panels += [
            Panel(title=f"{target}, made from these", volume=made.numpy(), caption=caption),
            Panel(title=f"{target}, the truth", volume=_array(truth[0])),
        ]
        index = widest_slice(_array(lesions[0]), truth.shape[2:])
        write_figure(
            self.output_dir / TRANSLATION.file,
            [Row(panels=panels, index=index)],
            view=self.view,
            title=f"A missing {target} made from {', '.join(sources)}",
            notes=[
                f"Axial slice {index + 1} of {truth.shape[4]}, where the tumour is widest. {self.cohort}",
                *_translation_notes(scores),
            ],
        )

    def _draw_control(self, scores: Metrics) -> None:
        folder, rows = self.run_dir / "control", []
        for name in MODALITIES:
            own = self.held_out.of(self.label_map[name])
            ill = own.lesions.flatten(1).any(1)
            areas = own.lesions[ill, 0].sum((1, 2)).amax(1)
            k = int(areas.argmax())
            seg = own.segs[ill][k, 0].numpy()
            made, without = (read(folder / f"{prefix}{name}_{k:04d}.nii.gz").data for prefix in ("", WITHOUT))
            dice = {kind: values[k] for kind, values in scores[name]["cases"].items()}
            panels = [
                Panel(title=f"{name}: segmentation given", volume=_array(own.volumes[ill][k]), labels=seg,
                      caption="laid over the patient's own scan,\nwhich the model does not see"),
                Panel(title="generated under it", volume=made),
                Panel(title="the same with its outline", volume=made, outline=seg,
                      caption=f"Dice with what was asked {dice['controlled']:.2f}"),
                Panel(title="the same draw without control", volume=without, outline=seg,
                      caption=f"Dice {dice['base']:.2f}"),
            ]  # fmt: skip
            rows.append(Row(panels=panels, index=widest_slice(seg, seg.shape)))
        interval = scores["intervals"]["dice_whole_tumour"]
        over = f" (95% interval {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        write_figure(
            self.output_dir / CONTROL.file,
            rows,
            view=self.view,
            title="A tumour made where a segmentation asks for it",
            outline_name="outline of the segmentation given",
            notes=[
                f"Slices where the tumour is widest. {self.cohort}",
                f"Dice is that of a segmenter trained on other scans. Mean over {scores['patients']} held-out "
                f"patients: {scores['dice_whole_tumour']:.2f}{over}; without control "
                f"{scores['dice_whole_tumour_base']:.2f}; in reconstructions of the patients' own scans "
                f"{scores['dice_whole_tumour_reconstructions']:.2f}.",
            ],
        )

    def _draw_removal(self, scores: Metrics) -> None:
        folder, rows = self.run_dir / "removal", []
        region = read(folder / removal.REGION).data
        index = widest_slice(region, region.shape)
        mm = self.view.size(0)
        margin = removal.margin_voxels(mm)
        for name, row in scores.items():
            scan, made = (read(folder / f"{name}_{word}.nii.gz").data for word in ("scan", "removed"))
            panels = [
                Panel(title=f"{name}, held-out scan", volume=scan),
                Panel(
                    title="region to draw again",
                    volume=scan,
                    outline=region,
                    caption=_contrast(row["contrast"]),
                ),
                Panel(title="tumour removed", volume=made, caption=_contrast(row["contrast_removed"])),
            ]
            rows.append(Row(panels=panels, index=index))
        write_figure(
            self.output_dir / REMOVAL.file,
            rows,
            view=self.view,
            title="A tumour removed by drawing its region again",
            outline_name=f"region: the tumour and {margin * mm:g} mm around it",
            notes=[
                f"Slice {index + 1} of {region.shape[2]}, where the region is widest. {self.cohort}",
                "Outside of the region every voxel is that of the scan. The numbers are means of intensities, 0 to 1.",
            ],
        )


def _translation_notes(scores: Metrics) -> list[str]:
    """Return the means over held-out patients, beside those of linear regression."""
    parts = []
    for name, row in scores.items():
        ends = row.get("intervals", {}).get("psnr_brain_fitted")
        interval = f" ({ends[0]:.1f} to {ends[1]:.1f})" if ends else ""
        parts.append(
            f"{name} {row['psnr_brain_fitted']:.1f} dB{interval}, regression {row['regression_psnr_brain_fitted']:.1f}"
        )
    patients = next(iter(scores.values()))["patients"]
    return [
        f"PSNR in the brain over {patients} held-out patients (95% interval), beside linear regression on the same "
        "sources; brightness and contrast of the whole brain are fitted:",
        "; ".join(parts) + ".",
    ]


def _contrast(value: float | None) -> str:
    return "" if value is None else f"region minus its mirror image {value:+.2f}"


def _array(volume: Tensor) -> np.ndarray:
    return volume[0].to(torch.float32).numpy()
