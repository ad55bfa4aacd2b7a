"""The sampler's flags reach its section of the config, and nothing else does."""

from prod9.cli.generate.options import Sampler
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
