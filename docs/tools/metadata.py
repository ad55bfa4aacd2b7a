"""What hatchling asks for when it builds: README and addresses of the project, absolute where the repository is known.

README's links and pictures are relative, as a repository shows them; a package index shows them only as absolute
addresses. ``PROD9_REPOSITORY=https://HOST/OWNER/prod9 make release`` fills them in, and without it the metadata name no
address. Hosts that serve files as GitHub does are supported: ``blob`` for pages and ``raw`` for pictures.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
VARIABLE = "PROD9_REPOSITORY"


class ProjectMetadata(MetadataHookInterface):
    """Fills in ``readme`` and ``urls`` of pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Change ``metadata`` in place."""
        root = Path(self.root)
        text = (root / "README.md").read_text(encoding="utf-8")
        repository = os.environ.get(VARIABLE, "").rstrip("/")
        if repository:
            version = re.search(
                r'__version__ = "([^"]+)"', (root / "src/prod9/__init__.py").read_text(encoding="utf-8")
            )
            assert version, "src/prod9/__init__.py holds the version"
            text = absolute(text, repository, f"v{version[1]}")
            metadata["urls"] = urls(repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute(text: str, repository: str, tag: str) -> str:
    """Return Markdown with every relative link led to ``repository`` at ``tag``."""

    def link(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        return f"{mark}[{words}]({repository}/{'raw' if mark else 'blob'}/{tag}/{target})"

    return LINK.sub(link, text)


def urls(repository: str) -> dict[str, str]:
    """Return the addresses that a package index lists."""
    return {
        "Repository": repository,
        "Documentation": f"{repository}/blob/main/docs/index.md",
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
