"""Measures of a video against the truth or a preview, and their means with standard errors.

Videos are [B, 3, T, H, W] in 0..1; every measure gives one value for each of them, [B].
"""

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from kornia.metrics import ssim3d
from torch import Tensor

from benchmarks.page import parser, table
from surf_core.resample import resize
from surf_core.signature import detail, psnr
from surf_core.tiny.adherence import read
from surf_core.tiny.caption import Thing
from surf_core.tiny.model import REFINER, WEIGHTS

WINDOW = 7
"""Pixels, and frames, along a side of the window of SSIM."""
ASKED = ("large thing", "beads", "both")
"""What prompts ask for: colour, shape, direction and place of the large thing, and colour, count,
direction and place of the beads."""
RIGHT = "right"
"""Share of both that is right."""


def answers(video: Tensor, things: list[list[Thing]]) -> dict[str, Tensor]:
    """Read what prompts ask for from pixels alone, by ASKED and RIGHT: [B] of 0 and 1, or share."""
    large, beads = torch.tensor(read(video, things)).double().unbind(dim=1)
    found = dict(zip(ASKED, (large, beads, large * beads), strict=True))
    return found | {RIGHT: (large + beads) / 2}


def ssim(video: Tensor, truth: Tensor) -> Tensor:
    """Measure structural similarity over space and time, up to 1; kornia's `ssim3d`."""
    return ssim3d(video, truth, WINDOW).flatten(1).mean(dim=1)


def sharpness(video: Tensor, truth: Tensor) -> Tensor:
    """Variance of the Laplacian over that of the truth, at one size; 1 is as sharp."""
    return detail(video) / detail(truth).clamp_min(1e-6)


def temporal_error(video: Tensor, truth: Tensor) -> Tensor:
    """Measure how far changes from frame to frame are from the truth's, in % of the pixel range."""
    return 100 * (video.diff(dim=2) - truth.diff(dim=2)).abs().flatten(1).mean(dim=1)


def low_band(video: Tensor, shown: Tensor) -> Tensor:
    """Compute PSNR to a smaller video after averaging down to its size: what it keeps, dB."""
    return psnr(resize(video, tuple(shown.shape[-2:]), "area"), shown)


def against_truth(video: Tensor, truth: Tensor, shown: Tensor) -> dict[str, Tensor]:
    """Measure detail and fidelity where the sharp video is known."""
    return {
        "PSNR, dB": psnr(video, truth),
        "SSIM": ssim(video, truth),
        "sharpness": sharpness(video, truth),
        "temporal error, %": temporal_error(video, truth),
        "low band, dB": low_band(video, shown),
    }


def mean_and_error(values: Tensor, digits: int = 2, scale: float = 1.0) -> str:
    """Format mean and standard error, e.g. "31.02 +- 0.11"."""
    values = scale * values.double()
    error = values.std() / len(values) ** 0.5
    return f"{values.mean():.{digits}f} +- {error:.{digits}f}"


def share_and_error(hits: Tensor) -> str:
    """Format the share in % of a tensor of 0 and 1, with its binomial standard error.

    The error is that of one hit and one miss more, which is not 0 where all or none are hits.
    """
    count, right = len(hits), hits.double().sum()
    likely = (right + 1) / (count + 2)
    error = (likely * (1 - likely) / (count + 2)).sqrt()
    return f"{100 * right / count:.1f} +- {100 * error:.1f}"


class Rows:
    """Values of each method and measure, collected batch by batch in the same order of videos."""

    def __init__(self):
        self.parts: dict[str, dict[str, list[Tensor]]] = {}

    def add(self, method: str, values: dict[str, Tensor]) -> None:
        into = self.parts.setdefault(method, defaultdict(list))
        for name, value in values.items():
            into[name].append(value.double())

    def __getitem__(self, method: str) -> dict[str, Tensor]:
        return {name: torch.cat(parts) for name, parts in self.parts[method].items()}

    def change(self, method: str, to: str, name: str) -> Tensor:
        """Subtract one measure of a method from that of another, paired by video."""
        return self[method][name] - self[to][name]

    def table(self, first: str, gains: dict[str, tuple[str, str]] | None = None) -> list[str]:
        """Lay out means and errors, then paired changes.

        Args:
            first: head of the first column.
            gains: head -> (measure, method that it is compared with).
        """
        gains = gains or {}
        names = list(dict.fromkeys(name for parts in self.parts.values() for name in parts))

        def gain(method: str, name: str, other: str) -> str:
            known = method != other and other in self.parts and name in self.parts[method]
            return mean_and_error(self.change(method, other, name), _digits(name)) if known else "-"

        def row(method: str) -> list[str]:
            values = self[method]
            means = [
                mean_and_error(values[name], _digits(name)) if name in values else "-"
                for name in names
            ]
            return [method, *means, *(gain(method, *pair) for pair in gains.values())]

        return table(" | ".join([first, *names, *gains]), map(row, self.parts))


def _digits(name: str) -> int:
    return 2 if name.endswith((", dB", ", %", ", s")) else 3


def arguments(about: str, pairs: int, batch: int = 16) -> argparse.ArgumentParser:
    """Make the command line of benchmarks of the tiny models."""
    line = parser(about)
    line.add_argument("--pairs", type=int, default=pairs, help="held-out prompts and seeds")
    line.add_argument("--batch", type=int, default=batch, help="videos at once")
    line.add_argument("--weights", type=Path, default=WEIGHTS, help="text-to-video model")
    line.add_argument("--refiner", type=Path, default=REFINER, help="its refiner")
    return line
