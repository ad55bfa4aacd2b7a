"""The app's server: a page and a small interface in JSON. It answers this computer alone."""

import gzip
import re
import secrets
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Call
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from prod9.app.jobs import Job, Runner
from prod9.app.models import Models, Task
from prod9.app.requests import parse_request
from prod9.app.work import RECORD, Result, carry_out
from prod9.data.layouts.names import parse_modality
from prod9.errors import DataError, Prod9Error
from prod9.html.page import render
from prod9.system.wording import plural
from prod9.volumes import read

HOST = "127.0.0.1"
HEADER = "x-prod9"
"""A header that every call which changes something has to carry: pages of other sites cannot send it."""
MAX_BYTES = 512 << 20
"""Largest file that is taken."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_DONE: Mapping[Task, str] = {
    "label": "",
    "inpaint": "drawn again",
    "translate": "translated",
    "control": "steered",
}
"""What a task did to the modality, in the title of its job."""
_WORDS = {
    "pass --resample": "tick the box on different voxels",
    "set data.label_scheme (--label-scheme) to the scheme of the data": "for these, use `prod9 generate control` with "
    "--label-scheme",
    "set data.label_scheme to the scheme of the data": "use `prod9 generate control` with --label-scheme",
}
"""Options in messages, in words of the page."""
_ASSETS = files("prod9.app") / "assets"


class App:
    """The state of the app: models, uploaded files and jobs.

    Args:
        models: what it offers.
        folder: where uploads and results go.
    """

    def __init__(self, *, models: Models, folder: Path) -> None:
        self.models = models
        self.folder = folder
        self.runner = Runner()
        self.uploads: dict[str, Path] = {}

    def server(self) -> Starlette:
        """Return the application that a server runs."""
        routes = [
            Route("/", self.page),
            Route("/app.js", lambda call: _script((_ASSETS / "app.js").read_bytes())),
            Route("/niivue.js", lambda call: _script(_niivue())),
            Route("/api/models", self.list_models),
            Route("/api/model", self.describe_model),
            Route("/api/uploads/{name}", self.upload, methods=["PUT"]),
            Route("/api/jobs", self.start, methods=["POST"]),
            Route("/api/jobs", self.list_jobs),
            Route("/api/jobs/{id}/cancel", self.cancel, methods=["POST"]),
            Route("/files/{owner}/{name}", self.file),
        ]
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
        handlers: dict[Any, Any] = {Prod9Error: _refused, HTTPException: _http_error}
        return Starlette(routes=routes, middleware=[hosts], exception_handlers=handlers)

    async def page(self, call: Call) -> Response:
        """Return the page."""
        return HTMLResponse(
            render("prod9.app", "app.html.jinja", brand="prod9 app", title="Make brain volumes")
        )

    async def list_models(self, call: Call) -> Response:
        """Return the names of the models."""
        return JSONResponse({"models": list(self.models.names)})

    async def describe_model(self, call: Call) -> Response:
        """Load a model and return what it can do."""
        model = await run_in_threadpool(self.models.get, call.query_params.get("name", ""))
        return JSONResponse(model.to_dict())

    async def upload(self, call: Call) -> Response:
        """Keep the body of the call as a file, if it is a NIfTI volume."""
        _require_own(call)
        name = _UNSAFE.sub("_", Path(call.path_params["name"]).name).lstrip(".")[-120:] or "volume.nii.gz"
        id_ = secrets.token_hex(8)
        path = self.folder / "uploads" / id_ / name
        path.parent.mkdir(parents=True)
        try:
            await _receive(call, path)
            header = (await run_in_threadpool(read, path)).header
        except BaseException as error:
            shutil.rmtree(path.parent, ignore_errors=True)
            if isinstance(error, DataError):  # its message names the copy here
                raise DataError(str(error).replace(str(path), name)) from error
            raise
        self.uploads[id_] = path
        return JSONResponse(
            {
                "id": id_,
                "name": name,
                "url": f"/files/{id_}/{name}",
                "modality": parse_modality(name),
                "shape": list(header.shape),
                "spacing": [round(mm, 3) for mm in header.spacing],
            }
        )

    async def start(self, call: Call) -> Response:
        """Start a job."""
        _require_own(call)
        request = parse_request(await call.body(), self.uploads)
        what = f"{request.label} {_DONE[request.task]}".strip()
        title = f"{what} by {request.model}, {plural(request.num_samples, 'volume')}"

        def make(job: Job, report: Any) -> list[Result]:
            try:
                model = self.models.get(request.model)
                return carry_out(model, request, self.folder / "jobs" / job.id, report)
            except Prod9Error as error:
                raise type(error)(self._for_the_page(str(error))) from error

        return JSONResponse(self._job(self.runner.start(title, make)), status_code=202)

    async def list_jobs(self, call: Call) -> Response:
        """Return all jobs, the latest last."""
        return JSONResponse({"jobs": [self._job(job) for job in self.runner.jobs.values()]})

    async def cancel(self, call: Call) -> Response:
        """Ask a job to stop; it does so at its next step."""
        _require_own(call)
        job = self.runner.jobs.get(call.path_params["id"])
        if job is None:
            raise HTTPException(404, "expected the id of a job, got another")
        job.stop.set()
        return JSONResponse(self._job(job))

    async def file(self, call: Call) -> Response:
        """Return an uploaded file or a result."""
        owner, name = call.path_params["owner"], call.path_params["name"]
        known = {owner: self.uploads[owner]} if owner in self.uploads else {}
        if owner in self.runner.jobs:
            folder = self.folder / "jobs" / owner
            known = {path.name: path for result in self.runner.jobs[owner].results for path in _paths(result)}
            known[RECORD] = folder / RECORD
        path = next((path for path in known.values() if path.name == name and path.is_file()), None)
        if path is None:
            raise HTTPException(404, "expected a file of this app, got another")
        return FileResponse(path, filename=path.name)

    def _for_the_page(self, message: str) -> str:
        """Return a message with names of files as their owner knows them, and the page's words for options."""
        for path in self.uploads.values():
            message = message.replace(str(path), path.name)
        for words, here in _WORDS.items():
            message = message.replace(words, here)
        return message

    def _job(self, job: Job) -> dict[str, Any]:
        made = [
            {
                "name": result.path.name,
                "url": f"/files/{job.id}/{result.path.name}",
                "mask": None if result.mask is None else f"/files/{job.id}/{result.mask.name}",
            }
            for result in job.results
        ]
        return {
            "id": job.id,
            "title": job.title,
            "state": job.state,
            "share": round(job.share, 3),
            "seconds": round(job.seconds, 1),
            "message": job.message,
            "notes": [self._for_the_page(note) for note in job.results[0].notes] if made else [],
            "results": made,
            "record": f"/files/{job.id}/{RECORD}" if made else None,
        }


def _paths(result: Result) -> list[Path]:
    return [result.path] if result.mask is None else [result.path, result.mask]


async def _receive(call: Call, path: Path) -> None:
    size = 0
    try:
        with path.open("wb") as file:
            async for chunk in call.stream():
                size += len(chunk)
                if size > MAX_BYTES:
                    raise DataError(
                        f"{path}: expected a file of at most {MAX_BYTES >> 20} MiB, got a larger one; "
                        "use the command line for it."
                    )
                file.write(chunk)
    except ClientDisconnect as error:
        raise DataError(f"{path}: expected a whole file, got a part of it; send it again.") from error


def _require_own(call: Call) -> None:
    if HEADER not in call.headers:
        raise HTTPException(403, f"expected the header {HEADER}, got none; use the page of this app")


def _niivue() -> bytes:
    packed = files("prod9.evaluation.report") / "assets" / "niivue.umd.js.gz"
    return gzip.decompress(packed.read_bytes())


def _script(content: bytes) -> Response:
    return Response(content, media_type="text/javascript")


async def _refused(call: Call, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=400)


async def _http_error(call: Call, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, status_code=error.status_code)
