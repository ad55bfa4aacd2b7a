"""Reads the names of labels that users type: in any case, and by every known alias."""

from collections.abc import Sequence

from prod9.errors import ConfigError
from prod9.modalities import known_as as known_as
from prod9.modalities import spelt as spelt

ALL = "all"


def chosen_labels(given: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Return the labels of ``--label``, each once: all of ``known`` without it or with ``all``; raises ConfigError."""
    names = [known_as(name, known) for name in given or ()]
    if not names or any(name.casefold() == ALL and name not in known for name in names):
        return list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        from prod9.config.errors import did_you_mean

        hint = did_you_mean(unknown[0], known) or f"; the model knows no other. {ALL} means all of them."
        raise ConfigError(
            f"--label: expected one of {', '.join(known)}, got {', '.join(map(repr, unknown))}{hint}"
        )
    return list(dict.fromkeys(names))
