"""Every command line of README and documentation is one that our programs take, and those that can be are run."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from prod9.cli.front.common import RENAMED
from prod9.errors import ConfigError
from tests.architecture.commands_of_pages import (
    DEMO_PATH,
    OTHERS,
    ROOT,
    Line,
    config_of,
    is_there,
    leaf_of,
    lines_of,
    made_by,
    name_of,
    options_of,
    pages,
    parsed,
    shipped_outputs,
    spans_of,
    used_by,
)
from tests.harness import MODULES, Workspace, later_models, mask_model, run, trained

PAGES = [page for page in pages() if lines_of(page)]
RUN = [page for page in PAGES if any(line.reason is None for line in lines_of(page))]
OURS = [line for page in PAGES for line in lines_of(page) if line.program in MODULES]


@pytest.mark.parametrize("line", OURS, ids=str)
def test_our_programs_take_the_line(line):
    config_of(line, parsed(line))


def test_the_other_lines_name_what_is_there():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in (line for page in PAGES for line in lines_of(page) if line.program not in MODULES):
        assert line.program in OTHERS, line
        if line.program == "make":
            assert line.words[1] in targets, line
        if line.words[1] == "-m":
            assert find_spec(line.words[2].partition(".")[0]), line
        elif line.program in ("bash", "python"):
            assert (ROOT / line.words[1]).is_file(), line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_are_those_that_the_demo_or_an_earlier_command_makes(page):
    made = set(shipped_outputs())
    for line in (line for line in lines_of(page) if line.program in MODULES):
        values = parsed(line)
        missing = [path for path in used_by(line, values) if not is_there(path, made)]
        assert not missing, line
        made |= made_by(line, values)


@pytest.mark.parametrize("line", OURS, ids=str)
def test_options_have_their_present_names(line):
    command, rest = leaf_of(line.words)
    old = {word.partition("=")[0] for word in rest} & set(RENAMED)
    assert old <= options_of(command)


def test_prose_and_python_name_paths_of_the_demo_that_are_there():
    for page in pages():
        made = set().union(*(made_by(line, parsed(line)) for line in OURS if line.page == name_of(page)))
        for path in DEMO_PATH.findall(page.read_text(encoding="utf-8")):
            assert is_there(path.rstrip("./"), made), (name_of(page), path)


def test_pages_that_need_more_than_make_demo_say_so():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for folder, stages in (("stage2", "translation|all"), ("stage3", "control|all")):
            if re.search(rf"outputs/demo/starter/{folder}\b(?!_)", text):
                assert re.search(rf"prod9 demo --stages ({stages})", text), (name_of(page), folder)


def test_commands_in_prose_exist():
    for page in pages():
        for words in spans_of(page):
            command, rest = leaf_of(words)
            for word in rest:
                option = word.partition("=")[0]
                if re.fullmatch(r"--?[a-z][\w-]*", option):
                    assert option in options_of(command), (name_of(page), words)


@pytest.mark.parametrize(
    "words",
    [
        "generate label -o out --modle RUN",
        "generate label --model RUN",
        "generate labels -o out",
        "generate translate --model",
        "data simulate out -n few",
        "configs show demo/stage1 demo/stage2",
    ],
)
def test_a_wrong_line_is_found(words):
    with pytest.raises(
        Exception, match=r"(?i)no such option|missing|no command|requires|valid integer|unexpected"
    ):
        parsed(Line("a page", ("prod9", *words.split()), None))


@pytest.mark.parametrize(
    "words",
    [
        "train --config demo/stage9",
        "train --config demo/stage2",
        "train --config demo/stage1 --set data.rot=x",
    ],
)
def test_a_wrong_config_is_found(words):
    line = Line("a page", ("prod9-train-autoencoder", *words.split()), None)
    with pytest.raises((AssertionError, ConfigError)):
        config_of(line, parsed(line))


def test_a_wrong_path_is_found():
    line = Line("a page", ("prod9", "report", "outputs/demo/stage2"), None)
    assert used_by(line, parsed(line)) == {"outputs/demo/stage2"}
    assert not is_there("outputs/demo/stage2", set())
    assert is_there("outputs/demo/starter/stage2/split.json", set())


# -- running them -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return ``outputs`` as `prod9 demo --stages all` leaves it, of tiny models and few patients."""
    base = tmp_path_factory.getbasetemp()
    workspace: Workspace = trained(base)
    translator, control = later_models(base)
    outputs = tmp_path_factory.mktemp("docs") / "outputs"
    starter = outputs / "demo" / "starter"
    starter.mkdir(parents=True)
    shutil.copytree(workspace.cohort, outputs / "demo" / "data")
    runs = {"stage1": workspace.run1, "stage2_label": workspace.run2, "stage2": translator, "stage3": control}
    runs["masks_stage2"] = mask_model(base)
    for name, folder in runs.items():
        (starter / name).symlink_to(folder)
    made = run("prod9", "generate", "label", "-m", workspace.run2, "-n", 2, "-o", starter / "volumes")
    assert made.code == 0, made.err
    return outputs


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_lines_of_a_page_run_as_printed(page, demo, tmp_path, monkeypatch):
    shutil.copytree(demo, tmp_path / "outputs", symlinks=True)
    monkeypatch.chdir(tmp_path)
    for line in lines_of(page):
        if line.reason is None:
            assert line.program in MODULES, f"{line}: say why it is not run"
            ran = run(*line.words)
            assert ran.code == 0, f"{line}\n{ran.err}"
