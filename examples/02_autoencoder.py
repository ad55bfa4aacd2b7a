"""Train stage 1, resume it, score it on the test patients. Run 01_data.py first."""

from pathlib import Path

from prod9.config.load import load_config
from prod9.training.run import test, train

FOLDER = Path("outputs/examples")
SETTINGS = [f"data.root={FOLDER / 'data'}", f"output_dir={FOLDER / 'stage1'}"]


def main() -> None:
    config = load_config("demo/quick/stage1", overrides=SETTINGS)
    # resume="auto": go on from the last checkpoint, or start; a finished run is left alone.
    result = train(config, resume="auto")
    print(f"{result.step} steps, best checkpoint {result.checkpoint}")
    for name, value in sorted(test(config).items()):
        print(f"{name:24} {value:.3f}")


if __name__ == "__main__":
    main()
