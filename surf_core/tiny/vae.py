"""A tiny causal video VAE with the architecture and key names of Wan 2.1's: 8x space, 4x time.

ComfyUI's VAE loaders read the file. Frames are mapped all at once here; cut into chunks with a
cache, as the host does it, the result is the same. The attention in the middle has weights of zero:
it adds nothing, so a latent cell depends on what is near it alone, at every size.

Dims: B batch, C channels, T frames, H, W rows and columns, t, h, w those of the latent.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..checks import check_range
from ..header import listed, read_header, shapes_of, short, write

CELL, PERIOD = 8, 4
"""Pixels along a side of a latent cell, and frames of a latent frame after the first."""
LATENT = 16
"""Channels of the latent."""
DIM = 8
"""Channels at full size; Wan's has 96."""
MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
"""What hosts take Wan's latents to be distributed like, by channel; files are made to fit it."""
_WIDTHS = (1, 1, 2, 4, 4)
_IN_TIME = (False, True, True)


def _conv(taps: list[Tensor], conv: nn.Conv3d, weight: Tensor) -> Tensor:
    """Convolve frames as pictures whose channels are those of several frames, one after the other.

    The same as a convolution in three dimensions, and faster where those are slow.

    Args:
        taps: of each, frames channels last [B, T, H, W, C]; what weight[:, :, i] sees.
        conv: whose bias and padding.
        weight: [O, C, taps, rows, columns].

    Returns:
        [B, O, T, H, W], in memory channels last.
    """
    stacked = torch.cat(taps, dim=-1) if len(taps) > 1 else taps[0]
    pictures = stacked.flatten(0, 1).permute(0, 3, 1, 2)
    kernel = weight.transpose(1, 2).flatten(1, 2)
    out = nn.functional.conv2d(pictures, kernel, conv.bias, padding=conv.padding[1:])
    return out.unflatten(0, stacked.shape[:2]).transpose(1, 2)


