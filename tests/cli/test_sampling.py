"""The sampler's flags reach its section of the config, and nothing else does."""

from dataclasses import dataclass
from typing import Annotated

import typer

from prod9.cli import shared
from prod9.cli.generate.options import Sampler, grouped
from prod9.cli.shared import new_app
from tests.harness import Workspace, run


def test_flags_that_are_not_given_change_nothing() -> None:
    assert Sampler(steps=None, top_p=None).changes() == []
    assert Sampler(steps=8, guidance_scale=0.0).changes() == [
        ("sampler.steps", 8),
        ("sampler.guidance_scale", 0.0),
    ]


def test_flags_win_over_set(workspace: Workspace) -> None:
    ran = run(
        "prod9", "generate", "label", "--model", workspace.run2, "-o", "unused", "--print-config",
        "--steps", 7, "--set", "sampler.steps=3",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "steps: 7" in ran.out


def test_every_flag_of_generate_label_reaches_the_sampler(workspace: Workspace) -> None:
    ran = run(
        "prod9", "generate", "label", "--model", workspace.run2, "-o", "unused", "--print-config",
        "--steps", 7, "--temperature", 0.8, "--top-p", 0.95, "--order", "random", "--remasking", 0.1,
        "--guidance-scale", 1.5, "--guidance-schedule", "cosine",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    for line in (
        "steps: 7", "temperature: 0.8", "top_p: 0.95", "order: random", "remasking: 0.1", "guidance_scale: 1.5",
        "guidance_schedule: cosine",
    ):  # fmt: skip
        assert line in ran.out


def test_values_out_of_range_are_refused_by_their_key(workspace: Workspace) -> None:
    for flag, value, key in (
        ("--remasking", 1.5, "sampler.remasking"),
        ("--top-p", 0.0, "sampler.top_p"),
        ("--guidance-schedule", "quadratic", "sampler.guidance_schedule"),
    ):
        ran = run("prod9", "generate", "label", "--model", workspace.run2, "-o", "unused", flag, value)
        assert ran.code == 2
        assert key in ran.err


def test_a_group_of_options_is_one_argument() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Pair:
        left: Annotated[int, typer.Option("--left")]
        right: Annotated[int, typer.Option("--right")] = 2

    seen: list[tuple[Pair, str]] = []

    def command(*, name: Annotated[str, typer.Option("--name")] = "x", pair: Pair) -> None:
        """Take a pair."""
        seen.append((pair, name))

    app = new_app("Pairs.")
    app.command("take")(grouped(command))
    assert shared.run(app, ["take", "--left", "1", "--name", "y"]) == 0
    assert seen == [(Pair(left=1, right=2), "y")]
    assert shared.run(app, ["take"]) == shared.WRONG_USAGE
