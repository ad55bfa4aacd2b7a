"""The examples in docstrings run as they stand, each by itself, and print what they say."""

import ast
import doctest
from collections.abc import Iterator
from pathlib import Path

import pytest

import prod9

PACKAGE = Path(prod9.__file__).parent
WITH_EXAMPLE = {
    "AutoencoderFSQ", "AutoencoderInferenceWrapper", "AutoencoderKlMaisi", "Case", "CombinedMetric", "ControlNetRF",
    "DiffusionModelRF", "FiniteScalarQuantizer", "GridPlacement", "MaskGiTCondition", "MaskGiTSampler",
    "MaskGiTScheduler", "RectifiedFlowSampler", "RectifiedFlowSchedulerRF", "SinCosPosEmbed", "Split",
    "StepBatchSampler", "TokenVocabulary", "TransformerDecoder", "TransformerDecoderSingleStream", "VAEGANLoss",
}  # fmt: skip
"""Classes that people use in scripts of their own."""


def examples() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Module):
                text = ast.get_docstring(node) or ""
                if ">>>" in text:
                    yield getattr(node, "name", path.stem), text


EXAMPLES = dict(examples())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(EXAMPLES[name], {}, name, None, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    printed: list[str] = []
    runner.run(test, out=printed.append)
    assert runner.failures == 0, "".join(printed)


def test_what_people_use_has_an_example() -> None:
    assert not WITH_EXAMPLE - EXAMPLES.keys()
