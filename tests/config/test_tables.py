"""The generated tables of configuration keys."""

import pytest

from prod9.config.errors import known_keys
from prod9.config.schema import CONFIGS, TransformerConfig
from prod9.config.tables import leaf_fields, markdown_table


@pytest.mark.parametrize("model", CONFIGS.values())
def test_every_key_has_one_row(model):
    rows = markdown_table(model).splitlines()[2:]
    keys = [row.split("`")[1] for row in rows]
    assert len(keys) == len(set(keys))
    values = {key for key in known_keys(model) if not any(k.startswith(f"{key}.") for k in known_keys(model))}
    assert values <= set(keys)


def test_rows_say_type_bounds_and_default():
    table = markdown_table(TransformerConfig)
    assert "| `training.ema.decay` | float > 0.0, < 1.0 | `0.9999` | Decay per training batch. |" in table
    assert "| `model.kind` | `label_conditional` or `decoder` or `single_stream` | required |" in table
    assert "| `data.grid` | 3 × int ≥ 1 | `[144, 192, 144]` or `[32, 32, 32]` |" in table


def test_a_section_that_may_be_null_has_a_row_of_its_own():
    fields = leaf_fields(TransformerConfig)
    assert "training.ema" in fields
    assert "training.lr_schedule" not in fields
