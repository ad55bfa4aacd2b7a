"""Model cards and data cards."""

import pytest
import yaml

from prod9.errors import DataError
from prod9.evaluation.report.cards import write_cards
from prod9.models.cards import export_card
from tests.evaluation.report.folders import write_run, write_whole


def metadata(text):
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_the_cards_tell_scores_verdict_and_division(tmp_path):
    run = write_whole(tmp_path)
    model, data = (path.read_text() for path in write_cards(run, tmp_path / "cards"))
    fields = metadata(model)
    assert fields["library_name"] == "prod9"
    assert fields["model-index"][0]["results"][0]["metrics"] == [
        {"name": "val/loss", "type": "val/loss", "value": 3.5}
    ]
    assert "kernel distance (KID) · features of a random network | 0.0123 | 0.01 to 0.02 | 0.001" in model
    assert "1 of 2 generated volumes suspect (50.0%, limit 10%)" in model
    assert "**failed**" in model
    assert "not for diagnosis" in model
    assert metadata(data)["size_categories"] == ["n<1K"]
    assert "| train | 1 |" in data
    assert str(tmp_path) not in model + data


def test_what_was_not_done_is_said(tmp_path):
    run = write_run(tmp_path)
    model, _ = (path.read_text() for path in write_cards(run, run))
    assert "Not audited: `prod9 audit" in model
    assert "Not evaluated: `prod9 evaluate" in model


def test_a_folder_of_runs_is_refused(tmp_path):
    with pytest.raises(DataError, match="name one run"):
        write_cards(tmp_path, tmp_path)


def test_an_export_carries_the_same_metadata():
    header = {"stage": "maisi_vae", "data": {"grid": [8, 8, 8]}, "split": {"train": ["a"]}, "step": 3, "version": "9",
              "inputs": {}}  # fmt: skip
    card = export_card(header, 10, "float16")
    assert "maisi" in metadata(card)["tags"]
    assert "# MAISI autoencoder (prod9)" in card
    assert "1 train" in card
