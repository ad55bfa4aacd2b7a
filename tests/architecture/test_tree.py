"""The tree stays one that a newcomer can draw: no package holds most of it."""

from pathlib import Path

import prod9

PACKAGE = Path(prod9.__file__).parent
LARGEST_SHARE = 0.2


def test_no_package_is_a_warehouse() -> None:
    lines: dict[str, int] = {}
    for path in PACKAGE.rglob("*.py"):
        package = path.relative_to(PACKAGE).parts[0]
        lines[package] = lines.get(package, 0) + path.read_text(encoding="utf-8").count("\n")
    largest = max(lines, key=lambda name: lines[name])
    assert lines[largest] <= LARGEST_SHARE * sum(lines.values()), f"{largest}: move what others use out of it"
