"""Results of unknown origin in a folder that is reported on: named or left out, never an exception of another kind."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prod9.errors import Prod9Error
from prod9.evaluation.report import scans
from prod9.evaluation.report.cards import write_cards
from prod9.evaluation.report.page import Sources, write_report
from prod9.volumes import write
from tests.evaluation.audit_cohort import AFFINE, head
from tests.evaluation.report.folders import write_run, write_whole
from tests.harness import run as run_command

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
NAMES = ("audit/audit.json", "evaluation/evaluation.json", "metrics.json", "run.json", "split.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with all results, and the content of each; volumes stay out, since they only cost time."""
    run = write_whole(tmp_path_factory.mktemp("odd"))
    for path in (run / "volumes").iterdir():
        path.unlink()
    contents = {name: json.loads((run / name).read_text()) for name in NAMES}
    return run, contents


def places(content, path=()):
    """Return the path to every part of ``content``."""
    found = [path]
    inner = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in inner:
        found += places(value, (*path, key))
    return found


def put(content, path, value):
    if not path:
        return value
    changed = copy.deepcopy(content)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_r21_a_report_of_odd_results_is_written_or_refused(whole, monkeypatch, data):
    run, contents = whole
    monkeypatch.setattr("prod9.evaluation.report.page.load_real", lambda run: [])
    name = data.draw(st.sampled_from(NAMES))
    path = data.draw(st.sampled_from(places(contents[name])))
    changed = put(contents[name], path, data.draw(ANYTHING))
    (run / name).write_text(json.dumps(changed))
    try:
        try:
            write_report(run, run / "report.html")
            write_cards(run, run / "cards")
        except Prod9Error:
            pass
    finally:
        (run / name).write_text(json.dumps(contents[name]))


def test_r21_an_odd_audit_is_named_in_the_report(tmp_path):
    run = write_whole(tmp_path)
    (run / "audit" / "audit.json").write_text('{"command": "audit", "pairs": 3}')
    (run / "evaluation" / "evaluation.json").write_text('{"scores": {"a": 1}}')
    page = write_report(run, tmp_path / "page.html").read_text()
    for name in ("audit.json", "evaluation.json"):
        assert f"{name}: expected what prod9 writes under this name" in page


@pytest.mark.parametrize("name", [*NAMES, "logs/lines.jsonl"])
def test_r17_brackets_without_end_count_as_damaged(tmp_path, name):
    run = write_run(tmp_path, data=tmp_path)
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text("[" * 100_000)
    assert write_report(run, tmp_path / "page.html").is_file()


def test_r17_brackets_without_end_in_the_config_are_refused(tmp_path):
    run = write_run(tmp_path, data=tmp_path)
    (run / "config.yaml").write_text("a: " + "[" * 3_000)
    with pytest.raises(Prod9Error, match=r"config\.yaml: expected the config of a run"):
        write_report(run, tmp_path / "page.html")


def test_r21_a_file_in_the_place_of_the_folder_is_one_error(tmp_path):
    run = write_run(tmp_path, data=tmp_path)
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "r.html", tmp_path / "file" / "deeper" / "r.html"):
        ran = run_command("prod9", "report", run, "--output", place)
        assert ran.code == 1
        assert "cannot be written" in ran.err


def test_r30_the_json_of_a_page_ends_where_it_should(tmp_path, monkeypatch):
    run = write_run(tmp_path, data=tmp_path)
    folder = tmp_path / "made"
    folder.mkdir()
    write(folder / "T1_0000<!--<script>.nii.gz", head(0), AFFINE)
    monkeypatch.setattr(scans, "MAX_SIDE", 12)
    page = write_report(run, tmp_path / "page.html", Sources(generated=folder)).read_text()
    block = page.split('id="scans">')[1].split("</script>")[0]
    assert "<" not in block
    assert json.loads(block)[0]["name"] == "T1_0000<!--<script>"
