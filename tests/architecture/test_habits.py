"""What runs before a commit and in CI is what the Makefile runs, so that one list is enough to know all of them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = ".venv/bin"


def recipe(target: str) -> list[str]:
    """Return the commands of a target of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    assert found, f"the Makefile has no target {target}"
    return [line.strip().replace("$(BIN)", BIN) for line in found[1].splitlines()]


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    return workflow["jobs"]


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_before_a_commit_runs_what_make_check_runs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"], "nothing is fetched for a hook"
    hooks = config["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == recipe("check")
    assert all(hook["always_run"] and not hook["pass_filenames"] for hook in hooks), (
        "the whole tree, as make does"
    )


def test_ci_calls_targets_that_exist(jobs: dict[str, Any]) -> None:
    called = {line.split()[1] for job in jobs.values() for line in commands(job) if line.startswith("make ")}
    assert called == {"check", "docs", "test", "coverage"}
    assert all(recipe(target) for target in called)


def test_windows_runs_what_make_test_runs(jobs: dict[str, Any]) -> None:
    install = next(line for line in recipe("$(INSTALLED)") if "pip install" in line)
    lines = [line.replace(".venv/Scripts", BIN) for line in commands(jobs["windows"])]
    assert lines == ["python -m venv .venv", install, *recipe("test")]


def test_ci_covers_every_platform_and_python(jobs: dict[str, Any]) -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pythons = re.findall(r"Python :: (3\.\d+)", pyproject)
    matrix = jobs["test"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest"]
    assert matrix["python"] == jobs["windows"]["strategy"]["matrix"]["python"] == pythons
    covered = next(s["with"]["python-version"] for s in jobs["coverage"]["steps"] if "with" in s)
    assert matrix["exclude"] == [{"os": jobs["coverage"]["runs-on"], "python": covered}]