class CausalConv(nn.Conv3d):
    """A convolution that sees no later frame."""

    def __init__(self, inner: int, outer: int, kernel: int | tuple[int, int, int] = 1):
        sides = (kernel,) * 3 if isinstance(kernel, int) else kernel
        super().__init__(inner, outer, sides, padding=(0, sides[1] // 2, sides[2] // 2))

    def forward(self, x: Tensor) -> Tensor:
        depth, frames = self.kernel_size[0], x.shape[2]
        last = x.permute(0, 2, 3, 4, 1)
        if frames == 1:
            # Earlier frames are zeros: only the last slice of the weights sees anything.
            return _conv([last], self, self.weight[:, :, -1:])
        padded = nn.functional.pad(last, (0, 0) * 3 + (depth - 1, 0))
        return _conv([padded[:, i : i + frames] for i in range(depth)], self, self.weight)


class Norm(nn.Module):
    """Give the channels of every cell a root mean square of gamma."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        power = x.float().square().mean(dim=1, keepdim=True)
        return x * (torch.rsqrt(power + 1e-10).to(x.dtype) * self.gamma.to(x.dtype))


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.residual = nn.Sequential(
            Norm(inner), nn.SiLU(), CausalConv(inner, outer, 3),
            Norm(outer), nn.SiLU(), nn.Identity(), CausalConv(outer, outer, 3),
        )  # fmt: skip
        self.shortcut = CausalConv(inner, outer) if inner != outer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.shortcut(x)


class NoAttention(nn.Module):
    """The names of Wan's attention, with weights of zero: it adds nothing to its input."""

    def __init__(self, dim: int):
        super().__init__()
        shapes: dict[str, tuple[int, ...]] = {"norm.gamma": (dim, 1, 1)}
        shapes |= {"to_qkv.weight": (3 * dim, dim, 1, 1), "to_qkv.bias": (3 * dim,)}
        shapes |= {"proj.weight": (dim, dim, 1, 1), "proj.bias": (dim,)}
        for name, shape in shapes.items():
            module, _, leaf = name.partition(".")
            if not hasattr(self, module):
                self.add_module(module, nn.Module())
            getattr(self, module).register_buffer(leaf, torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Frames(nn.Sequential):
    """Modules of two dimensions, applied to every frame."""

    def forward(self, x: Tensor) -> Tensor:
        flat = super().forward(x.transpose(1, 2).flatten(0, 1))
        return flat.unflatten(0, (len(x), -1)).transpose(1, 2)


class Down(nn.Module):
    """Halve height and width; in time, all frames but the first by two."""

    def __init__(self, dim: int, in_time: bool):
        super().__init__()
        self.resample = Frames(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, 2))
        if in_time:
            self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), (2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.resample(x)
        if not hasattr(self, "time_conv") or x.shape[2] == 1:
            return x
        last = x.permute(0, 2, 3, 4, 1)
        taps = [last[:, i : x.shape[2] - 2 + i : 2] for i in range(3)]
        return torch.cat([x[:, :, :1], _conv(taps, self.time_conv, self.time_conv.weight)], dim=2)


class Up(nn.Module):
    """Double height and width; in time, all frames but the first."""

    def __init__(self, dim: int, in_time: bool):
        super().__init__()
        self.resample = Frames(
            nn.Upsample(scale_factor=2, mode="nearest-exact"), nn.Conv2d(dim, dim // 2, 3, 1, 1)
        )
        if in_time:
            self.time_conv = CausalConv(dim, 2 * dim, (3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "time_conv") and x.shape[2] > 1:
            # Of each frame the first half of the channels is the earlier of its two.
            later = self.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))
            later = later.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
            x = torch.cat([x[:, :, :1], later], dim=2)
        return self.resample(x)


def _middle(dim: int) -> nn.Sequential:
    return nn.Sequential(Residual(dim, dim), NoAttention(dim), Residual(dim, dim))


def _head(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(Norm(dim), nn.SiLU(), CausalConv(dim, out, 3))


class Encoder(nn.Module):
    """Pixels to the moments of the latent, before `conv1`."""

    def __init__(self, dim: int):
        super().__init__()
        widths = [dim * factor for factor in _WIDTHS]
        self.conv1 = CausalConv(3, dim, 3)
        layers: list[nn.Module] = []
        for level, (inner, outer) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            layers += [Residual(inner, outer), Residual(outer, outer)]
            if level < 3:
                layers.append(Down(outer, _IN_TIME[level]))
        self.downsamples = nn.Sequential(*layers)
        self.middle = _middle(widths[-1])
        self.head = _head(widths[-1], 2 * LATENT)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.downsamples(self.conv1(x))))


class Decoder(nn.Module):
    """A latent to pixels, after `conv2`."""

    def __init__(self, dim: int):
        super().__init__()
        widths = [dim * factor for factor in (_WIDTHS[-1], *_WIDTHS[:0:-1])]
        self.conv1 = CausalConv(LATENT, widths[0], 3)
        self.middle = _middle(widths[0])
        layers: list[nn.Module] = []
        for level, (inner, outer) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            inner = inner // 2 if level else inner
            layers += [Residual(inner, outer), Residual(outer, outer), Residual(outer, outer)]
            if level < 3:
                layers.append(Up(outer, _IN_TIME[::-1][level]))
        self.upsamples = nn.Sequential(*layers)
        self.head = _head(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upsamples(self.middle(self.conv1(x))))


class TinyVAE(nn.Module):
    """Encode videos to latents of about unit variance, and back.

    Args:
        dim: channels at full size.
    """

    def __init__(self, dim: int = DIM):
        super().__init__()
        self.encoder, self.decoder = Encoder(dim), Decoder(dim)
        self.conv1 = CausalConv(2 * LATENT, 2 * LATENT)
        self.conv2 = CausalConv(LATENT, LATENT)

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance [B, C, t, h, w] as the file has them."""
        mean, variance = self.conv1(self.encoder(video)).chunk(2, dim=1)
        return mean, variance

    def encode(self, video: Tensor) -> Tensor:
        """Map pixels [B, 3, 1 + 4n, 8h, 8w] in -1..1 to a latent [B, 16, 1 + n, h, w].

        Raises:
            ValueError: a size that does not divide.
        """
        check_size(video)
        mean, scale = (_channels(values, video) for values in (MEAN, STD))
        return (self.moments(video)[0] - mean) / scale

    def decode(self, latent: Tensor) -> Tensor:
        """Map a latent [B, 16, t, h, w] to pixels [B, 3, 1 + 4(t - 1), 8h, 8w], not clamped."""
        mean, scale = (_channels(values, latent) for values in (MEAN, STD))
        return self.decoder(self.conv2(latent * scale + mean))

    def matrices(self) -> list[nn.Parameter]:
        """The kernels between pixels and latent, for optimizers that treat them as matrices."""
        inner = (self.encoder.downsamples, self.encoder.middle, self.decoder.middle)
        modules = (*inner, self.decoder.upsamples)
        return [p for part in modules for p in part.parameters() if p.ndim > 3 and p[0].numel() > 1]

    @torch.no_grad()
    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Fold into `conv1` and `conv2` what brings latents with these moments [C] to Wan's."""
        target, scale = torch.tensor(MEAN).to(mean), torch.tensor(STD).to(std)
        gain = scale / std
        out, into = self.conv1, self.conv2
        out.weight[:LATENT] *= gain.view(-1, 1, 1, 1, 1)
        bias = out.get_parameter("bias")
        bias[:LATENT] = (bias[:LATENT] - mean) * gain + target
        into.get_parameter("bias").add_(into.weight.flatten(1) @ (mean - target / gain))
        into.weight /= gain.view(1, -1, 1, 1, 1)


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)


def check_size(video: Tensor) -> None:
    """Refuse pixels that make no whole latent."""
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(f"expected pixels [B, 3, T, H, W], got {tuple(video.shape)}.")
    _, _, frames, height, width = video.shape
    check_range(frames, "frames", 1, 100_000, "a video has one at least")
    if (frames - 1) % PERIOD or height % CELL or width % CELL:
        raise ValueError(
            f"expected 1 + {PERIOD}n frames and sides that are multiples of {CELL}, got {frames} "
            f"frames of {height}x{width}; cut the video."
        )


def save(vae: TinyVAE, path: Path, notes: dict[str, str], dtype: torch.dtype) -> None:
    """Write a file that hosts load as Wan's VAE, whole or not at all."""
    weights = {name: weight.detach().cpu().to(dtype) for name, weight in vae.state_dict().items()}
    write(path, weights, notes)


def load(path: Path) -> TinyVAE:
    """Read what `save` wrote; fp32, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a VAE of this kind.
    """
    header = read_header(path)
    dim = header.shapes.get("decoder.head.0.gamma", (DIM,))[0]
    header.check_room(1, {"dim": dim})
    vae = TinyVAE(dim)
    problems = header.misfits(shapes_of(vae))
    if problems:
        raise ValueError(
            f"expected a tiny VAE in {short(path)}, {len(problems)} keys do not fit: "
            f"{listed(problems)}. Load it with the loader of its kind."
        )
    weights = header.weights()
    if any(w.any() for name, w in weights.items() if ".middle.1.proj." in name):
        raise ValueError(
            f"expected no attention in {short(path)}, found some; load it with Wan's VAE."
        )
    vae.load_state_dict(weights)
    return vae.float().eval()
