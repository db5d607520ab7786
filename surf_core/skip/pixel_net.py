"""Score tokens by a small network on the frames of the enlarged preview, for every model and VAE.

It starts from pixel detail and corrects it by what a few convolutions see. 75 thousand parameters,
trained on video that other models generated, `benchmarks/quality/footage_net.py`.

Dims: B batch, F pixel frames, T latent frames, N frames; h, w cells of SIDE pixels, then tokens.
"""

import json
from collections.abc import Mapping
from math import log
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..header import listed, read_header, shapes_of, short, version_of, write
from ..resample import resize
from .detail import GAIN, check_frames
from .oracle import PATCH, UNIT, largest

WEIGHTS = Path(__file__).parent / "weights" / "pixels.safetensors"
"""Comes with the pack; how it was trained is in its metadata and beside it."""
FORMAT = 1
"""Version of its metadata."""
SIDE = 8
"""Pixels along a side of what is scored; tokens are made of these."""
FLOOR = 0.3
"""Added to scores before the logarithm, so that differences between flat tokens do not count."""
WIDTH, CELLS = 24, 48
"""Channels at a quarter of the pixels' resolution, and at that of cells."""


class PixelNet(nn.Module):
    """Multiply the mean square of pixel detail by what the pixels say of what enlarging has lost.

    Detail is compressed, so that one weight serves faint and strong detail. All of it is local and
    without norms, so that a part is scored as the whole frame is.

    Args:
        pixels: False sees the map of pixel detail alone: a control.
    """

    def __init__(self, pixels: bool = True):
        super().__init__()
        self.pixels = pixels

        def conv(inner: int, outer: int, side: int, stride: int = 1) -> nn.Conv2d:
            padding = (side - stride + 1) // 2
            return nn.Conv2d(inner, outer, side, stride, padding, padding_mode="replicate")

        self.stem = conv(6, WIDTH, 8, 4)
        self.fine = conv(WIDTH, WIDTH, 3)
        self.down = conv(WIDTH, CELLS, 4, 2)
        self.known = conv(2, CELLS, 3)
        self.blocks = nn.ModuleList(conv(CELLS, CELLS, 3) for _ in range(2))
        self.head = nn.Conv2d(CELLS, 1, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.get_parameter("bias"))

    def forward(self, large: Tensor, ratio: float) -> Tensor:
        """Score cells of SIDE pixels of enlarged frames [N, 3, H, W] in 0..1: squares [N, 1, h, w].

        Args:
            ratio: enlargement per side.
        """
        mean = F.avg_pool2d(F.pad(large, (1, 1, 1, 1), mode="replicate"), 3, 1)
        fine = 2 * UNIT * GAIN * ratio**2 * (large - mean)
        plain = F.avg_pool2d(fine.square().mean(dim=1, keepdim=True), SIDE)
        level = 0.5 * (plain + FLOOR**2).log()
        x = self.known(torch.cat([level, torch.full_like(level, log(ratio))], dim=1))
        if self.pixels:
            seen = torch.cat([2 * large - 1, 4 * F.softsign(fine / 8)], dim=1)
            seen = F.silu(self.stem(seen))
            x = x + self.down(seen + F.silu(self.fine(seen)))
        for block in self.blocks:
            x = x + F.silu(block(x))
        # The limits keep a score finite on pictures unlike any that it was trained on.
        return plain * (2 * self.head(F.silu(x))).clamp(-8, 8).exp()

    @torch.inference_mode()
    def scores(
        self,
        frames: Tensor,
        size: tuple[int, int],
        ratio: float,
        *,
        cell: tuple[int, int],
        patch: tuple[int, int, int] = PATCH,
    ) -> Tensor:
        """Score tokens as `detail.pixel_detail` does, with the same arguments and in its unit.

        Returns:
            [B, T, h, w], >= 0, on the CPU.

        Raises:
            ValueError: as `pixel_detail`, and tokens that are no multiples of SIDE pixels.
        """
        check_frames(frames, ratio, cell, patch)
        sides = patch[1] * cell[1], patch[2] * cell[1]
        if any(side % SIDE for side in sides):
            raise ValueError(
                f"expected tokens of multiples of {SIDE} pixels, got {sides}; score by detail."
            )
        padding = (0, -size[1] % sides[1], 0, -size[0] % sides[0])
        by = self.head.weight
        kept = []
        for frame in frames.unbind(dim=2):
            large = resize(frame.to(by.device, by.dtype), size, "bicubic").clamp(0, 1)
            squares = self(F.pad(large, padding, mode="replicate"), ratio)[:, 0]
            tokens = F.avg_pool2d(squares, (sides[0] // SIDE, sides[1] // SIDE))
            kept.append(tokens.sqrt().cpu())
        return largest(torch.stack(kept, dim=1), cell[0], patch[0])


def save(path: Path, weights: Mapping[str, Tensor], notes: dict) -> None:
    """Write weights in fp32 with JSON-able notes.

    Raises:
        ValueError: a weight is not finite.
    """
    metadata = {"surf.pixels.format": str(FORMAT), "surf.notes": json.dumps(notes)}
    write(path, {name: weight.float() for name, weight in weights.items()}, metadata)


def load(path: Path = WEIGHTS) -> PixelNet:
    """Read a network that `save` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another file, a newer format, or weights that do not fit or are not finite.
    """
    header = read_header(path)
    version = header.metadata.get("surf.pixels.format", "")
    if not version.isdecimal():
        raise ValueError(
            f"expected surf.pixels.format in the metadata of {short(path)}, got "
            f"{listed(sorted(header.metadata), ', ') or 'none'}; it is no network on pixels."
        )
    version_of(version, FORMAT, header)
    model = PixelNet()
    if problems := header.misfits(shapes_of(model)):
        raise ValueError(
            f"the weights of {short(path)} do not fit, {len(problems)} keys: {listed(problems)}. "
            "Use the file as its training wrote it."
        )
    model.load_state_dict(header.weights())
    return model.eval()
