"""Train the tiny VAE on parts of painted scenes, at the sizes of previews, videos and refined ones.

The loss compares pixels and their differences in space and time, coloured things more than the
ground; no perceptual network. A latent that is averaged down must decode to the smaller picture,
because that is what the switch of the resolution does with it.

Dims: B samples, C latent channels, T frames, H, W rows and columns, t, h, w those of the latent.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ...tiny import vae
from ..task import Batch, Task
from . import paint
from .world import draw

FRAMES = 13
"""Frames of a clip."""
SIZES, SHARES = (64, 128, 256), (0.55, 0.35, 0.1)
"""Pixels along a side of whole scenes, and the share of parts that are cut from each."""
NOISE = 0.1
"""Standard deviation of the noise on latents."""
SIDE = 64
"""Pixels along a side of a part."""


@dataclass(frozen=True, kw_only=True)
class Autoencode(Task):
    """Encode and decode parts of scenes."""

    batch_size: int
    """Parts of a step."""
    dim: int = vae.DIM
    """Channels at full size."""
    still_steps: int = 0
    """First steps, which see one frame of each part."""
    stills: int = 16
    """Parts of each of those."""
    seed: int = 0
    """Seed of weights and scenes."""
    damping: float = 3e-4
    """Weight of the latents' mean square in the loss: it keeps them small beside the noise, and so
    smooth."""
    emphasis: float = 12.0
    """Weight of coloured pixels in the loss over that of grey ones, see `distance`."""
    device: str = "cpu"
    """Where scenes are painted."""
    graph: bool = False
    """Record a step as a CUDA graph and replay it, for GPUs that wait for Python."""
    statistics: int = 6
    """Groups of eight scenes that the latents' mean and deviation are taken from."""
    ahead: int = 1
    """Steps whose scenes are painted together."""
    _painted: dict[tuple[int, bool], Tensor] = field(default_factory=dict)
    _recorded: dict[tuple, nn.Module] = field(default_factory=dict)

    def build(self) -> vae.TinyVAE:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = vae.TinyVAE(self.dim)
        inflate(model)
        # Larger than the noise from the first step on.
        model.conv1.weight[: vae.LATENT].detach().mul_(4)
        # The file's place for a log variance: it is the same for all, not learned.
        nn.init.zeros_(model.conv1.weight[vae.LATENT :].detach())
        nn.init.constant_(
            model.conv1.get_parameter("bias")[vae.LATENT :].detach(), 2 * math.log(NOISE)
        )
        return model

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Paint this process's share of a step: video [B, 3, T, H, W], noise [B, C, t, h, w]."""
        still = step < self.still_steps
        count = self.stills if still else self.batch_size
        generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + step)
        frames = 1 if still else 1 + FRAMES // vae.PERIOD
        shape = (count, vae.LATENT, frames, SIDE // vae.CELL, SIDE // vae.CELL)
        noise = torch.randn(shape, generator=generator, device=self.device)
        video = self._video(step, count, still)
        return Batch(
            tensors={"video": video[rank::world], "noise": noise[rank::world]},
            keys=tuple(f"{step}/{place}" for place in range(rank, count, world)),
        )

    def _video(self, step: int, count: int, still: bool) -> Tensor:
        """Paint the parts of a step [B, 3, T, H, W], together with those of the next steps.

        The last group that was painted is kept, and the steps of it are served from there.
        """
        group, place = divmod(step, self.ahead)
        if (group, still) not in self._painted:
            self._painted.clear()
            index = torch.arange(self.ahead * count) + group * self.ahead * count
            times = self._times[group % FRAMES][None] if still else self._times
            self._painted[group, still] = self.videos(index, times)
        return self._painted[group, still][place * count : (place + 1) * count]

    @cached_property
    def _times(self) -> Tensor:
        return torch.linspace(-0.5, 0.5, FRAMES, device=self.device)

    def videos(self, index: Tensor, times: Tensor) -> Tensor:
        """Paint a part of each of these scenes: [B, 3, T, 64, 64] in -1..1."""
        generator = torch.Generator().manual_seed(self.seed * 7919 + int(index[0]))
        ladder = torch.tensor(SHARES).cumsum(0)
        dice = torch.rand(3, len(index), generator=generator)
        size = torch.tensor(SIZES)[torch.bucketize(dice[0], ladder).clamp(max=len(SIZES) - 1)]
        top, left = ((dice[1:] * (size - SIDE + 1)).long()).to(self.device)
        scenes = draw(self.seed + 1, index.to(self.device))
        return paint.paint(scenes, times, size.to(self.device), (top, left, SIDE))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, see `Loss`."""
        inputs = batch.tensors["video"], batch.tensors["noise"]
        if not self.graph:
            return self._loss(model)(*inputs)
        key = id(model), inputs[0].shape
        if key not in self._recorded:
            # Copies of weights that autocast keeps must not be recorded.
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                graphed = torch.cuda.make_graphed_callables(
                    self._loss(model), inputs, allow_unused_input=True
                )
            self._recorded[key] = cast(nn.Module, graphed)
        return self._recorded[key](*inputs)

    def _loss(self, model: nn.Module) -> "Loss":
        return Loss(cast(vae.TinyVAE, model), self.damping, self.emphasis)

    @torch.no_grad()
    def held_out(self, model: nn.Module) -> dict[str, float]:
        """Return PSNR in dB and the loss of scenes that are not trained on."""
        video = self.videos(torch.arange(10**9, 10**9 + 16), self._times)
        coder = cast(vae.TinyVAE, model)
        copy = coder.decoder(coder.conv2(coder.moments(video)[0])).float().clamp(-1, 1)
        error = (copy - video).square().mean(dim=(1, 2, 3, 4)) / 4
        return {
            "psnr": (-10 * error.log10()).mean().item(),
            "l1": distance(copy, video, self.emphasis).item(),
        }

    @torch.no_grad()
    def export(self, weights: dict[str, Tensor], path: Path, notes: dict) -> None:
        """Scale the latents to what hosts expect of Wan's, and write the file."""
        model = vae.TinyVAE(self.dim)
        model.load_state_dict(weights)
        model = model.to(self.device)
        moments = [
            model.moments(self.whole(i, 128))[0].transpose(0, 1).flatten(1)
            for i in range(self.statistics)
        ]
        latents = torch.cat(moments, dim=1)
        model.fit(latents.mean(dim=1), latents.std(dim=1))
        vae.save(model, path, {"surf.recipe": repr(notes)}, torch.float16)

    def whole(self, group: int, size: int, count: int = 8) -> Tensor:
        """Paint whole scenes that are not trained on: [B, 3, T, size, size] in -1..1."""
        index = torch.arange(count, device=self.device) + 2 * 10**9 + group * count
        return paint.paint(draw(self.seed + 1, index), self._times, size)

    def notes(self) -> dict:
        named = ("batch_size", "still_steps", "stills", "dim", "seed", "damping", "emphasis")
        settings = {name: getattr(self, name) for name in named}
        return settings | {"sizes": SIZES, "shares": SHARES}


@torch.no_grad()
def inflate(model: vae.TinyVAE) -> None:
    """Make a fresh model one of stills: convolutions see the last frame alone, and copy it."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
            module.weight[:, :, :-1] = 0
            if module.kernel_size[1] == 1:
                outer, inner = module.weight.shape[:2]
                copy = torch.eye(inner).repeat(outer // inner, 1)
                module.weight[:, :, -1] = copy[..., None, None]
                module.get_parameter("bias").zero_()


class Loss(nn.Module):
    """Compute the loss of a VAE; a module, so that it can be recorded as a graph.

    Args:
        model: the VAE.
        damping: weight of the latents' mean square.
        emphasis: see `distance`.
    """

    def __init__(self, model: vae.TinyVAE, damping: float, emphasis: float):
        super().__init__()
        self.model, self.damping, self.emphasis = model, damping, emphasis

    def forward(self, video: Tensor, noise: Tensor) -> Tensor:
        """Return the mean loss of videos [B, 3, T, H, W] in -1..1.

        Args:
            video: what is encoded and compared with.
            noise: [B, C, t, h, w] of unit variance, added to the latents times NOISE.
        """
        model = self.model
        mean = model.moments(video)[0]
        latent = mean + NOISE * noise.to(mean.dtype)
        loss = distance(model.decoder(model.conv2(latent)).float(), video, self.emphasis)
        small, copy = halved(latent), halved(video)
        shown = model.decoder(model.conv2(small)).float()
        loss = loss + 0.25 * distance(shown, copy, self.emphasis)
        return loss + self.damping * mean.float().square().mean()


def halved(x: Tensor) -> Tensor:
    """Average pairs of rows and of columns: [..., H, W] -> [..., H / 2, W / 2]."""
    return x.unflatten(-1, (-1, 2)).mean(dim=-1).unflatten(-2, (-1, 2)).mean(dim=-2)


def distance(copy: Tensor, video: Tensor, emphasis: float) -> Tensor:
    """Return the mean weighted L1 of pixels and of their differences in space and time.

    Args:
        copy, video: [B, 3, T, H, W] in -1..1.
        emphasis: weight of fully coloured pixels of the video, and of those within two pixels of
            them, over that of grey ones: small things are few pixels, and their outline tells one
            from two.
    """
    chroma = (video.amax(dim=1, keepdim=True) - video.amin(dim=1, keepdim=True)) / 2
    weight = 1 + emphasis * nn.functional.max_pool3d(chroma, (1, 5, 5), 1, (0, 2, 2))
    weight = weight / weight.mean()
    error = copy - video
    total = (weight * error.abs()).mean()
    across, down = error.diff(dim=4), error.diff(dim=3)
    total = total + 0.5 * (weight[..., 1:] * across.abs()).mean()
    total = total + 0.5 * (weight[..., 1:, :] * down.abs()).mean()
    if error.shape[2] > 1:
        total = total + 0.25 * (weight[:, :, 1:] * error.diff(dim=2).abs()).mean()
    return total
