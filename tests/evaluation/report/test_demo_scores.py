"""Scores of a demo in words."""

import pytest

from prod9.evaluation.report import words
from prod9.evaluation.report.demo_scores import demo_tables

METRICS = {
    "stages": {
        "stage1": {
            "psnr_brain": 21.94, "psnr_brain_pca": 18.83, "volumes": 56, "patients": 14,
            "intervals": {"psnr_brain": [21.67, 22.21], "psnr_brain_pca": [18.4, 19.2]},
        },
        "stage2_label": {
            "modality_accuracy": 0.984, "classifier_accuracy_reconstructions": 1.0, "volumes": 64,
            "held_out_volumes": 56, "held_out_patients": 14, "frechet_extractor": "autoencoder-cc4891847f85",
            "frechet": {"value": 1.93, "low": 0.87, "high": 3.49, "floor": 1.0, "reliable": False},
            "against_scans": {"kid": {"value": 0.61, "low": -0.5, "high": 4.4, "floor": 0.07}},
        },
        "translation": {
            "FLAIR": {"psnr_brain_fitted": 23.2, "regression_psnr_brain_fitted": 20.1, "patients": 14,
                      "intervals": {"psnr_brain_fitted": None}},
        },
    },
    "before_fine_tuning": {"stage1": {"psnr_brain": 21.9}},
}  # fmt: skip


def test_scores_come_with_interval_and_what_to_compare_them_with():
    stage1, stage2, translation = demo_tables(METRICS)
    assert stage1.title == "Stage 1: reconstruction"
    assert list(stage1.rows[0]) == [
        "PSNR in the brain", "21.9 dB", "21.7 to 22.2", "18.8 dB by a PCA codec of equal rate", "21.9 dB",
    ]  # fmt: skip
    rows = {row[0]: row[1:] for row in stage2.rows}
    assert rows["kernel distance (KID), to held-out scans"] == [
        "0.61",
        "-0.50 to 4.40",
        "0.07 of real patients",
    ]
    fid = rows["Fréchet distance to held-out reconstructions, that of training patients being 1"]
    assert fid[0] == "1.93 ?"
    assert "14 of them, and 64 generated volumes" in stage2.note
    assert list(translation.rows[0]) == [
        "FLAIR: PSNR in the brain, brightness fitted", "23.2 dB", "", "20.1 dB by linear regression",
    ]  # fmt: skip
    everything = " ".join(
        str(cell) for table in (stage1, stage2, translation) for row in table.rows for cell in row
    )
    assert "_" not in everything
    assert "cc48" not in everything


def test_metrics_of_nothing_give_no_table():
    assert demo_tables({}) == []
    assert demo_tables({"stages": {"stage1": "damaged"}}) == []


@pytest.mark.parametrize(
    ("key", "expected"),
    [("kid_denoised", "kernel distance (KID), both sets denoised alike"), ("psnr_brasyn", "PSNR, scaled as in the "
      "BraTS synthesis challenge"), ("val/level_usage", "val, level usage")],
)  # fmt: skip
def test_keys_become_words(key, expected):
    assert words.title(key) == expected


def test_extractors_lose_their_hashes():
    assert words.extractor("autoencoder-0abf36ada4b3") == "features of the model's own autoencoder"
    assert words.extractor("radiomics_denoised") == "radiomic features"
    assert words.extractor("medicalnet_resnet10-0abf36ada4b3") == "features of medicalnet_resnet10"
