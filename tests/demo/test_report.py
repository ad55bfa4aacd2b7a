"""The report at the end of the demo, with an audit where the cohort is large enough."""

import json

from prod9.demo.report import finish_demo
from tests.evaluation.audit_cohort import head, write_heads
from tests.evaluation.report.folders import write_generated, write_run


def test_a_large_enough_cohort_is_audited_and_reported(tmp_path):
    cohort = write_heads(tmp_path / "data", [head(k) for k in range(26)])
    run = write_run(tmp_path / "starter", data=cohort)
    names = [f"data{k:03d}" for k in range(26)]
    split = {"format": 1, "train": names[:6], "val": [], "test": names[6:]}
    (run / "split.json").write_text(json.dumps(split))
    generated = write_generated(tmp_path / "starter" / "volumes")
    said = []
    page = finish_demo(tmp_path, run=run, generated=generated, say=said.append)
    assert page == tmp_path / "report.html"
    audit = json.loads((tmp_path / "starter" / "audit" / "audit.json").read_text())
    assert audit["sets"]["held_out"]["patients"] == 20
    assert "Are these copies?" in page.read_text()
    assert not any(line.startswith("No copy audit") for line in said)


def test_a_small_cohort_goes_without_an_audit_and_says_so(tmp_path):
    cohort = write_heads(tmp_path / "data", [head(k) for k in range(2)])
    run = write_run(tmp_path / "starter", data=cohort)
    said = []
    page = finish_demo(
        tmp_path, run=run, generated=write_generated(tmp_path / "starter" / "volumes"), say=said.append
    )
    assert any(line.startswith("No copy audit") for line in said)
    assert "prod9 audit --run" in page.read_text()
