"""``--engine ray``: the parts of a command as tasks of Ray, one actor per GPU.

An actor does one part, so it loads the model once. Ray starts an actor that died again and repeats its task, which goes
on where the part stopped. What a part makes is what ``--part`` makes, and the parts are joined as by ``prod9 merge``.

P. Moritz et al., "Ray: a distributed framework for emerging AI applications", OSDI 2018.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from prod9 import errors
from prod9.cli import shared
from prod9.cli.front.after import tell_after_results
from prod9.errors import ConfigError, MissingDependencyError, Prod9Error
from prod9.system.parts import WorkPart, part_folders
from prod9.system.wording import plural

ENGINES = ("ray",)
RESTARTS = 3
"""How often Ray starts a lost actor again."""
MOST_CPU_PARTS = 8
"""Without a GPU, parts by default; each holds the model and what it computes in memory."""


EngineOption = Annotated[
    str | None,
    typer.Option("--engine", metavar="ray", help="Do the parts as tasks of Ray, a GPU each, and merge them."),
]
AddressOption = Annotated[
    str | None, typer.Option("--address", metavar="ADDR", help="With --engine: the cluster. [this machine]")
]
PartsOption = Annotated[
    int | None,
    typer.Option("--parts", min=1, help="With --engine: number of parts. [one per GPU, else per CPU]"),
]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Whether, and where, the parts of a command are done by others."""

    engine: EngineOption = None
    address: AddressOption = None
    parts: PartsOption = None

    def __post_init__(self) -> None:
        """Refuse (ConfigError) an unknown engine, and options that need one."""
        if self.engine is not None and self.engine not in ENGINES:
            raise ConfigError(f"--engine: expected {', '.join(ENGINES)}, got {self.engine}; correct it")
        given = "--address" if self.address is not None else "--parts" if self.parts is not None else None
        if self.engine is None and given is not None:
            raise ConfigError(f"{given}: expected --engine ray with it, got none; add it, or leave it out")


Answer = dict[str, Any]
"""What a command prints with ``--json``."""


def run_parts(
    command: Callable[..., None], values: Mapping[str, Any], directory: Path, engine: Engine
) -> list[Answer]:
    """Do all parts of a command as tasks of Ray, merge them in ``directory``, and return what each part answered.

    Raises ConfigError for ``--part`` beside ``--engine`` and an address without a cluster, MissingDependencyError
    without Ray, the errors of the parts, and Prod9Error for a part whose actors died too often.

    Args:
        command: a function of a module, as Typer calls it.
        values: its arguments.
        directory: that the parts have their folders in.
        engine: the options.
    """
    if values.get("part") is not None:
        raise ConfigError(
            "--part: expected it without --engine, which does all parts, got both; leave one out"
        )
    from prod9.cli.parts.merge import merge_parts

    ray = _import_ray()
    with shared.resumable("What is done is kept; the same command goes on from here."):
        with redirect_stdout(sys.stderr):  # what Ray tells, of a lost worker too, is no result of the command
            _connect(ray, engine.address)
            try:
                answers = _do(ray, command, values, directory, engine)
            finally:
                ray.shutdown()
        merge_parts(directory)
    return answers


def _import_ray() -> Any:
    try:
        import ray  # pyrefly: ignore[missing-import]
    except ImportError as error:
        raise MissingDependencyError(
            "--engine ray: expected the package ray, got none; install it with: pip install 'prod9[ray]'"
        ) from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    """Join the cluster at ``address``, or start one on this machine that ends with the command."""
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            configure_logging=False,
            **({} if address else {"include_dashboard": False}),
        )
    except Exception as error:  # Ray raises plain ones, too
        wanted = "Ray to start on this machine" if address is None else f"a running cluster at {address}"
        remedy = (
            "look whether the machine is overloaded, and run it again"
            if address is None
            else ("start one with `ray start --head`, or leave --address out")
        )
        text = " ".join(str(error).split())[:120]
        raise ConfigError(f"--engine ray: expected {wanted}, got none ({text}); {remedy}") from error


