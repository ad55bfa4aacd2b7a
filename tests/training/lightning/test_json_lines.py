"""The log of JSON lines over several sessions."""

import json
from pathlib import Path

from prod9.training.lightning.json_lines import JSONLinesLogger


def test_a_line_a_step_over_sessions(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "metrics.jsonl"
    JSONLinesLogger(path).log_metrics({"train/total": 0.5, "val/psnr": float("nan")}, step=3)
    JSONLinesLogger(path).log_metrics({"train/total": 0.25}, step=6)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"step": 3, "train/total": 0.5, "val/psnr": None}, {"step": 6, "train/total": 0.25}]
