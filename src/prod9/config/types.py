"""The types of values in a configuration, and the base of its sections."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Range = Annotated[tuple[float, float], Field(strict=False)]
Ints = Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
Bools = Annotated[tuple[bool, ...], Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Positives = Annotated[tuple[Annotated[float, Field(gt=0.0)], ...], Field(strict=False)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Triple = Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], Field(strict=False)]
Spacing = Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]
Place = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """Base of every section: unknown keys are refused, types are exact, numbers finite, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def kwargs(self, *exclude: str) -> dict[str, Any]:
        """Return the fields as constructor keywords, without ``kind`` and the names in ``exclude``."""
        return {k: getattr(self, k) for k in type(self).model_fields if k not in {"kind", *exclude}}
