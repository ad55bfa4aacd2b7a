"""Groups of options: one dataclass in the code, single options on the command line."""

import inspect
from dataclasses import dataclass

from prod9.cli.judge.options import SetOptions, grouped


@dataclass(frozen=True, kw_only=True)
class Size:
    """A group."""

    width: int = 1
    height: int = 2


def test_each_field_of_a_group_is_an_option_of_its_own() -> None:
    got = []

    def command(name: str, size: Size, loud: bool = False) -> None:
        """Do something."""
        got.append((name, size, loud))

    flat = grouped(command)
    parameters = inspect.signature(flat).parameters
    assert {name: p.default for name, p in parameters.items() if name != "name"} == {
        "width": 1,
        "height": 2,
        "loud": False,
    }
    assert flat.__doc__ == "Do something."
    flat(name="a", width=3, height=4, loud=True)
    assert got == [("a", Size(width=3, height=4), True)]


def test_settings_of_sets_leave_defaults_of_the_modalities_to_the_evaluation() -> None:
    assert "modalities" not in SetOptions().settings()
    assert SetOptions(modality=["T1"], seed=3).settings() == {
        "modalities": ("T1",),
        "layout": "auto",
        "label_scheme": "auto",
        "spacing": None,
        "skip_bad": False,
        "seed": 3,
    }
