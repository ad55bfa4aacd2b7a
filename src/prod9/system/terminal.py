"""Text on a screen or in a pipe: names of files, labels and messages are shown literally.

Rich reads brackets as markup and ``:name:`` as emoji, and passes escape codes on; a label ``[/]`` would end a command,
and a file name could rewrite the screen. The consoles and columns made here do neither; no other module makes any.
"""

import io
import re
import sys
from typing import Any

from rich.console import Console
from rich.progress import Task, TextColumn
from rich.text import Text

from prod9.system.verbosity import is_quiet

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Characters that move the cursor, set colours or reverse the direction of text; not line feed and tab."""


def plain(text: str) -> str:
    """Return ``text`` with control characters spelt out, such as ``\\x1b``."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class PlainConsole(Console):
    """A console that prints strings literally: no markup, no emoji codes, no control characters.

    It follows ``sys.stdout``, or ``sys.stderr``; lines are not broken and numbers not coloured. On stderr it prints
    nothing after ``--quiet``, unless it is for ``errors``. settings: of Rich's Console.
    """

    def __init__(self, *, stderr: bool = False, errors: bool = False, **settings: Any) -> None:
        self._may_be_silent = stderr and not errors
        plainly: dict[str, Any] = {"soft_wrap": True, "highlight": False, "markup": False, "emoji": False}
        super().__init__(stderr=stderr, **{**plainly, **settings})

    @property
    def quiet(self) -> bool:
        """Whether nothing is printed."""
        return self._silent or (self._may_be_silent and is_quiet())

    @quiet.setter
    def quiet(self, wanted: bool) -> None:
        self._silent = wanted

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return ``text`` as it is, whatever ``markup`` and ``emoji`` ask for."""
        as_it_is: dict[str, Any] = {**settings, "markup": False, "emoji": False}
        return super().render_str(plain(text), **as_it_is)


class PlainColumn(TextColumn):
    """A column of a progress display whose text is no markup; ``text_format`` as for Rich's TextColumn."""

    def render(self, task: Task) -> Text:
        """Return the text of ``task``."""
        return Text(plain(self.text_format.format(task=task)), style=self.style, justify=self.justify)


def replace_unknown_characters() -> None:
    """Make stdout and stderr print ``?`` for characters outside of their encoding instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
