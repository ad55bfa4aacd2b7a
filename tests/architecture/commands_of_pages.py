"""Finds the command lines of the documentation, and says what each of them needs and makes.

A page is a Markdown file of the repository. Its bash blocks are run by the tests, after what `make demo` and
`prod9 demo --stages all` leave, unless the line before the block is `<!-- not run: REASON -->`.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from prod9.config.load import load_config, shipped_configs
from prod9.demo.families import FAMILIES
from prod9.demo.plan import make_plan
from prod9.evaluation.report.pictures import PICTURES
from prod9.stages import STAGES
from tests.harness import MODULES

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n)?^```bash\n(?P<body>.*?)^```", re.DOTALL | re.MULTILINE
)
SPAN = re.compile(r"(?<!`)`(prod9[^`]*)`(?!`)")
DEMO_PATH = re.compile(r"outputs/demo[\w./-]*")
OTHERS = ("git", "cd", "pip", "python3", "python", ".", "export", "bash", "make", "ssh")
OUTPUTS = ("output_dir", "output", "new_folder", "bundle")
ROOTS = ("outputs/", "runs/", "plan/", "weights/")
"""Where the paths of our own commands begin; any other path in a command is the reader's."""


@dataclass(frozen=True)
class Line:
    """One command line, its variables filled in. reason: why it is not run; None for one that is."""

    page: str
    words: tuple[str, ...]
    reason: str | None

    @property
    def program(self) -> str:
        return self.words[0]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def pages() -> list[Path]:
    """Return the Markdown files that show commands; the log tells of the past."""
    folders = (ROOT, ROOT / "docs", ROOT / "src" / "prod9", ROOT / "examples", ROOT / "benchmarks")
    found = [p for folder in folders[1:] for p in folder.rglob("*.md")] + list(ROOT.glob("*.md"))
    return sorted(p for p in found if p.name not in ("log.md", "CHANGELOG.md"))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def lines_of(page: Path) -> tuple[Line, ...]:
    """Return the command lines of a page in order."""
    found = []
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        variables: dict[str, str] = {}
        for text in block["body"].replace("\\\n", " ").splitlines():
            for words in _commands(text, variables):
                name, equals, value = words[0].partition("=")
                if equals and name.isupper():
                    variables[name] = value
                else:
                    found.append(Line(name_of(page), words, block["reason"]))
    return tuple(found)


def _commands(text: str, variables: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """Yield the commands of a line as words, with the variables that the block has set."""
    for name, value in variables.items():
        text = text.replace(f"${name}", value)
    words = shlex.split(text, comments=True)
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        yield tuple(words[:end])
        words = words[end + 1 :]


def spans_of(page: Path) -> Iterator[tuple[str, ...]]:
    """Yield the commands that prose shows in backticks, whole or in part."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for span in SPAN.finditer(prose):
        words = tuple(span[1].split())
        if words[0] in MODULES:
            yield words


# -- what a command line says -----------------------------------------------------------------------


def leaf_of(words: tuple[str, ...]) -> tuple[Any, list[str]]:
    """Return the parser that ``words`` name, and what is left for it; ValueError for no command of ours."""
    command, rest = parser_of(words[0]), list(words[1:])
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            raise ValueError(f"no command {rest[0]!r}")
        command = command.commands[rest.pop(0)]
    return command, rest


@cache
def parser_of(program: str) -> Any:
    return typer.main.get_command(import_module(MODULES[program]).app)


def parsed(line: Line) -> dict[str, Any]:
    """Return the values of all options and arguments; raises what the parser raises."""
    command, rest = leaf_of(line.words)
    return command.make_context(command.name, rest).params


def options_of(command: Any) -> set[str]:
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {
        "-h",
        "--help",
    }


def config_of(line: Line, values: dict[str, Any]) -> Any:
    """Return the config that a line names, with its changes; None for a file of the reader's."""
    name = values.get("config")
    if name is None or name.endswith(".yaml"):
        return None
    assert name in shipped_configs(), f"{line}: no config {name}"
    config = load_config(name, overrides=values.get("overrides") or (), fill_variables=False)
    program = STAGES[config.stage].command
    assert line.program in (program, "prod9"), f"{line}: {name} belongs to {program}"
    return config


def made_by(line: Line, values: dict[str, Any]) -> set[str]:
    """Return the paths that a line writes to."""
    made = {str(values[name]) for name in OUTPUTS if values.get(name) is not None}
    config = config_of(line, values)
    if config is not None and values.get("output_dir") is None:
        made.add(config.output_dir.replace("${PROD9_RUNS:runs}", "runs"))
    return made


def used_by(line: Line, values: dict[str, Any]) -> set[str]:
    """Return the paths of ours that a line reads."""
    texts: list[str] = []
    for name, value in values.items():
        if name not in (*OUTPUTS, "config", "html"):
            texts += [str(one) for one in (value if isinstance(value, (list, tuple)) else [value])]
    texts = [text for text in texts if not text.startswith("output_dir=")]
    paths = {text.rpartition("=")[2] for text in texts}
    return {path for path in paths if path.startswith(ROOTS)}


# -- what is there ----------------------------------------------------------------------------------


@cache
def demo_paths() -> tuple[frozenset[str], frozenset[str]]:
    """Return what `prod9 demo` leaves: folders that hold others, and what they hold (any path below is there)."""
    holders, leaves = set(), set()
    for name, family in FAMILIES.items():
        for from_scratch in (False, True):
            plan = make_plan(Path(family.folder), from_scratch=from_scratch, family=name, stages="all")
            stages = {family.autoencoder, family.generator, family.control}
            stages |= {"stage2", "stage2_refiner"} if "translation" in plan.stages else set()
            stages |= {"masks_stage1", "masks_stage2", "masks"} if "masks" in plan.stages else set()
            parts = {*stages, "volumes", "scores"}
            holders |= {str(plan.output_dir), str(plan.run_dir)}
            leaves |= {str(plan.run_dir / part) for part in parts}
            files = ("report.html", "metrics.json", *(picture.file for picture in PICTURES))
            leaves |= {str(plan.data_dir), *(str(plan.output_dir / file) for file in files)}
    return frozenset(holders), frozenset(leaves)


def is_there(path: str, more: set[str]) -> bool:
    """Tell whether ``path`` is one that the demo, a shipped config or a command that made ``more`` leaves."""
    holders, leaves = demo_paths()
    if path.rstrip("/") in holders:
        return True
    known = leaves | more
    return any(str(one) in known for one in (Path(path), *Path(path).parents))


@cache
def shipped_outputs() -> frozenset[str]:
    """Return where the shipped configs write, but for those that the demo uses in a folder of its own."""
    outputs = {load_config(name, fill_variables=False).output_dir for name in shipped_configs()}
    return frozenset(
        path.replace("${PROD9_RUNS:runs}", "runs") for path in outputs if not path.startswith("outputs/demo")
    )


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for page in pages() for line in lines_of(page))
