"""Command lines as the shell of this system reads them."""

import os
import shlex
import subprocess
from collections.abc import Iterable

_ON_WINDOWS = os.name == "nt"


def shown_line(words: Iterable[object], *, windows: bool = _ON_WINDOWS) -> str:
    """Return ``words`` as one line to copy, each quoted where the shell needs it.

    Example:
        >>> from prod9.system.shell import shown_line
        >>> shown_line(["prod9", "report", "my run"], windows=False)
        "prod9 report 'my run'"
        >>> shown_line(["prod9", "report", "my run"], windows=True)
        'prod9 report "my run"'
    """
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if windows else shlex.join(texts)


def split_line(text: str, *, windows: bool = _ON_WINDOWS) -> list[str]:
    """Return the words of a line; on Windows a backslash is part of a path. ValueError for an open quote."""
    if windows:
        return [word.strip("\"'") for word in shlex.split(text, posix=False)]
    return shlex.split(text)
