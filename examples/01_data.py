"""Simulate a cohort, find its cases, divide its patients, look at one preprocessed volume."""

from pathlib import Path

from prod9.config.load import load_config
from prod9.data.layouts.find import find_cases
from prod9.data.simulated.cohort import simulate_cohort
from prod9.training.data.brats import BraTSDataModule

FOLDER = Path("outputs/examples")


def main() -> None:
    simulate_cohort(FOLDER / "data", num_subjects=14, spacing_mm=6.0, seed=0)
    for case in find_cases(FOLDER / "data")[:3]:
        print(case.case_id, {name: path.name for name, path in case.images.items()})

    # The data module of a config finds, divides and preprocesses; training does nothing else.
    config = load_config(
        "demo/quick/stage1",
        overrides=[f"data.root={FOLDER / 'data'}", f"output_dir={FOLDER / 'stage1'}"],
    )
    data = BraTSDataModule(config)
    print({part: len(getattr(data.split, part)) for part in ("train", "val", "test")}, "patients")
    patient = data.build_patients("test")[0]
    for modality, image in patient["images"].items():
        print(f"{modality:6} {tuple(image.shape)} from {image.min():.2f} to {image.max():.2f}")
    print("tumour voxels:", int((patient["seg"] > 0).sum()))


if __name__ == "__main__":
    main()
