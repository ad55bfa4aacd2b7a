"""The notebook runs from an empty folder, cell by cell, and holds no outputs."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "prod9.ipynb"


def cells() -> list[dict]:
    return [c for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = []

    def show() -> None:
        shown.append(len(plt.gcf().axes))
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)
    names: dict[str, object] = {}
    for number, cell in enumerate(cells()):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert shown == [2, 3, 2, 3]
    assert (tmp_path / "outputs" / "notebook" / "flair.nii.gz").is_file()


def test_it_is_small_and_holds_no_outputs() -> None:
    assert NOTEBOOK.stat().st_size < 300_000
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells())
