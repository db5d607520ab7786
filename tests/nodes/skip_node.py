"""What the tests of Surf Skip Mask share: its widgets, a Wan model, a VAE and previews."""

import functools
from types import SimpleNamespace

import host_stub
import torch
from surf.nodes.skip import SurfSkipMask
from surf.surf_core.resample import resize
from surf.surf_core.tiny.model import embedded_vae

DEFAULTS = {
    "predictor": "detail", "choose": "keep ratio", "keep": 0.5, "tau": 3.0,
    "resolution": "by scale", "scale": 2.0, "width": 64, "height": 64, "upsample": "latent",
    "dilate": 0,
}  # fmt: skip
FULL_SIZE = {"predictor": "footage", "upsample": "pixel", "scale": 4.0}


class WanModel(SimpleNamespace):
    """The attributes of a Wan model that its cost depends on."""

    def __init__(self, **changes):
        super().__init__(
            **{
                "patch_size": (1, 2, 2), "ref_conv": None, "dim": 1536, "num_layers": 30,
                "num_heads": 12, "ffn_dim": 8960, **changes,
            }
        )  # fmt: skip


class Unpriced(WanModel):
    """A network that nobody priced."""


class CellVae:
    """Repeats cells as pixels, four frames of each latent frame but the first."""

    latent_dim, device, vae_dtype = 3, torch.device("cpu"), torch.float32

    def __init__(self, channels=16, broken=False):
        self.latent_channels, self.broken, self.calls = channels, broken, []

    def spacial_compression_decode(self):
        return 8

    spacial_compression_encode = spacial_compression_decode

    def temporal_compression_decode(self):
        return 4

    def memory_used_decode(self, shape, dtype):
        return 0

    memory_used_encode = memory_used_decode

    def decode(self, samples):
        self.calls.append("decode")
        grey = samples[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2)
        first, rest = grey[:, :, :1], grey[:, :, 1:].repeat_interleave(4, 2)
        return torch.cat([first, rest], 2).movedim(1, -1)

    def encode(self, frames):
        self.calls.append("encode")
        size = [side // 8 for side in frames.shape[1:3]]
        cells = resize(frames.movedim(-1, 1), size, "area")[::4]
        made = cells[:, :1].movedim(0, 1).expand(self.latent_channels, -1, -1, -1)[None].clone()
        return made * float("nan") if self.broken else made


def wan(channels=16, network=None):
    model = host_stub.Patcher(channels)
    model.model.diffusion_model = network or WanModel()
    return model


def latent(*shape, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    return {"samples": torch.rand(*(shape or (1, 16, 3, 4, 6)), generator=generator), **more}


def run(model=None, preview=None, **changes):
    """Outputs of the node: mask, keep_ratio, image, report."""
    widgets = {**DEFAULTS, **changes}
    return SurfSkipMask.execute(model=model or wan(), latent=preview or latent(), **widgets).args


@functools.cache
def busy():
    """A preview of the tiny models, 64 pixels and 13 frames: half of it flat, half of it busy."""
    video = torch.zeros(1, 3, 13, 64, 64)
    # Coarser than noise, of which the VAE would leave little.
    boxes = torch.rand(1, 3, 1, 8, 4, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    video[..., 32:] = boxes.repeat_interleave(8, -1).repeat_interleave(8, -2)
    with torch.no_grad():
        return embedded_vae().moments(video)[0]


def shown():
    return {"samples": busy().clone()}
