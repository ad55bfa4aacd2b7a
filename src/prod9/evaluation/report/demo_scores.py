"""The scores of a demo as tables: in words, with intervals, and beside what to compare each with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prod9.evaluation.report.forms import mapping, number
from prod9.evaluation.report.tables import Table
from prod9.evaluation.report.words import spaced, title

_HEAD = ["score", "value", "95% interval", "compare with"]


@dataclass(frozen=True)
class _Figure:
    """A score of a demo's stage: its words, its form, and the key and the words of what to compare it with."""

    words: str
    form: str
    beside: str = ""
    beside_words: str = "{}"


_CONTROL_BESIDE = ("dice_whole_tumour_reconstructions", "{} in reconstructions of the patients' own scans")
_FIGURES = {
    "psnr_brain": _Figure("PSNR in the brain", "{:.1f} dB", "psnr_brain_pca", "{} by a PCA codec of equal rate"),
    "ssim_brain": _Figure("SSIM in the brain", "{:.2f}"),
    "modality_accuracy": _Figure(
        "generated volumes whose modality a classifier names", "{:.2f}",
        "classifier_accuracy_reconstructions", "{} of reconstructions",
    ),
    "diversity_ratio": _Figure(
        "diversity of generated volumes, that of scans being 1", "{:.2f}",
        "diversity_ratio_reconstructions", "{} of reconstructions",
    ),
    "lesion_share": _Figure(
        "generated volumes in which a detector finds a lesion", "{:.2f}", "lesion_share_cohort", "{} of scans"
    ),
    "dice_whole_tumour": _Figure("Dice of tumours with those asked for", "{:.2f}", *_CONTROL_BESIDE),
    "dice_whole_tumour_base": _Figure("the same draws without control", "{:.2f}"),
    "psnr_brain_fitted": _Figure(
        "PSNR in the brain, brightness fitted", "{:.1f} dB",
        "regression_psnr_brain_fitted", "{} by linear regression",
    ),
    "psnr_tumour_fitted": _Figure(
        "PSNR in the tumour, brightness fitted", "{:.1f} dB",
        "regression_psnr_tumour_fitted", "{} by linear regression",
    ),
    "uncertainty_correlation": _Figure("correlation of spread and error", "{:.2f}"),
    "volume": _Figure(
        "volume of drawn masks, mean difference of logarithms", "{:.2f}", "volume_floor", "{} of patients"
    ),
    "pieces": _Figure("pieces of drawn masks, mean difference", "{:.2f}", "pieces_floor", "{} of patients"),
    "place": _Figure("place of drawn masks in the brain, energy distance", "{:.3f}", "place_floor", "{} of patients"),
    "dice_followed": _Figure("Dice of what a segmenter finds in FLAIR with the mask drawn", "{:.2f}"),
    "highest_dice": _Figure("highest Dice of a drawn mask with one of a patient", "{:.2f}"),
    "dice_translated": _Figure("Dice of a segmenter in translations", "{:.2f}", "dice_real", "{} in scans"),
}  # fmt: skip
_STAGES = {
    "stage1": "Stage 1: reconstruction",
    "maisi_vae": "Stage 1: reconstruction",
    "stage2_label": "Stage 2: generated volumes",
    "maisi_diffusion": "Stage 2: generated volumes",
    "translation": "Stage 2b: translation",
    "control": "Stage 3: control by a segmentation",
    "masks": "Lesion masks drawn by a model",
    "patients": "Patients made under drawn masks",
}
_SETS = {"against_scans": "to held-out scans", "frechet": "to held-out reconstructions"}


def demo_tables(metrics: dict[str, Any]) -> list[Table]:
    """Return every score of a demo by stage, beside that before fine-tuning if there is one."""
    before = mapping(metrics.get("before_fine_tuning"))
    tables = []
    for stage, values in mapping(metrics.get("stages")).items():
        earlier = {row[0]: row[1] for row in _rows(mapping(before.get(stage)))}
        rows = [[*row, *([earlier.get(row[0], "")] if earlier else [])] for row in _rows(mapping(values))]
        if rows:
            head = [*_HEAD, *(["before fine-tuning"] if earlier else [])]
            tables.append(
                Table(_STAGES.get(stage, spaced(stage)), head, rows, frozenset({1, 2}), _note(values))
            )
    return tables


def _rows(values: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield words, value, interval and comparison of each score of a stage."""
    intervals = mapping(values.get("intervals"))
    for key, figure in _FIGURES.items():
        if _is_number(values.get(key)):
            yield [figure.words, figure.form.format(values[key]), _interval(intervals.get(key), figure.form),
                   _beside(values, figure)]  # fmt: skip
    if "frechet" in values:
        yield _distance("frechet", _SETS["frechet"], mapping(values["frechet"]))
    for name, found in mapping(values.get("against_scans")).items():
        yield _distance(name, _SETS["against_scans"], mapping(found))
    for name, own in values.items():
        inner = mapping(own)
        if {"psnr_brain_fitted", "controlled"} & inner.keys():
            yield from ([f"{name}: {row[0]}", *row[1:]] for row in _rows(inner))
            if _is_number(inner.get("controlled")):
                yield [f"{name}: Dice with what was asked for", f"{inner['controlled']:.2f}", "",
                       f"{number(inner.get('base')):.2f} without control"]  # fmt: skip
    for name, own in mapping(values.get("dice_by_class")).items():
        inner = mapping(own)
        yield [f"T1ce, {spaced(name)}: Dice with what was asked for", f"{number(inner.get('controlled')):.2f}",
               _interval(inner.get("interval"), "{:.2f}"),
               f"{number(inner.get('reconstructions')):.2f} in reconstructions"]  # fmt: skip


def _distance(name: str, to: str, found: Mapping[str, Any]) -> list[str]:
    """Return the row of a distance or a ratio that was measured beside its floor."""
    ratio = name == "frechet"
    words = f"Fréchet distance {to}, that of training patients being 1" if ratio else f"{title(name)}, {to}"
    value, form = found.get("value"), "{:.2f}"
    mark = "" if found.get("reliable", True) else " ?"
    floor = f"{number(found.get('floor')):.2f} of real patients" if _is_number(found.get("floor")) else ""
    ends = [found.get("low"), found.get("high")]
    return [words, (form.format(value) if _is_number(value) else "–") + mark, _interval(ends, form), floor]


def _beside(values: Mapping[str, Any], figure: _Figure) -> str:
    other = values.get(figure.beside)
    return figure.beside_words.format(figure.form.format(other)) if _is_number(other) else ""


def _interval(ends: Any, form: str) -> str:
    if not isinstance(ends, list | tuple) or len(ends) != 2 or not all(map(_is_number, ends)):
        return ""
    low, high = (form.format(value).removesuffix(" dB") for value in ends)
    return f"{low} to {high}"


def _note(values: Any) -> str:
    known = mapping(values)
    inner = next((mapping(own) for own in known.values() if "patients" in mapping(own)), {})
    patients = int(number(known.get("held_out_patients", known.get("patients", inner.get("patients")))))
    made = int(number(known.get("volumes"))) if "held_out_volumes" in known else 0
    text = "Measured on held-out simulated patients only"
    text += f": {patients} of them" if patients else ""
    text += f", and {made} generated volumes" if made else ""
    return text + ". ?: too few patients to rely on."


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)
