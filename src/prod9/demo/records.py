"""What a demo writes down of itself: how long it took, and its scores."""

import json
from pathlib import Path
from typing import Any

from prod9.demo.families import VARIANTS
from prod9.demo.plan import DemoPlan
from prod9.errors import DataError
from prod9.files import atomic_write
from prod9.json_files import read_json, read_object, write_json


def read_kept(path: Path) -> dict[str, Any]:
    """Return what an earlier session wrote; empty if it is missing or damaged."""
    try:
        return read_object(path)
    except DataError:
        return {}


def add_seconds(plan: DemoPlan, this_session: float) -> float:
    """Return this session's time plus that of interrupted ones, and record the sum."""
    path = plan.run_dir / "seconds.json"
    try:
        before = float(read_json(path))
    except (DataError, TypeError, ValueError):  # a first session, or a damaged file
        before = 0.0
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(before + this_session), encoding="utf-8")
    return before + this_session


def write_metrics(plan: DemoPlan, block: dict[str, Any]) -> None:
    """Write this run's block beside those of other variants in the same folder."""
    path = plan.output_dir / "metrics.json"
    content = read_kept(path)
    blocks = {name: content[name] for name in VARIANTS if name in content}
    content = {**block, **blocks, plan.variant: block}
    write_json(path, content)
