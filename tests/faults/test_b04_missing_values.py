"""A command line that ends early, or whose option has no value, is wrong usage: exit code 2, nothing starts."""

import importlib

import pytest
import typer

from tests.harness import MODULES, run

PROGRAMS = [name for name in MODULES if name.startswith("prod9-train")]


def commands():
    """Yield program, words and command of every command there is."""
    for program, module in MODULES.items():
        todo = [([], typer.main.get_command(importlib.import_module(module).app))]
        while todo:
            words, command = todo.pop()
            inner = getattr(command, "commands", {})
            todo += [([*words, name], one) for name, one in inner.items()]
            if not inner:
                yield program, words, command


EVERY = list(commands())


@pytest.mark.parametrize("program", PROGRAMS)
def test_b4_train_with_nothing_after_is_usage(program):
    ran = run(program, "train")
    assert ran.code == 2
    assert "--config" in ran.err
    assert "Traceback" not in ran.err
    assert "ValueError" not in ran.err


def test_b4_every_command_survives_an_empty_line():
    for program, words, command in EVERY:
        if not any(parameter.required for parameter in command.params):
            continue
        ran = run(program, *words)
        assert ran.code == 2, (program, words, ran.err)


def test_b4_every_option_without_its_value_is_usage():
    for program, words, command in EVERY:
        for option in command.params:
            if option.param_type_name != "option" or option.is_flag or option.opts[0] == "--resume":
                continue
            for tail in ([], ["--debug"], [""]):
                with pytest.raises(Exception, match="requires") as refused:
                    command.make_context(command.name, [option.opts[0], *tail])
                assert refused.value.exit_code == 2, (program, words, option.opts, tail)


def test_b4_an_option_is_no_value_of_the_one_before(tmp_path):
    ran = run("prod9-train-autoencoder", "train", "--config", "demo/stage1", "--output-dir", "--check")
    assert ran.code == 2
    assert "'--output-dir' requires an argument" in ran.err


def test_b4_a_bare_resume_still_means_auto(tmp_path):
    for tail in (["--resume"], ["--resume", "--print-config"], ["--resume", "auto", "--print-config"]):
        ran = run("prod9-train-autoencoder", "train", "--print-config", "--config", "demo/stage1", *tail)
        assert ran.code == 0, ran.err


def test_b4_negative_numbers_and_equals_signs_are_values():
    ran = run("prod9-train-autoencoder", "train", "--config=demo/stage1", "--set=seed=3", "--print-config")
    assert ran.code == 0, ran.err
    assert "seed: 3" in ran.out
