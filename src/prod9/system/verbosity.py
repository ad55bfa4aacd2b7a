"""How much a command tells on stderr: ``--quiet``, nothing, or ``--verbose``.

Results on stdout and errors are printed at every level. One value for the process, since a process runs one command;
library code only reads it.
"""

import logging
from typing import Literal

Level = Literal["quiet", "normal", "verbose"]
_LOGGED: dict[Level, int] = {"quiet": logging.ERROR, "normal": logging.NOTSET, "verbose": logging.INFO}
"""NOTSET leaves it to the root logger, which is at WARNING unless a program says otherwise."""
_level: Level = "normal"


def set_verbosity(level: Level) -> None:
    """Set how much is told, and from which level on the loggers of prod9 speak."""
    global _level
    _level = level
    logging.getLogger("prod9").setLevel(_LOGGED[level])


def is_quiet() -> bool:
    """Return whether only errors and results are wanted."""
    return _level == "quiet"


def is_verbose() -> bool:
    """Return whether details are wanted."""
    return _level == "verbose"
