"""A small network that predicts, from the upsampled preview, what refining adds to each token.

It regresses the logarithm of the oracle's score, so the threshold stays a choice of each run.
75 thousand parameters; it works frame by frame, but for one convolution over time.

Dims: B batch, C latent channels, T latent frames, H, W latent cells; T, h, w tokens.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..header import (
    Header,
    config_of,
    json_object,
    listed,
    read_header,
    repeated,
    shapes_of,
    short,
    version_of,
    write,
)
from .oracle import PATCH

FORMAT = 1
"""Version of a predictor's metadata."""
LEAST_CALIBRATION = 1e-6
"""Of a file; its inverse is the greatest."""
FLOOR = 0.3
"""Added to scores before the logarithm, so that differences between flat tokens do not count."""

EDGE: Literal["replicate"] = "replicate"
"""Padding of the convolutions; zeros would add detail at the edges of the picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorConfig:
    """Sizes of a predictor, as stored in the metadata of its file."""

    latent_channels: int = 16
    """Channels of the latent."""
    width: int = 48
    """Channels inside, a multiple of groups."""
    depth: int = 3
    """Residual blocks."""
    groups: int = 8
    """Groups of channels that are normed together."""
    patch: tuple[int, int, int] = PATCH
    """Latent cells in a token; one frame."""

    def __post_init__(self) -> None:
        numbers = (self.latent_channels, self.width, self.groups, self.depth, *self.patch)
        whole = all(type(number) is int for number in numbers)
        least = min((*numbers[:3], self.depth + 1, *self.patch)) if whole else 0
        if least < 1 or self.width % self.groups:
            raise ValueError(
                f"expected sizes from 1, and a width that groups divide, got {self}; use the "
                "defaults."
            )
        if len(self.patch) != 3 or self.patch[0] != 1:
            raise ValueError(f"expected tokens of one latent frame, got patch={self.patch}.")


class PredictorBlock(nn.Module):
    """x + conv3x3(SiLU(GroupNorm(x))), frame by frame."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, padding_mode=EDGE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.silu(self.norm(x)))


class MaskPredictor(nn.Module):
    """Regress log(score + FLOOR) of every token from the upsampled preview.

    The first convolution has a stride of one token and reaches one cell beyond it; all others run
    on tokens, a quarter of the cells.
    """

    def __init__(self, config: PredictorConfig, calibration: float = 1.0):
        super().__init__()
        self.config, self.calibration = config, calibration
        _, rows, columns = config.patch
        self.stem = nn.Conv2d(
            config.latent_channels, config.width, (rows + 2, columns + 2), (rows, columns), 1,
            padding_mode=EDGE,
        )  # fmt: skip
        self.blocks = nn.ModuleList(
            PredictorBlock(config.width, config.groups) for _ in range(config.depth)
        )
        self.time = nn.Conv3d(
            config.width, config.width, (3, 1, 1), padding=(1, 0, 0), groups=config.width
        )
        self.head = nn.Conv2d(config.width, 1, 1)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights; the convolution over time and the head are zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                fan = module.weight[0].numel()
                module.weight.normal_(std=(2 / fan) ** 0.5, generator=generator)
                module.get_parameter("bias").zero_()
        for module in (self.time, self.head):
            module.weight.zero_()

    def forward(self, start: Tensor) -> Tensor:
        """Map a clean latent [B, C, T, H, W], at the target size, to [B, T, h, w] logarithms.

        Raises:
            ValueError: another number of channels, or a size that tokens do not divide.
        """
        self._check(start)
        clip = self._tokens(start.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(start), -1))
        clip = clip.transpose(1, 2)
        return self._logarithms(clip + self.time(clip))

    def _check(self, start: Tensor) -> None:
        config = self.config
        rows, columns = config.patch[1:]
        if start.ndim != 5 or start.shape[1] != config.latent_channels:
            raise ValueError(
                f"expected a latent [B, {config.latent_channels}, T, H, W], got "
                f"{tuple(start.shape)}; use the predictor of this latent."
            )
        if start.shape[3] % rows or start.shape[4] % columns:
            raise ValueError(
                f"expected rows and columns of whole tokens of {rows}x{columns} cells, got "
                f"{tuple(start.shape[3:])}; choose a size that fits."
            )

    def _tokens(self, frames: Tensor) -> Tensor:
        """Map frames [N, C, H, W], each by itself, to [N, width, h, w]."""
        x = self.stem(frames)
        for block in self.blocks:
            x = block(x)
        return x

    def _logarithms(self, clip: Tensor) -> Tensor:
        """Map tokens [B, width, T, h, w] to [B, T, h, w]."""
        x = F.silu(clip.transpose(1, 2).flatten(0, 1))
        return self.head(x)[:, 0].unflatten(0, (len(clip), -1)).float()

    @torch.no_grad()
    def scores(self, start: Tensor) -> Tensor:
        """Predict scores [B, T, h, w] in the oracle's unit, divided by the calibration.

        The calibration makes a threshold of tau reach its recall, see `training.mask`.
        """
        self._check(start)
        weight = self.head.weight
        frames = start.to(weight.device, weight.dtype).unbind(2)
        # One frame at a time: the last bits of a convolution may depend on how many it gets.
        tokens = [self._tokens(frame) for frame in frames]
        none = torch.zeros_like(tokens[0])
        beside = zip([none, *tokens], tokens, [*tokens[1:], none], strict=False)
        raw = torch.cat([self._frame(torch.stack(three, dim=2)) for three in beside], dim=1)
        return (raw.exp() - FLOOR).clamp(min=0) / self.calibration

    def _frame(self, three: Tensor) -> Tensor:
        """Map the tokens of three frames [B, width, 3, h, w] to those of the middle one."""
        return self._logarithms(three[:, :, 1:2] + self.time(three)[:, :, 1:2])


