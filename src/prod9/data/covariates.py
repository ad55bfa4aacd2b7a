"""Covariates of patients: from a table, or from values that are asked for, to the features that networks take.

A covariate is a row of features. A number is 1 and its place between its bounds, from -1 to 1. A category is 1 at its
value. What is not known is a row of zeros.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prod9.data.layouts.datalist import read_table
from prod9.errors import ConfigError, DataError, Prod9Error
from prod9.system.wording import listing

_CASE = "case"
_DIGITS = 4
_STREAM = 2
"""Sets the draws of covariates apart from those of samplers with the same seed."""


class CovariateCoder:
    """Turns values of covariates into features.

    Args:
        numbers: name → smallest and largest value.
        categories: name → its values.

    Example:
        >>> from prod9.data.covariates import CovariateCoder
        >>> coder = CovariateCoder(numbers={"age": (20, 80)}, categories={"sex": ["F", "M"]})
        >>> coder.encode({"age": "50", "sex": "M"}).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        >>> coder.encode({}).any().item()
        False
    """

    def __init__(
        self, *, numbers: Mapping[str, tuple[float, float]], categories: Mapping[str, Sequence[str]]
    ) -> None:
        self._numbers = dict(numbers)
        self._categories = {name: tuple(values) for name, values in categories.items()}
        widths = [2 for _ in self._numbers] + [len(values) for values in self._categories.values()]
        self.names = (*self._numbers, *self._categories)
        self.numbers = tuple(self._numbers)
        self.shape = len(widths), max(widths)

    def encode(
        self,
        values: Mapping[str, str],
        *,
        source: str = "covariates",
        error: Callable[[str], Prod9Error] = DataError,
    ) -> Tensor:
        """Return the features float32 ``[K C]`` of ``values``, name → text; those that are absent or empty are unknown.

        Raises ``error``, with ``source`` in front, for an unknown name, a text that is no number, a number out of its
        bounds, and an unknown category.
        """
        unknown = [name for name in values if name not in self.names]
        if unknown:
            raise error(
                f"{source}: expected covariates {', '.join(self.names)}, got {', '.join(unknown)}; correct the name, "
                "or train with it (covariates.numbers and covariates.categories)."
            )
        features = torch.zeros(self.shape)
        for place, name in enumerate(self.names):
            text = values.get(name, "").strip()
            if not text:
                continue
            if name in self._numbers:
                features[place, 0] = 1.0
                features[place, 1] = self._scaled(name, text, source, error)
            else:
                features[place, self._index(name, text, source, error)] = 1.0
        return features

    def read(self, path: Path) -> dict[str, Tensor]:
        """Return case → features from a CSV or TSV file with a column ``case``; DataError with the line."""
        header, rows = read_table(path)
        missing = [name for name in (_CASE, *self.names) if name not in header]
        if missing:
            raise DataError(
                f"{path}: expected columns {', '.join((_CASE, *self.names))}, got none called {', '.join(missing)}; "
                "add them, or correct covariates.numbers and covariates.categories."
            )
        return {
            case: self.encode(cells, source=f"{path}: line {number}")
            for case, (number, cells) in rows_by_case(path, header, rows, self.names).items()
        }

    def _scaled(self, name: str, text: str, source: str, error: Callable[[str], Prod9Error]) -> float:
        low, high = self._numbers[name]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise error(
                f"{source}: expected {name} between {low:g} and {high:g}, got {text}; correct it, leave it out if "
                f"it is unknown, or train with wider bounds (covariates.numbers.{name})."
            )
        return 2 * (value - low) / (high - low) - 1

    def _index(self, name: str, text: str, source: str, error: Callable[[str], Prod9Error]) -> int:
        values = self._categories[name]
        if text not in values:
            raise error(
                f"{source}: expected {name} to be {', '.join(values)}, got {text}; correct it, or add it to "
                f"covariates.categories.{name}."
            )
        return values.index(text)


class CovariateValues:
    """What generation asks for: fixed values, and ranges that each sample draws its own value from, uniformly.

    A sample draws by its seed, so it has the same values whoever makes it and with whatever others.

    Args:
        coder: of the model.
        fixed: name → value.
        ranges: name of a number → lowest and highest value.
    """

    def __init__(
        self, coder: CovariateCoder, *, fixed: Mapping[str, str], ranges: Mapping[str, tuple[float, float]]
    ) -> None:
        self._coder, self._fixed, self._ranges = coder, dict(fixed), dict(ranges)

    @classmethod
    def of(cls, coder: CovariateCoder, values: Mapping[str, str], *, source: str) -> "CovariateValues":
        """Read values as a user gives them, ranges as ``10:60``; ConfigError for what the model does not know."""
        fixed, ranges = dict[str, str](), dict[str, tuple[float, float]]()
        for name, text in values.items():
            low, colon, high = text.partition(":")
            if not colon or name not in coder.numbers:
                fixed[name] = text
                continue
            for end in (low, high):
                coder.encode({name: end}, source=source, error=ConfigError)
            if not (low.strip() and high.strip()) or float(low) >= float(high):
                raise ConfigError(
                    f"{source}: expected LOW:HIGH with LOW below HIGH for {name}, got {text}; correct it."
                )
            ranges[name] = float(low), float(high)
        coder.encode(fixed, source=source, error=ConfigError)
        return cls(coder, fixed=fixed, ranges=ranges)

    def drawn(self, seed: int) -> dict[str, float]:
        """Return the values that the sample of ``seed`` draws, rounded to four digits behind the point.

        In ranges narrower than 0.01 they have more digits: at least a hundred different values remain.
        """
        rng = np.random.default_rng([_STREAM, seed])
        return {
            name: _rounded(float(rng.uniform(*ends)), *ends) for name, ends in sorted(self._ranges.items())
        }

    def encode(self, seed: int) -> Tensor:
        """Return the features float32 ``[K C]`` of the sample of ``seed``."""
        drawn = {name: repr(value) for name, value in self.drawn(seed).items()}
        return self._coder.encode({**self._fixed, **drawn})


def _rounded(value: float, low: float, high: float) -> float:
    digits = max(_DIGITS, 2 - math.floor(math.log10(high - low)))
    return min(max(round(value, digits), low), high)


def rows_by_case(
    path: Path, header: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], names: Sequence[str]
) -> dict[str, tuple[int, dict[str, str]]]:
    """Return case → its line and the cells of the columns ``names`` of a table that was read.

    Raises DataError for a column that is there twice, and for a case without a name or with two rows.

    Args:
        path: of the table.
        header: its first row.
        rows: the others, each with its line.
        names: of columns, which are all there.
    """
    twice = next((name for name in (_CASE, *names) if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: expected one column {twice}, got {header.count(twice)}; remove the others.")
    found: dict[str, tuple[int, dict[str, str]]] = {}
    for number, row in rows:
        cells = dict(zip(header, row, strict=False))
        case = cells[_CASE]
        if not case or case in found:
            raise DataError(
                f"{path}: line {number}: expected a case of its own, got {case or 'an empty cell'}; correct it."
            )
        found[case] = number, {name: cells[name] for name in names}
    return found


def for_cases(table: Mapping[str, Tensor], cases: Sequence[str], path: Path) -> list[str]:
    """Return the names among ``cases`` that ``table`` lacks; DataError if it has none of them."""
    lacking = [case for case in cases if case not in table]
    if cases and len(lacking) == len(set(cases)):
        raise DataError(
            f"{path}: expected rows for the cases of the dataset ({listing(cases)}), got others ({listing(table)}); "
            "use the names that `prod9 data check` shows."
        )
    return lacking
