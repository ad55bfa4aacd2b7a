"""Covariates from a table to generated volumes, in both families, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from prod9.conditions import hide_covariates
from prod9.config.load import load_config
from prod9.data.covariates import CovariateCoder
from prod9.data.layouts.find import find_cases
from prod9.diffusion.condition import FlowCondition
from prod9.errors import ConfigError, DataError
from prod9.generator.condition import MaskGiTCondition
from tests.fixtures import write_brats_tree
from tests.harness import Workspace, run
from tests.networks import shaken

COVARIATES = {"numbers": {"age": [20, 80], "volume": [0, 200]}, "categories": {"sex": ["F", "M", "X"]}}
SHAPE = [3, 3]


def table(path: Path, cohort: Path, *, last: str = "F") -> Path:
    cases = sorted(folder.name for folder in cohort.iterdir())
    rows = [
        f"{case},{30 + 5 * k},{'' if k == 1 else 10 * k},{'M' if k else last}" for k, case in enumerate(cases)
    ]
    path.write_text("\n".join(["case,age,volume,sex", *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def config(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("covariates")
    values = yaml.safe_load(workspace.stage2.read_text())
    values["output_dir"] = str(folder / "run")
    values["covariates"] = {**COVARIATES, "file": str(table(folder / "table.csv", workspace.cohort))}
    values["model"]["covariates"] = SHAPE
    values["data"]["store_dir"] = str(workspace.run2 / "store")
    values["training"] |= {"max_steps": 2, "learning_rate": 0.1}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def model(config: Path) -> Path:
    ran = run("prod9-train-transformer", "train", "--config", config, "--json")
    assert ran.code == 0, ran.err
    return config.parent / "run"


def test_a_transformer_learns_from_a_table_and_is_asked_for_values(model: Path, tmp_path: Path) -> None:
    values = ("--set-covariate", "age=80", "--set-covariate", "sex=X")
    for out, more in (("plain", ()), ("old", values)):
        ran = run("prod9", "generate", "label", "-m", model, "-l", "T1", "-n", 1, "-o", tmp_path / out, *more)
        assert ran.code == 0, ran.err
        assert (tmp_path / out / "T1_0000.nii.gz").exists()
    noted = json.loads((tmp_path / "old" / "manifest.json").read_text())["settings"]
    assert noted["covariates"] == {"age": "80", "sex": "X"}
    assert "covariates" not in json.loads((tmp_path / "plain" / "manifest.json").read_text())["settings"]
    for wrong in ("weight=70", "age=90", "sex=Q", "age", "age=x"):
        ran = run("prod9", "generate", "label", "-m", model, "-o", tmp_path / "x", "--set-covariate", wrong)
        assert ran.code == 2, wrong
        assert "--set-covariate" in ran.err
    assert not (tmp_path / "x").exists()


def test_ranges_are_drawn_for_each_sample_and_scored(
    model: Path, config: Path, workspace: Workspace, tmp_path: Path
) -> None:
    def generate(out: str, num: int, value: str, *more: object) -> dict[str, dict[str, float]]:
        ran = run(
            "prod9", "generate", "label", "-m", model, "-l", "T1", "-n", num, "--steps", 1, "-o", tmp_path / out,
            "--set-covariate", f"volume={value}", "--set-covariate", "sex=F", *more,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        folder = tmp_path / out / "part-2-of-2" if more else tmp_path / out
        files = json.loads((folder / "manifest.json").read_text())["files"]
        return {name: entry.get("covariates", {}) for name, entry in files.items()}

    drawn = generate("some", 2, "10:60") | generate("more", 8, "10:60")
    values = [one["volume"] for one in drawn.values()]
    assert len(set(values)) == 8
    assert all(10 <= value <= 60 for value in values)
    assert generate("some", 2, "10:60") == {
        name: drawn[name] for name in ("T1_0000.nii.gz", "T1_0001.nii.gz")
    }
    assert generate("parted", 8, "10:60", "--part", "2/2")["T1_0003.nii.gz"] == drawn["T1_0003.nii.gz"]
    assert generate("one", 1, "40") == {"T1_0000.nii.gz": {}}
    for wrong in ("60:10", "10:", "-5:10", "10:900", "a:b"):
        ran = run(
            "prod9",
            "generate",
            "label",
            "-m",
            model,
            "-o",
            tmp_path / "x",
            "--set-covariate",
            f"volume={wrong}",
        )
        assert ran.code == 2, wrong

    real = tmp_path / "real"
    write_brats_tree(real, 18, seed=1)
    patients = [case.patient_id for case in find_cases(real)]
    split = {"train": patients[:9], "val": [], "test": patients[9:]}
    (tmp_path / "split.json").write_text(json.dumps({"format": 1, **split}))
    given = ("--table", table(tmp_path / "real.csv", real), "--split", tmp_path / "split.json")
    few = ("--training-steps", 2, "--replicates", 20, "-o", tmp_path / "scores")
    ran = run("prod9", "evaluate", "covariates", real, tmp_path / "more", *given, *few)
    assert ran.code == 0, ran.err
    assert "real, held out" in ran.out
    content = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    rows = {(row["metric"], row["region"]): row for row in content["scores"]}
    assert set(rows) == {("rank_correlation_generated", "volume"), ("rank_correlation_real", "volume")}
    asked = {round(row["true_or_asked"], 4) for row in content["cases"] if row["set"] == "generated"}
    assert asked == set(values)
    generated = rows[("rank_correlation_generated", "volume")]
    assert -1 <= generated["low"] <= generated["value"] <= generated["high"] <= 1
    assert generated["floor"] == rows[("rank_correlation_real", "volume")]["value"]
    for folder, wrong, said in (
        (workspace.cohort, given, "names no covariates"),
        (tmp_path / "more", ("--table", tmp_path / "real.csv"), "--split"),
        (tmp_path / "more", (*given, "--table", tmp_path / "other.csv"), "--table"),
    ):
        (tmp_path / "other.csv").write_text("case,weight\nA,3\n")
        ran = run("prod9", "evaluate", "covariates", real, folder, *wrong, "-o", tmp_path / "none")
        assert ran.code == 2, ran.err
        assert said in ran.err


def test_a_model_without_covariates_can_learn_them(
    config: Path, workspace: Workspace, tmp_path: Path
) -> None:
    """From its weights on: before the first step the new model computes what the old one does."""
    ran = run(
        "prod9-train-transformer", "train", "--config", config, "--output-dir", tmp_path / "run", "--json",
        "--init-from", workspace.run2, "--set", "training.max_steps=1", "--set", "training.learning_rate=1e-30",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    from prod9.pipelines.maskgit import MaskGiTPipeline

    def tokens(model: Path, values: dict[str, str]) -> torch.Tensor:
        pipeline = MaskGiTPipeline.from_checkpoint(model, detail=None)
        if values:
            pipeline.set_covariates(values)
        return pipeline.sample_label(0, [1, 2], lambda _: None)

    plain = tokens(workspace.run2, {})
    assert torch.equal(tokens(tmp_path / "run", {}), plain)
    assert torch.equal(tokens(tmp_path / "run", {"age": "20:80", "sex": "F"}), plain)


def test_what_is_set_reaches_the_sampler(model: Path) -> None:
    from prod9.pipelines.maskgit import MaskGiTPipeline

    pipeline = MaskGiTPipeline.from_checkpoint(model)
    shaken(pipeline.decoder, "cpu", std=0.5).eval()  # few steps of training leave conditions without effect

    def tokens(values: dict[str, str]) -> torch.Tensor:
        pipeline.set_covariates(values)
        return pipeline.sample_label(0, [1], lambda _: None)

    unknown = tokens({})
    assert torch.equal(tokens({}), unknown)
    assert not torch.equal(tokens({"age": "20"}), tokens({"age": "80"}))
    assert not torch.equal(tokens({"sex": "X"}), unknown)


def test_a_model_without_covariates_refuses_them(workspace: Workspace, tmp_path: Path) -> None:
    ran = run(
        "prod9", "generate", "label", "-m", workspace.run2, "-o", tmp_path / "x", "--set-covariate", "age=60"
    )
    assert ran.code == 2
    assert "trained with covariates" in ran.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.covariates=null", "expected [3, 3]"),
        ("model.covariates=[2, 3]", "expected [3, 3]"),
        ("covariates=null", "expected null"),
        ("covariates.numbers.age=[80, 20]", "exchange them"),
        ("covariates.categories.sex=[F]", "2 to 64 different values"),
        ("model={kind: decoder}", "label_conditional"),
    ],
)
def test_configs_that_contradict_themselves(config: Path, change: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(str(config), overrides=[change])
    assert said in str(caught.value)


def test_a_table_is_checked_line_by_line(workspace: Workspace, tmp_path: Path) -> None:
    coder = CovariateCoder(numbers={"age": (20, 80), "volume": (0, 200)}, categories={"sex": ["F", "M", "X"]})
    found = coder.read(table(tmp_path / "t.csv", workspace.cohort))
    assert list(coder.shape) == SHAPE
    first, second = list(found.values())[:2]
    torch.testing.assert_close(first, torch.tensor([[1, -2 / 3, 0], [1, -1, 0], [1, 0, 0]]))
    assert not second[1].any()  # the empty cell
    for text, said in (
        ("case,age,volume\nA,30,4\n", "none called sex"),
        ("case,age,volume,sex\nA,300,4,F\n", "line 2: expected age between 20 and 80, got 300"),
        ("case,age,volume,sex\nA,30,nan,F\n", "got nan"),
        ("case,age,volume,sex\nA,30,4,W\n", "expected sex to be F, M, X"),
        ("case,age,volume,sex\nA,30,4,F\nA,30,4,F\n", "line 3: expected a case of its own"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(DataError, match=r"bad\.csv") as caught:
            coder.read(tmp_path / "bad.csv")
        assert said in str(caught.value)


def test_a_table_of_other_cases_is_refused(config: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("case,age,volume,sex\nA,30,4,F\n")
    ran = run(
        "prod9-train-transformer", "train", "--config", config, "--output-dir", tmp_path / "run",
        "--set", f"covariates.file={tmp_path / 'other.csv'}",
    )  # fmt: skip
    assert ran.code == 1
    assert "expected rows for the cases" in ran.err


def known(count: int, value: float) -> torch.Tensor:
    """Two covariates of two features: a number, and one that is unknown."""
    return torch.tensor([[1.0, value], [0.0, 0.0]]).expand(count, 2, 2).clone()


def test_values_steer_both_networks_and_dropping_takes_them_back() -> None:
    from prod9.diffusion.diffusion_model import DiffusionModelRF
    from prod9.generator.transformer import TransformerDecoder

    decoder = shaken(
        TransformerDecoder(levels=[8, 5], embed_dim=24, num_blocks=2, num_heads=2, covariates=[2, 2]), "cpu"
    ).eval()
    tokens = torch.zeros(2, 4, 4, 4, dtype=torch.int64)

    def logits(condition: MaskGiTCondition) -> torch.Tensor:
        return decoder(tokens, tokens == 0, decoder.prepare(condition)).dense()

    label = MaskGiTCondition(torch.tensor([0, 1]))
    unet = shaken(
        DiffusionModelRF(
            latent_channels=4, num_channels=[8, 8], attention_levels=[False, True], num_head_channels=[0, 8],
            num_res_blocks=1, norm_num_groups=4, num_class_embeds=5, covariates=[2, 2],
        ),
        "cpu",
    ).eval()  # fmt: skip
    head = FlowCondition.of_heads(torch.tensor([1, 2]), torch.ones(2, 3))

    def velocity(condition: FlowCondition) -> torch.Tensor:
        x = torch.ones(2, 4, 8, 8, 8)
        return unet.predict(x, torch.tensor([500.0, 500.0]), condition)

    for predict, plain in ((logits, label), (velocity, head)):
        with torch.no_grad():
            low, high = (predict(replace(plain, covariates=known(2, value))) for value in (-1.0, 1.0))
            assert not torch.allclose(low, high)
            # None, zeros, and dropped covariates are the same: unknown.
            unknown = predict(replace(plain, covariates=torch.zeros(2, 2, 2)))
            assert torch.equal(predict(plain), unknown)
            dropped = replace(plain, covariates=known(2, 1.0)).unconditional()
            assert torch.equal(predict(dropped), predict(plain.unconditional()))
    with pytest.raises(ValueError, match=r"expected \(2, 2\)"):
        logits(replace(label, covariates=torch.zeros(2, 3, 2)))


def test_a_flow_with_covariates_begins_as_one_without() -> None:
    from prod9.diffusion.diffusion_model import DiffusionModelRF

    unet = {
        "latent_channels": 4,
        "num_channels": [8, 8],
        "attention_levels": [False, True],
        "num_head_channels": [0, 8],
    }
    unet |= {"num_res_blocks": 1, "norm_num_groups": 4, "num_class_embeds": 5}
    plain, more = DiffusionModelRF(**unet), DiffusionModelRF(**unet, covariates=[2, 2])
    missing, unexpected = more.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("covariate_embedding.") for name in missing)
    head = FlowCondition.of_heads(torch.tensor([1]), torch.ones(1, 3))
    x, t = torch.rand(1, 4, 8, 8, 8), torch.tensor([300.0])
    with torch.no_grad():
        same = more.predict(x, t, replace(head, covariates=known(1, 0.3)))
        assert torch.equal(plain.predict(x, t, head), same)


def test_each_covariate_is_hidden_by_itself_and_nothing_is_drawn_without_any() -> None:
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    plain = MaskGiTCondition(torch.zeros(4, dtype=torch.int64))
    assert hide_covariates(plain, 0.5, generator) is plain
    assert torch.equal(generator.get_state(), state)
    given = MaskGiTCondition(torch.zeros(4000, dtype=torch.int64), covariates=torch.ones(4000, 2, 3))
    hidden = hide_covariates(given, 0.3, generator).covariates
    assert hidden is not None
    rows = hidden.any(dim=-1)
    assert torch.equal(rows, hidden.all(dim=-1))
    share = (~rows).float().mean(0)
    assert (share - 0.3).abs().max() < 0.03
    assert ((~rows).all(1).float().mean() - 0.09).abs() < 0.02  # independent of each other
