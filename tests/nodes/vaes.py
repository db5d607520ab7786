"""VAEs of the fake host that need no network."""

import sys

import torch
from surf.surf_core.resample import resize


def memory_of_vaes(monkeypatch):
    """Set bytes of the device and of free main memory, all but endless; the test may change them.

    Returns:
        {"device": bytes, "main": bytes}, read at every question.
    """
    amount = {"device": 1000 * 2**30, "main": 1000 * 2**30}
    host = sys.modules["comfy.model_management"]
    monkeypatch.setattr(host, "get_total_memory", lambda device: amount["device"])
    monkeypatch.setattr(host, "get_free_memory", lambda device: amount["main"])
    return amount


class Vae:
    """Repeats cells as pixels and averages them back: whatever the pieces, the result is one."""

    latent_dim, latent_channels, device = 3, 16, torch.device("cpu")
    vae_dtype = torch.float32

    def __init__(self, cell=8):
        self.cell, self.calls = cell, []

    def spacial_compression_decode(self):
        return self.cell

    spacial_compression_encode = spacial_compression_decode

    def temporal_compression_decode(self):
        return 4

    def memory_used_decode(self, shape, dtype):
        return 1000 * shape[-1] * shape[-2] * self.cell**2

    def memory_used_encode(self, shape, dtype):
        return 1000 * shape[-1] * shape[-2]

    def decode(self, samples):
        self.calls.append(("decode", tuple(samples.shape[-2:])))
        grey = samples[:, :3].repeat_interleave(self.cell, -1).repeat_interleave(self.cell, -2)
        first, rest = grey[:, :, :1], grey[:, :, 1:].repeat_interleave(4, 2)
        return torch.cat([first, rest], 2).movedim(1, -1)

    def encode(self, frames):
        self.calls.append(("encode", tuple(frames.shape[1:3])))
        assert 0 <= frames.min() <= frames.max() <= 1
        size = [side // self.cell for side in frames.shape[1:3]]
        cells = resize(frames.movedim(-1, 1), size, "area")[::4]
        return cells[:, :1].movedim(0, 1).expand(16, -1, -1, -1)[None].clone()


class Forgetful(Vae):
    """Needs history: what a call begins with is too bright by 0.1, which fades within 4 frames.

    Holds all frames at once. Between latent frames brightness is linear.
    """

    linear = True

    def memory_used_decode(self, shape, dtype):
        return super().memory_used_decode(shape, dtype) * shape[2]

    def decode(self, samples):
        self.calls.append(("decode", tuple(samples.shape[-3:])))
        return forget(samples, self.cell, self.linear).movedim(1, -1)


def forget(samples, cell, linear=True):
    """Decode [B, C, T, H, W] into [B, 3, F, rows, columns] as `Forgetful` does."""
    grey = samples[:, :3].repeat_interleave(cell, -1).repeat_interleave(cell, -2)
    frames = 1 + 4 * (samples.shape[2] - 1)
    place = torch.arange(frames) / 4
    low, share = place.long(), (place % 1).view(-1, 1, 1)
    high = (low + 1).clamp_max(samples.shape[2] - 1)
    video = grey[:, :, low].lerp(grey[:, :, high], share)
    age = torch.arange(frames)
    error = (1 - age / 4).clamp_min(0) if linear else (-age / 4).exp()
    return video + 0.1 * error.view(-1, 1, 1)


def jump(frames, slope):
    """The largest step between frames beyond the first 24, over that of the smooth ramp."""
    return (frames.diff(dim=0)[24:].abs().max() / slope).item()
