"""The YAML reader: scalars of YAML 1.2, limits of size and aliases, refusals."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod9.config import yaml as config_yaml
from prod9.config.yaml import dump_yaml, parse_yaml, read_yaml
from prod9.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("no", "no"),
        ("On", "On"),
        ("y", "y"),
        ("True", True),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("2020-01-01", "2020-01-01"),
        ("12:30:45", "12:30:45"),
        ("-.inf", -math.inf),
        ("[8, 6.5, a]", [8, 6.5, "a"]),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    parsed = parse_yaml(text, "test")
    assert parsed == value
    assert type(parsed) is type(value) or isinstance(value, str)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"test:3: key 'a' is given twice"),
        ("a: {b: 1, b: 1}", r"test:1: key 'b' is given twice"),
        ("!!python/object/apply:os.system [ls]", r"test:1: tag .*python/object.* is not allowed"),
        ("a: !Custom {}", r"test:1: tag '!Custom' is not allowed"),
        ("a: !!int many", r"test:1: expected int, got 'many'"),
        ("1: a", r"test:1: expected a text key, got '1'"),
        ("[a]: b", r"test:1: expected a text key, got a collection"),
        ("a: [1", r"test:1: not valid YAML"),
        ("a: 1\n b: 2", r"test:2: not valid YAML"),
        ("a: \0", r"test: not valid YAML"),
        ("a: 1\n---\nb: 2", r"test:2: not valid YAML"),
        ("a: &x [*x]", r"test:1: an alias refers to itself"),
        ("[" * 5000, r"test: nested too deeply"),
    ],
)
def test_what_no_config_holds_is_refused_with_its_line(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, "test")


def test_aliases_cannot_grow_without_bound():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="at most 10000 values after aliases"):
        parse_yaml("\n".join(lines), "test")


def test_a_file_has_a_size_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(config_yaml, "MAX_BYTES", 10)
    path = tmp_path / "big.yaml"
    path.write_text("key: 12345678")
    with pytest.raises(ConfigError, match="at most 10 bytes, got 13"):
        read_yaml(path)


@pytest.mark.parametrize(("content", "got"), [(b"- a", "list"), (b"", "nothing"), (b"\xff\xfe\xff", "UTF-8")])
def test_a_file_holds_one_mapping_in_utf8(tmp_path, content, got):
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=got):
        read_yaml(path)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3)
)


@given(values)
def test_what_is_dumped_is_read_back(value):
    assert parse_yaml(dump_yaml(value), "test") == value
