"""How people write times: ``90m``, ``11h30m``, ``01:30:00``, or SLURM's ``1-12:00:00``."""

import re

from prod9.errors import ConfigError

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_time(text: str) -> float:
    """Return the seconds of a time such as ``90m``, ``11h30m``, ``01:30:00`` or SLURM's ``1-12:00:00``; ConfigError."""
    clock = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,4}):(\d\d)(?::(\d\d))?", text.strip())
    units = re.fullmatch(r"(?:\d+(?:\.\d+)?[dhms])+", text.strip())
    seconds = 0.0
    if clock:
        days, hours, minutes, rest = (int(part or 0) for part in clock.groups())
        seconds = days * 86400.0 + hours * 3600 + minutes * 60 + rest
    elif units:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([dhms])", text))
    if not 0 < seconds < 1e9:
        raise ConfigError(f"--max-time: expected a time such as 90m, 11h30m or 01:30:00, got {text!r}")
    return seconds
