"""What is known of patients beside their scans, as a condition of stage 2 in both families.

Imported by :mod:`prod9.config.schema`; import the sections from there.
"""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from prod9.config.types import Names, Range, Section

Shape = Annotated[tuple[int, int], Field(strict=False)]
_MOST = 64
MEASURED = ("diameter_mm", "right", "front", "up")
"""What is known of a label map without a table."""


class CovariatesConfig(Section):
    """A table of patients, and which of its columns condition generation; or what is measured of label maps."""

    file: str | None = Field(
        default=None,
        description="CSV or TSV with a column `case` and one per covariate; an empty cell is unknown. null, for label "
        "maps alone: `diameter_mm` (of a ball of the lesion's volume), and its centre in the box of the brain, "
        "`right`, `front` and `up` from 0 to 1.",
    )
    numbers: dict[str, Range] = Field(
        default={}, description="Column → smallest and largest value, e.g. `age: [18, 95]`."
    )
    categories: dict[str, Names] = Field(default={}, description="Column → its values, e.g. `sex: [F, M]`.")

    @property
    def shape(self) -> tuple[int, int]:
        """The number of covariates, and of features of each: what ``model.covariates`` has to be."""
        widths = [2 for _ in self.numbers] + [len(values) for values in self.categories.values()]
        return len(widths), max(widths)

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Self:
        names = [*self.numbers, *self.categories]
        if not 0 < len(names) <= _MOST or len(set(names)) < len(names) or "case" in names:
            raise ValueError(
                f"numbers and categories: expected 1 to {_MOST} columns, each once and none called case, got "
                f"{', '.join(names) or 'none'}; name some"
            )
        for name, (low, high) in self.numbers.items():
            if not low < high:
                raise ValueError(
                    f"numbers.{name}: expected [smallest, largest], got [{low:g}, {high:g}]; exchange them"
                )
        for name, values in self.categories.items():
            if len(set(values)) < max(2, len(values)) or len(values) > _MOST or not all(values):
                raise ValueError(
                    f"categories.{name}: expected 2 to {_MOST} different values, got {', '.join(values)}; correct them"
                )
        return self


def check_covariates(covariates: CovariatesConfig | None, model: Any, *, data: Any) -> None:
    """Raise ValueError unless ``model.covariates`` and ``data`` (a data section) are what ``covariates`` need."""
    shape = None if covariates is None else covariates.shape
    given = getattr(model, "covariates", None)
    if shape is not None and data.kind != "brats":
        raise ValueError(
            f"covariates: expected none for data.kind {data.kind}, which has no cases, got some; remove them"
        )
    if covariates is not None:
        _check_source(covariates, data.shows_labels)
    if shape is not None and "covariates" not in type(model).model_fields:
        raise ValueError(
            f"covariates: expected none for model.kind {model.kind}, which learns them from its sources, got some; "
            "remove them, or use label_conditional"
        )
    if shape != given:
        raise ValueError(
            f"model.covariates: expected {'null' if shape is None else list(shape)} for "
            f"{'no covariates' if shape is None else 'these covariates'}, got "
            f"{'null' if given is None else list(given)}; set it to that"
        )


def _check_source(covariates: CovariatesConfig, shows_labels: bool) -> None:
    """Raise ValueError unless the covariates come from a table, or are those that can be measured of label maps."""
    if covariates.file is not None:
        if shows_labels:
            raise ValueError(
                "covariates.file: expected null for label maps, which are measured, since a table does not say what "
                f"their mirror images have, got {covariates.file}; remove it"
            )
        return
    if not shows_labels:
        raise ValueError("covariates.file: expected a table for scans, got null; name one")
    strange = [*covariates.categories, *(name for name in covariates.numbers if name not in MEASURED)]
    if strange:
        raise ValueError(
            f"covariates: expected numbers among {', '.join(MEASURED)} for label maps without a table, got "
            f"{', '.join(strange)}; leave them out"
        )
