"""From a volume to tokens and back. Run 02_autoencoder.py first."""

from pathlib import Path

import torch

from prod9.config.load import load_config
from prod9.measures.metrics import psnr
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.training.data.brats import BraTSDataModule

FOLDER = Path("outputs/examples")


def main() -> None:
    autoencoder = CheckpointManager.load_autoencoder(FOLDER / "stage1").network
    config = load_config(
        "demo/quick/stage1",
        overrides=[f"data.root={FOLDER / 'data'}", f"output_dir={FOLDER / 'stage1'}"],
    )
    volume = BraTSDataModule(config).build_patients("test")[0]["images"]["T1"][None]
    with torch.no_grad():
        latent = autoencoder.encode(volume)
        tokens = autoencoder.embed(autoencoder.quantize(latent))
        again = autoencoder.decode_tokens(tokens)
    print(f"volume {tuple(volume.shape)} -> tokens {tuple(tokens.shape)}, {autoencoder.vocab_size} codes")
    print(f"{len(tokens.unique())} different codes in this volume")
    print(f"PSNR {psnr(again.clamp(0, 1), volume).item():.1f} dB")

    # A token is a number in mixed radix: one digit a level, the first digit fastest.
    codes = autoencoder.indices_to_codes(tokens)
    assert torch.equal(autoencoder.embed(codes), tokens)


if __name__ == "__main__":
    main()
