"""How far generated volumes are from held-out ones. Run 04_transformer.py first."""

from pathlib import Path

import torch

from prod9.config.load import load_config
from prod9.demo.sets import load_volumes, reconstruct
from prod9.evaluation.judges.features import AutoencoderFeatures, extract
from prod9.evaluation.sets.distribution import diversity_ratio, frechet_ratio
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.training.data.brats import BraTSDataModule

FOLDER = Path("outputs/examples")


def main() -> None:
    config = load_config(
        "demo/quick/stage1",
        overrides=[f"data.root={FOLDER / 'data'}", f"output_dir={FOLDER / 'stage1'}"],
    )
    data = BraTSDataModule(config)
    real = {
        part: load_volumes(data.build_patients(part), config.data.label_map) for part in ("train", "test")
    }
    autoencoder = CheckpointManager.load_autoencoder(FOLDER / "stage1").network
    recon = {part: reconstruct(autoencoder, volumes.volumes) for part, volumes in real.items()}

    pipeline = MaskGiTPipeline.from_checkpoint(FOLDER / "stage2_label")
    made = [volume for name in pipeline.label_names() for volume in pipeline.generate(name, num_samples=2)]
    generated = torch.stack([torch.from_numpy(volume.data)[None] for volume in made])
    labels = torch.tensor([pipeline.label_map[volume.label] for volume in made])

    # A distance means something only beside its floor, as many training volumes against the same held-out ones, and
    # only in few directions: so few patients say nothing of hundreds of features.
    features = AutoencoderFeatures(autoencoder)
    frechet = frechet_ratio(
        extract(features, generated),
        extract(features, recon["train"]),
        extract(features, recon["test"]),
        generator=torch.Generator().manual_seed(0),
        generated_labels=labels,
        training_labels=real["train"].labels,
        held_out_labels=real["test"].labels,
        training_patients=real["train"].patients,
        held_out_patients=real["test"].patients,
    )
    print(
        f"Fréchet to held-out reconstructions: {frechet.distance:.3f}, of training volumes {frechet.floor:.3f} "
        f"({frechet.num_patients} patients, {frechet.dimensions} dimensions)"
    )
    ratio = diversity_ratio(
        generated, real["test"].volumes, generated_labels=labels, held_out_labels=real["test"].labels
    )
    print(f"diversity over that of held-out scans: {ratio:.2f}")


if __name__ == "__main__":
    main()
