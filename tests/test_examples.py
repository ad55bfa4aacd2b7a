"""The examples run in their order, from an empty folder."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("[0-9]*.py"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(EXAMPLES) == 6
    for script in EXAMPLES:
        runpy.run_path(str(script), run_name="__main__")
    assert len(list((tmp_path / "outputs" / "examples" / "generated").glob("T2_*.nii.gz"))) == 3
