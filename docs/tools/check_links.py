"""Checks that every relative link in the repository's Markdown files leads to a file that exists."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def main() -> int:
    """Print each broken link; return 1 if there is one."""
    broken = [line for path in markdown_files() for line in broken_links(path)]
    print("\n".join(broken) if broken else "all links lead somewhere")
    return bool(broken)


def markdown_files() -> list[Path]:
    """Return the Markdown files in the repository, except ignored ones."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in names.splitlines() if (ROOT / name).is_file()]


def broken_links(path: Path) -> list[str]:
    """Return one line for each link of ``path`` to a file that is not there."""
    text = CODE.sub("", path.read_text(encoding="utf-8"))
    targets = [first or second for first, second in LINK.findall(text)]
    local = [t.partition("#")[0] for t in targets if not re.match(r"[a-z]+:", t) and not t.startswith("#")]
    return [f"{path.relative_to(ROOT)}: {t}" for t in local if not (path.parent / t).exists()]


if __name__ == "__main__":
    sys.exit(main())
