"""The parts of other commands' results that a report uses, validated once when they are read."""

import math
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError

from prod9.evaluation.report import words


def _number_or_none(value: Any) -> Any:
    """Return None for NaN and infinity, which other programs may write."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_number_or_none)]
Word = Annotated[str, Field(max_length=10_000)]


class Form(BaseModel):
    """A part of a result. Fields that a newer version added are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class SetForm(Form):
    """The size of a set."""

    volumes: int
    patients: int


class SetsForm(Form):
    """The three sets of an audit."""

    train: SetForm
    held_out: SetForm
    generated: SetForm


class EmbeddingForm(Form):
    """The result of one embedding."""

    name: Word
    threshold: FiniteFloat
    authenticity: FiniteFloat
    held_out: list[FiniteFloat]
    generated: list[FiniteFloat]


class TrainForm(Form):
    """A training volume."""

    case: Word
    modality: Word


class PairForm(Form):
    """A generated volume and the training volume that it is nearest to."""

    generated: Word
    train: TrainForm
    mirrored_axes: list[int] = []
    relative_distance: dict[str, FiniteFloat] = Field(min_length=1)
    p_value: FiniteFloat
    suspect: bool


class AuditForm(Form):
    """``audit.json``."""

    passed: bool
    share_suspect: FiniteFloat
    max_share: FiniteFloat
    false_alarms: FiniteFloat
    sets: SetsForm
    embeddings: list[EmbeddingForm]
    pairs: list[PairForm]
    gaps: list[str] = []

    @property
    def suspects(self) -> list[PairForm]:
        """Return the pairs that are suspect."""
        return [pair for pair in self.pairs if pair.suspect]


class ScoreForm(Form):
    """A row of ``evaluation.json``."""

    group: Word = "scores"
    metric: Word
    trained_on: Word | None = None
    modality: Word | None = None
    region: Word | None = None
    extractor: Word | None = None
    value: Number = None
    low: Number = None
    high: Number = None
    matched: Number = None
    floor: Number = None
    patients_generated: int | None = None
    patients_real: int | None = None
    patients_heldout: int | None = None
    dimensions: int | None = None
    unit: Word | None = ""
    reliable: bool = True
    note: Word | None = None

    @property
    def words(self) -> str:
        """Return the metric and what it is computed on, in words."""
        parts = (
            words.title(self.metric),
            None if self.trained_on is None else f"trained on {words.spaced(self.trained_on)}",
            self.modality,
            None if self.region is None else words.region(self.region),
            None if self.extractor is None else words.extractor(self.extractor),
        )
        return " · ".join(part for part in parts if part not in (None, "all"))

    @property
    def mark(self) -> str:
        """Return the mark of a figure with too few patients."""
        return "" if self.reliable else " ?"

    @property
    def numbers(self) -> str:
        """Return N, the patients of the smaller set, and D if there is one."""
        patients = [n for n in (self.patients_generated, self.patients_real) if n is not None]
        patients = patients or [n for n in (self.patients_heldout,) if n is not None]
        found = [f"N {min(patients)}"] if patients else []
        return ", ".join([*found, *([f"D {self.dimensions}"] if self.dimensions else [])])


class PointForm(Form):
    """A point of a calibration curve."""

    nominal: FiniteFloat
    coverage: FiniteFloat


class CurveForm(Form):
    """A curve of ``evaluation.json``."""

    name: Word
    modality: Word
    points: list[PointForm] = []


class EvaluationForm(Form):
    """``evaluation.json``."""

    scores: list[ScoreForm] = []
    curves: list[CurveForm] = []
    warnings: list[str] = []


Result = TypeVar("Result", bound=Form)


def parse(content: Any, form: type[Result]) -> Result | str:
    """Return the result that ``content`` holds, or a description of what is wrong with it."""
    try:
        return form.model_validate(content)
    except (ValidationError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            return "it is nested too deeply"
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        return f"{place}: {first['msg']}{more}"


def mapping(value: Any) -> dict[str, Any]:
    """Return ``value`` if it is an object of JSON, else an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects in a list of JSON; anything else is ignored."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(value: Any, default: float = 0.0) -> float:
    """Return ``value`` if it is a finite number, else ``default``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    try:
        return float(value) if math.isfinite(value) else default
    except OverflowError:  # an integer of hundreds of digits
        return default
