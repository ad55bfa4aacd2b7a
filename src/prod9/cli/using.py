"""The command line that uses a trained model: what other commands end with."""

from typing import Any

from prod9.stages import STAGES


def use_of(stage: str, kind: str, model: Any) -> str:
    """Return a command that makes something with a model.

    Args:
        stage: its stage.
        kind: of its network, which tells translators from others.
        model: its folder or name.
    """
    found = STAGES[stage]
    name = model.as_posix() if hasattr(model, "as_posix") else str(model)
    if found.number == 1:
        return f"{found.command} infer --model {name} FILE -o OUT"
    if found.number == 3:
        return f"prod9 generate control --model {name} --seg FILE -o OUT"
    if stage == "transformer" and kind != "label_conditional":
        return f"prod9 generate translate --model {name} --patient DIR -o OUT"
    if found.corrects:
        what = "detail" if "detail" in stage else "refiner"
        return f"prod9 generate {'label' if stage != 'refiner' else 'translate'} --model MODEL --{what} {name} -o OUT"
    return f"prod9 generate label --model {name} -o OUT"
