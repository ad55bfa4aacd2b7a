"""Check what the page sends: a request names models, labels and uploaded files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prod9.app.models import Task
from prod9.app.work import MAX_SAMPLES, Request
from prod9.errors import ConfigError


class _Sent(BaseModel):
    """A request as it is sent; files are named by the ids of their uploads."""

    model_config = ConfigDict(extra="forbid")

    model: str
    task: Task
    label: Annotated[str, Field(min_length=1)]
    sources: dict[str, str] = {}
    scan: str | None = None
    mask: str | None = None
    num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    resample: bool = False


def parse_request(body: bytes, uploads: Mapping[str, Path]) -> Request:
    """Return the request in ``body``, JSON; ConfigError for anything else and for files that were not uploaded."""
    try:
        sent = _Sent.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "request"
        raise ConfigError(
            f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}."
        ) from error

    def file(id_: str | None, name: str) -> Path | None:
        if id_ is not None and id_ not in uploads:
            raise ConfigError(f"{name}: expected an uploaded file, got {id_!r}; choose the file again.")
        return None if id_ is None else uploads[id_]

    sources = {name: file(id_, name) for name, id_ in sent.sources.items()}
    return Request(
        model=sent.model,
        task=sent.task,
        label=sent.label,
        sources={name: path for name, path in sources.items() if path is not None},
        scan=file(sent.scan, "scan"),
        mask=file(sent.mask, "mask"),
        num_samples=sent.num_samples,
        seed=sent.seed,
        resample=sent.resample,
    )
