"""What comes next: the command that follows the one that has just ended, as a line to copy."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prod9.errors import Prod9Error
from prod9.modalities import SEG
from prod9.stages import LABEL_MAPS, STAGES, Stage, stages_on
from prod9.system.shell import shown_line
from prod9.system.terminal import PlainConsole

if TYPE_CHECKING:
    from prod9.config.schema import RunConfig

PATIENTS = "REAL_PATIENTS"
"""Stands for the folder of the patients that a model was trained on, where it is not here."""
_NEXT = PlainConsole(stderr=True)
_inner = False
_given: tuple[str, ...] = ()


def tell_next(*words: object, note: str = "") -> None:
    """Print the next command to stderr, which ``--quiet`` leaves out.

    words: of the command line, each quoted where a shell needs it. note: what it is for.
    """
    if not _inner:
        _NEXT.print(f"Next{f', {note}' if note else ''}: {shown_line(words)}")


@contextmanager
def as_step() -> Iterator[None]:
    """Let commands that are steps of another one print no next command: the other one goes on by itself."""
    global _inner
    before, _inner = _inner, True
    try:
        yield
    finally:
        _inner = before


def remember(words: Sequence[str]) -> None:
    """Keep the words of the command line after ``prod9``."""
    global _given
    _given = tuple(words)


def tell_again(*more: str, note: str) -> None:
    """Print the command that is running, with ``more``."""
    tell_next("prod9", *_given, *more, note=note)


def tell_merge(directory: Path) -> None:
    """Print the command that joins the parts in ``directory``."""
    tell_next("prod9", "merge", directory, note="when every part is done")


def scoring(*kind: str, real: object) -> Callable[[Path], Sequence[object]]:
    """Return what makes the words of ``prod9 evaluate KIND`` for a folder of results, against the patients ``real``."""
    return lambda made: ("evaluate", *kind, real, made, "-o", f"{made}_scores")


def tell_after_results(directory: Path, made: str) -> None:
    """Print what follows the results in ``directory``. made: by which command of ``generate``, as ``label``."""
    scored = {"label": "images", "labels": "images", "control": "control", "patients": "patients"}
    if made in scored:
        tell_next("prod9", *scoring(scored[made], real=PATIENTS)(directory))
    elif made == "masks":
        tell_next("prod9", "evaluate", "masks", directory, "--training", PATIENTS)
    elif made == "translate":
        tell_next("prod9", "data", "check", directory, "--html", f"{directory}.html", note="to look at them")
    else:
        tell_next("prod9", "app", note="to look at more in the browser")


def tell_after_training(config: "RunConfig", given: str) -> None:
    """Print what a trained run is good for, and the command of the stage that builds on it.

    given: ``--config`` of the run, beside which the configs of later stages lie.
    """
    stage, used = STAGES[config.stage], use_of(config, config.output_dir)
    for follower in stages_on(stage)[:1]:
        for name, key in _configs_of(follower, stage, given):
            if _shows_labels(name) != config.data.shows_labels:
                continue
            tell_next("prod9", "train", "--config", name, *_inputs(name, key, config.output_dir))
            break
    if used:
        tell_next(*used)


def use_of(config: "RunConfig", run: str | Path) -> list[str]:
    """Return the words of the command that uses the model at ``run``; none where it needs what is not known."""
    stage = STAGES[config.stage]
    kind = LABEL_MAPS if config.data.shows_labels else str(getattr(config.model, "kind", ""))
    template = stage.use(kind)
    base = None if stage.base_key is None else config.base_path(stage.base_key)
    known = {
        "run": str(run),
        "data": str(config.data.root),
        "label": list(config.data.label_map)[-1],
        "base": base,
    }
    if "{base}" in template and base is None:
        return []
    return [word.format_map(known) for word in template.split()]


def data_of(config: "RunConfig") -> str:
    """Return the folder of the patients that a model was trained on, or what to put in its place if it is not here."""
    root = Path(config.data.root)
    return str(root) if root.exists() else PATIENTS


def tell_after_scores(generated: Path, scores: Path, real: Path | None = None) -> None:
    """Print what follows an evaluation, which knows the real patients, or an audit of generated volumes."""
    run = next((one for one in generated.absolute().parents[:2] if (one / "config.yaml").is_file()), None)
    if real is None:
        if run is not None:
            tell_next("prod9", "report", run, "--generated", generated, "--include", scores)
    elif run is not None:
        tell_next("prod9", "audit", "--generated", generated, "--run", run)
    else:
        tell_next("prod9", "audit", "--generated", generated, "--train", real, "--heldout", "UNSEEN_PATIENTS")


def _configs_of(follower: Stage, stage: Stage, given: str) -> Iterator[tuple[str, str]]:
    """Yield configs of a later stage that belong to ``given``, nearest first, and their key of ``inputs``."""
    from prod9.config.load import merge_config, shipped_configs

    key = next(name for name, base in follower.bases.items() if base == stage.name)
    path = Path(given)
    if path.suffix in (".yaml", ".yml"):
        names = [str(path.with_name(f"{name}{path.suffix}")) for name in follower.configs]
        yield from ((name, key) for name in names if Path(name).is_file())
        return
    shipped = shipped_configs()
    folder = given.rpartition("/")[0]
    near = [f"{folder}/{name}" for name in follower.configs]
    yield from ((name, key) for name in near if name in shipped)
    family = "/".join(given.split("/")[:2])
    for name, place in shipped.items():
        try:
            if name.startswith(family) and merge_config(place).get("stage") == follower.name:
                yield name, key
        except Prod9Error:
            continue


def _shows_labels(name: str) -> bool:
    """Return whether the config ``name`` trains on label maps."""
    from prod9.config.load import merge_config, shipped_configs

    data = merge_config(shipped_configs().get(name, Path(name))).get("data") or {}
    return data.get("modalities") == [SEG]


def _inputs(name: str, key: str, output_dir: str) -> list[str]:
    """Return ``--set inputs.KEY=RUN`` unless the config names that run itself."""
    from prod9.config.load import merge_config, shipped_configs

    place = shipped_configs().get(name, Path(name))
    named = merge_config(place).get("inputs", {}).get(key)
    same = named is not None and Path(str(named)) == Path(output_dir)
    return [] if same else ["--set", f"inputs.{key}={output_dir}"]
