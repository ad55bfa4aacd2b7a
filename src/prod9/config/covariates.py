"""What is known of patients beside their scans, as a condition of stage 2 in both families.

Imported by :mod:`prod9.config.schema`; import the sections from there.
"""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from prod9.config.types import Names, Range, Section

Shape = Annotated[tuple[int, int], Field(strict=False)]
_MOST = 64


class CovariatesConfig(Section):
    """A table of patients, and which of its columns condition generation."""

    file: str = Field(
        description="CSV or TSV with a column `case` and one per covariate; an empty cell is unknown."
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


def check_covariates(covariates: CovariatesConfig | None, model: Any, *, data_kind: str) -> None:
    """Raise ValueError unless ``model.covariates`` is what ``covariates`` need, for data with names of cases."""
    shape = None if covariates is None else covariates.shape
    given = getattr(model, "covariates", None)
    if shape is not None and data_kind != "brats":
        raise ValueError(
            f"covariates: expected none for data.kind {data_kind}, which has no cases, got some; remove them"
        )
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