def _do(
    ray: Any, command: Callable[..., None], values: Mapping[str, Any], directory: Path, engine: Engine
) -> list[Answer]:
    there = ray.cluster_resources()
    on_gpu = values.get("device") != "cpu" and there.get("GPU", 0) >= 1
    count = engine.parts or _count(directory, int(there.get("GPU", 0)) if on_gpu else None, there)
    shared.messages.print(f"{plural(count, 'part')} of the work, {plural(count, 'actor')} of Ray.")
    actor = ray.remote(PartWorker).options(
        num_cpus=1, num_gpus=1 if on_gpu else 0, max_restarts=RESTARTS, max_task_retries=RESTARTS
    )
    name = _name_of(command)
    parts = [WorkPart(number, count) for number in range(1, count + 1)]
    workers = [actor.remote(str(Path.cwd())) for _ in parts]
    tasks = {
        worker.work.remote(command.__module__, name, _for_part(values, part)): part
        for worker, part in zip(workers, parts, strict=True)
    }
    answers: dict[int, Answer] = {}
    while tasks:
        (done,), _ = ray.wait(list(tasks), num_returns=1)
        part = tasks.pop(done)
        try:
            answer = ray.get(done)
        except ray.exceptions.RayActorError as error:
            raise Prod9Error(
                f"part {part}: expected an actor that lives, got {RESTARTS + 1} that died; look whether its memory was "
                "enough, and run the same command again: what is done is kept"
            ) from error
        if "error" in answer:
            kind, message = answer["error"]
            raise getattr(errors, kind)(message)
        answers[part.number] = answer
        shared.messages.print(f"Part {part} is done.")
    return [answers[number] for number in sorted(answers)]


def _count(directory: Path, gpus: int | None, there: Mapping[str, float]) -> int:
    """Return the number of parts: as begun before, else one per GPU, else per CPU up to a few."""
    begun = {part.count for part in part_folders(directory)}
    if len(begun) == 1:
        return begun.pop()
    return gpus or max(1, min(int(there.get("CPU", 1)), MOST_CPU_PARTS))


def _name_of(command: Callable[..., None]) -> str:
    """Return the name of ``command`` in its module, which a process that imports the module finds it by."""
    module = sys.modules[command.__module__]
    return next(name for name, value in vars(module).items() if value is command)


def _for_part(values: Mapping[str, Any], part: WorkPart) -> dict[str, Any]:
    own = {"engine": None, "address": None, "parts": None, "part": str(part), "as_json": True}
    return {**values, **own}


class PartWorker:
    """Does a part of a command in a process of its own.

    place: the folder that the command was started in; paths are relative to it.
    """

    def __init__(self, place: str) -> None:
        try:
            os.chdir(place)
        except OSError:
            self._problem = (
                f"{place}: expected the folder that the command was started in on every machine of the cluster, got "
                "none; start it in a folder that all of them share"
            )
        else:
            self._problem = ""

    def work(self, module: str, name: str, values: dict[str, Any]) -> Answer:
        """Call the command ``name`` of ``module`` and return its answer, or its error by class and message."""
        if self._problem:
            return {"error": ["ConfigError", self._problem]}
        answer = io.StringIO()
        try:
            with redirect_stdout(answer):
                getattr(import_module(module), name)(**values)
        except Prod9Error as error:
            return {"error": [type(error).__name__, str(error)]}
        except typer.Exit:  # it has answered, and the answer says what is wrong
            pass
        return json.loads(answer.getvalue())


def generate_on(command: Callable[..., None], values: Mapping[str, Any], engine: Engine) -> None:
    """Do a command of ``prod9 generate`` by ``engine``, and print what was made."""
    from prod9.system.machine import expand

    if values.get("output_dir") is None:
        raise ConfigError("--engine: expected it with --output-dir, got none; name a folder of results")
    directory = expand(Path(values["output_dir"]))
    answers = run_parts(command, values, directory, engine)
    result = {
        "output_dir": str(directory),
        "made": [name for answer in answers for name in answer["made"]],
        "kept": sum(answer["kept"] for answer in answers),
    }
    if values["as_json"]:
        shared.print_json(result)
        return
    shared.console.print(
        f"{plural(result['made'], 'result')} made, {result['kept']} kept, in {result['output_dir']}"
    )
    tell_after_results(directory, _name_of(command).rpartition("_")[2])
