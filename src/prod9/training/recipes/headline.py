"""What a validation says in one line: the score that matters, how good it is, and what to compare it with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """Something that needs no training, or less of it, to compare a score with.

    Attributes:
        text: in words, with ``{value}`` where its score stands.
        metric: name of its score among those of the validation, without the part.
    """

    text: str
    metric: str


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The score of a stage in words.

    Attributes:
        text: with ``{value}`` where the score stands.
        metric: its name, without the part.
        digits: behind the decimal point.
        yardsticks: what it is compared with.
        also: further scores in words, likewise.
    """

    text: str
    metric: str
    digits: int = 2
    yardsticks: tuple[Yardstick, ...] = ()
    also: tuple[Yardstick, ...] = ()

    def value(self, metrics: Mapping[str, float], part: str = "val") -> float | None:
        """Return the score among ``metrics``; None where it was not measured or is not finite."""
        value = metrics.get(f"{part}/{self.metric}")
        return value if value is not None and math.isfinite(value) else None

    def sentence(
        self,
        metrics: Mapping[str, float],
        *,
        part: str = "val",
        constants: Mapping[str, float] | None = None,
        standing: str = "",
    ) -> str:
        """Return the line; empty where the score was not measured.

        Args:
            metrics: of a validation or a test, by ``PART/NAME``.
            part: ``val`` or ``test``.
            constants: scores of yardsticks that the metrics do not hold, by name.
            standing: how it compares with earlier validations, in words.
        """
        value = self.value(metrics, part)
        if value is None:
            return ""
        known = {**(constants or {}), **{name.partition("/")[2]: one for name, one in metrics.items()}}
        said = [self._filled(self.text, value)]
        said += [self._filled(one.text, known[one.metric]) for one in self.also if one.metric in known]
        said += [standing] if standing else []
        line = ", ".join(said)
        compared = [
            self._filled(one.text, known[one.metric]) for one in self.yardsticks if one.metric in known
        ]
        return f"{line}; {', '.join(compared)}" if compared else line

    def _filled(self, text: str, value: float) -> str:
        return text.replace("{value}", f"{value:.{self.digits}f}").replace("{percent}", f"{100 * value:.0f}%")
