"""What a validation says in one line."""

import math

import pytest

from prod9.training.recipes.headline import Headline, Yardstick
from prod9.training.recipes.table import all_recipes

PSNR = Headline(
    text="reconstruction {value} dB",
    metric="psnr",
    digits=1,
    yardsticks=(Yardstick(text="the sources have {value}", metric="psnr_sources"),),
    also=(Yardstick(text="{percent} right", metric="accuracy"),),
)


def test_a_line_has_the_score_the_best_and_the_yardstick():
    metrics = {"val/psnr": 24.06, "val/psnr_sources": 19.2, "val/accuracy": 0.159}
    assert PSNR.sentence(metrics) == "reconstruction 24.1 dB, 16% right; the sources have 19.2"
    assert PSNR.sentence(metrics, standing="the best so far") == (
        "reconstruction 24.1 dB, 16% right, the best so far; the sources have 19.2"
    )


def test_what_was_not_measured_is_left_out():
    assert PSNR.sentence({"val/other": 1.0}) == ""
    assert PSNR.sentence({"val/psnr": math.nan}) == ""
    assert PSNR.sentence({"test/psnr": 20.0}, part="test") == "reconstruction 20.0 dB"


def test_constants_are_yardsticks_too():
    assert PSNR.sentence({"val/psnr": 20.0}, constants={"psnr_sources": 18.0}).endswith(
        "the sources have 18.0"
    )


@pytest.mark.parametrize("recipe", all_recipes())
def test_every_recipe_has_a_headline_about_what_it_measures(recipe):
    assert recipe.headline.metric in recipe.metrics
