"""Generate volumes of a modality and write them as NIfTI files. Run 04_transformer.py first."""

from pathlib import Path

from prod9 import volumes
from prod9.pipelines.maskgit import MaskGiTPipeline

FOLDER = Path("outputs/examples")


def main() -> None:
    # The run knows its autoencoder, its sampler and its grid; `overrides` changes what the config says.
    pipeline = MaskGiTPipeline.from_checkpoint(FOLDER / "stage2_label", overrides=["sampler.steps=8"])
    (FOLDER / "generated").mkdir(parents=True, exist_ok=True)
    for volume in pipeline.generate("T2", num_samples=3, seed=1, batch_size=3):
        path = FOLDER / "generated" / f"{volume.label}_{volume.index:04d}.nii.gz"
        volumes.write(path, volume.data, volume.affine)
        print(path, volume.data.shape, f"seed {volume.seed}")


if __name__ == "__main__":
    main()
