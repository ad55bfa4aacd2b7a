"""The examples run in their order, from an empty folder, with fewer steps than they have."""

import runpy
from pathlib import Path

import pytest

from prod9.config import load
from prod9.config.schema import RunConfig

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("[0-9]*.py"))


@pytest.mark.slow
def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_config = load.load_config

    def load_short(name: str, *, overrides: list[str]) -> RunConfig:
        short = ["training.max_steps=4", "training.validate_every_steps=4"]
        return load_config(name, overrides=[*overrides, *short])

    monkeypatch.setattr(load, "load_config", load_short)
    assert len(EXAMPLES) == 6
    for script in EXAMPLES:
        runpy.run_path(str(script), run_name="__main__")
    assert len(list((tmp_path / "outputs" / "examples" / "generated").glob("T2_*.nii.gz"))) == 3