def save(
    path: Path,
    weights: Mapping[str, Tensor],
    config: PredictorConfig,
    calibration: float,
    notes: dict,
) -> None:
    """Write weights in fp32, with config, calibration and JSON-able notes.

    The metadata keys differ from those of a refiner, so that neither file is taken for the other.

    Raises:
        ValueError: a weight is not finite.
    """
    metadata = {
        "surf.skip.format": str(FORMAT),
        "surf.skip.config": json.dumps(asdict(config)),
        "surf.skip.calibration": repr(float(calibration)),
        "surf.notes": json.dumps(notes),
    }
    write(path, {name: weight.float() for name, weight in weights.items()}, metadata)


def load(path: Path) -> tuple[MaskPredictor, dict]:
    """Read a predictor that `save` wrote, in evaluation mode, and its notes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a predictor of ours, a newer format, weights that do not fit or are not
            finite.
    """
    # First, so that a large file of another kind is refused without being read.
    header = read_header(path)
    config, calibration, notes = _read(header)
    with torch.device("meta"):
        one = shapes_of(MaskPredictor(replace(config, depth=min(1, config.depth))))
    if problems := header.misfits(repeated(one, config.depth)):
        raise ValueError(
            f"the weights of {short(path)} do not fit their config, {len(problems)} keys: "
            f"{listed(problems)}. Use the file as its training wrote it."
        )
    model = MaskPredictor(config, calibration)
    model.load_state_dict(header.weights())
    return model.eval(), notes


def _read(header: Header) -> tuple[PredictorConfig, float, dict]:
    metadata, path = header.metadata, header.path
    version = metadata.get("surf.skip.format", "")
    if not version.isdecimal():
        raise ValueError(
            f"expected surf.skip.format in the metadata of {short(path)}, got "
            f"{listed(sorted(metadata), ', ') or 'none'}; it is no mask predictor."
        )
    version_of(version, FORMAT, header)
    try:
        config = config_of(PredictorConfig, metadata.get("surf.skip.config", "{"))
        header.check_room(config.depth, _largest(config))
        text = metadata.get("surf.skip.calibration", "nothing")
        calibration = float(text) if re.fullmatch(r"[0-9.e+-]{1,40}", text) else 0.0
        if not LEAST_CALIBRATION <= calibration <= 1 / LEAST_CALIBRATION:
            raise ValueError(f"a calibration of {short(text)}")
        notes = json_object(metadata.get("surf.notes", "{}"))
    except ValueError as error:
        raise ValueError(
            f"expected a predictor's config in {short(path)}, got {error}; it is damaged."
        ) from error
    return config, calibration, notes


def _largest(config: PredictorConfig) -> dict[str, int]:
    """Numbers of one weight for each size of a config."""
    _, rows, columns = config.patch
    stem = config.latent_channels * config.width * (rows + 2) * (columns + 2)
    blocks = {"9 * width * width": 9 * config.width**2} if config.depth else {}
    return {"latent_channels * width * patch": stem} | blocks
