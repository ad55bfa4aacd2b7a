"""Label maps that are decoded in windows: the numbers of two classes were averaged, which is a third class."""

import torch

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.inference import AutoencoderInferenceWrapper, SlidingWindowConfig
from prod9.label_maps import TOP


def test_f08_every_voxel_has_the_class_of_the_blended_logits() -> None:
    torch.manual_seed(0)
    network = AutoencoderFSQ(
        levels=[5, 5],
        label_maps=True,
        in_channels=TOP + 1,
        out_channels=TOP + 1,
        num_channels=[4, 4],
        num_res_blocks=[1, 1],
        norm_num_groups=2,
    ).eval()
    windows = SlidingWindowConfig(roi_size=(8, 8, 8), overlap=0.5)
    wrapper = AutoencoderInferenceWrapper(network, windows)
    latent = torch.randn(1, 2, 8, 4, 4)
    volume = wrapper.decode(latent)
    assert volume.shape == (1, 1, 16, 8, 8)
    numbers = volume * TOP
    torch.testing.assert_close(numbers, numbers.round(), atol=1e-5, rtol=0)
    logits = wrapper._map(network.decode_values, latent, 2)
    assert torch.equal(numbers.round().long(), logits.argmax(1, keepdim=True))
    assert len(numbers.unique()) > 1
    # In one piece nothing has changed.
    whole = AutoencoderInferenceWrapper(network, SlidingWindowConfig(strategy="whole"))
    assert torch.equal(whole.decode(latent), network.decode(latent))
