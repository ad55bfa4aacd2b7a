"""Runs of every recipe on the pretend device: no device fault, and one wait per step."""

from functools import partial
from pathlib import Path

import pytest

from prod9.training import run
from prod9.training.recipes.table import RECIPES, recipe_of
from tests.fixtures import write_brats_tree
from tests.pretend import pretend_cuda
from tests.pretend.training import trained_on
from tests.training import tiny_control, tiny_maisi
from tests.training.tiny import MemoryData, autoencoder_config, transformer_config, write_autoencoder
from tests.training.tiny_detail import detail_config
from tests.training.tiny_refiner import refiner_config, write_translator

STEPS = 4
HOW = {
    "training": {"max_steps": STEPS, "validate_every_steps": STEPS, "log_every_steps": 100},
    "callbacks": {"num_samples": 1},
    "trainer": {"loggers": ["csv"], "progress": False},
}
WAITS_PER_STEP = 1
"""The most that a training step may wait for its device: whether loss and gradient are finite."""


@pytest.fixture
def memory(monkeypatch):
    """Let runs take their data from memory."""
    monkeypatch.setattr(run, "build_data_module", lambda config, *_, **__: MemoryData(config))


def configs(folder):
    """Return, by name, what makes a small configuration of every recipe."""
    data, upstream = folder / "data", folder / "upstream.ckpt"

    def tokens(kind, **model):
        write_autoencoder(upstream)
        model = {"kind": kind, "embed_dim": 24, "num_blocks": 2, "num_heads": 2, **model}
        return transformer_config(data, folder / kind, upstream, model=model, **HOW)

    def refiner():
        (folder / "translator").mkdir()
        write_translator(folder / "translator")
        return refiner_config(data, folder / "translator" / "refiner", **HOW)

    maisi = partial(tiny_maisi.make, folder=folder, **HOW)
    return {
        "autoencoder": lambda: autoencoder_config(data, folder / "stage1", **HOW),
        "label_conditional": lambda: tokens("label_conditional"),
        "decoder": lambda: tokens("decoder"),
        "single_stream": lambda: tokens("single_stream", patch_size=2),
        "refiner": refiner,
        "maskgit_controlnet": lambda: tiny_control.make(folder, "control", **HOW),
        "maisi_vae": lambda: maisi("maisi_vae", name="vae"),
        "maisi_diffusion": lambda: maisi("maisi_diffusion", name="flow"),
        "maisi_controlnet": lambda: maisi("maisi_controlnet", name="flow_control"),
    }


NAMES = tuple(configs(Path()))


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("name", NAMES)
def test_a_run_stays_on_its_device_and_waits_once_per_step(name, tmp_path):
    config = configs(tmp_path)[name]()
    with pretend_cuda() as device, trained_on(device) as steps:
        result = run.train(config)
    assert result.step == STEPS
    assert len(steps) == STEPS
    # The first step of stage 1 fits the latent to its range.
    assert all(sum(waits.values()) <= WAITS_PER_STEP for waits in steps[1:]), steps[1:]


def test_a_detail_flow_trains_on_volumes_that_the_device_reconstructs(tmp_path):
    write_autoencoder(tmp_path / "stage1.ckpt")
    write_brats_tree(tmp_path / "cohort", 5)
    config = detail_config(tmp_path / "cohort", tmp_path / "detail", **HOW)
    with pretend_cuda() as device, trained_on(device) as steps:
        assert run.train(config).step == STEPS
    assert all(sum(waits.values()) <= WAITS_PER_STEP for waits in steps[1:]), steps[1:]


@pytest.mark.usefixtures("memory")
def test_a_flow_is_distilled_on_the_device(tmp_path):
    student = {
        "distillation": {"kind": "shortcut"},
        "loss": {"condition_dropout": 0.0},
        "sampler": {"steps": 2},
        "model": {"num_step_sizes": 2},
    }
    make = partial(tiny_maisi.make, "maisi_diffusion", tmp_path)
    teacher = make("teacher", **HOW, sampler={"steps": 3, "guidance_scale": 1.5})
    with pretend_cuda() as device, trained_on(device) as steps:
        run.train(teacher)
        run.train(make("student", **HOW, **student), init_from=teacher.output_dir)
    assert all(sum(waits.values()) <= WAITS_PER_STEP for waits in steps[1:]), steps[1:]


def test_every_recipe_is_here(tmp_path):
    flat = [
        one for found in RECIPES.values() for one in (found.values() if isinstance(found, dict) else [found])
    ]
    ran = {recipe_of(make()).__name__ for make in configs(tmp_path).values()}
    # Those of the detail flows differ from the one that ran by their data, that of label maps by its losses.
    assert {recipe.__name__ for recipe in flat} - ran == {
        "LabelMapRecipe",
        "ReconstructionDetailRecipe",
        "TranslationDetailRecipe",
    }
