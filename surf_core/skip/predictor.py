"""A small network that tells, from the enlarged preview, what refining would add to each token.

It regresses the logarithm of the oracle's score, so the threshold stays a choice of each run.
75 thousand parameters; it works frame by frame, but for one convolution over time.

Dims: B batch, C latent channels, T latent frames, H, W latent cells; T, h, w tokens.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .oracle import PATCH

FORMAT = 1
"""Version of a predictor's metadata."""
FLOOR = 0.3
"""Added to scores before the logarithm, so that flat tokens are not told apart."""

EDGE = "replicate"
"""What lies beyond the picture: its edge, for zeros would be detail that is not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorConfig:
    """What a predictor is; what its file says in the metadata."""

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

    def __post_init__(self):
        numbers = (self.latent_channels, self.width, self.groups, *self.patch)
        if min(numbers) < 1 or self.depth < 0 or self.width % self.groups:
            raise ValueError(
                f"expected sizes from 1, and a width that groups divide, got {self}; use the "
                "defaults."
            )
        if len(self.patch) != 3 or self.patch[0] != 1:
            raise ValueError(f"expected tokens of one latent frame, got patch={self.patch}.")


class Residual(nn.Module):
    """x + conv3x3(SiLU(GroupNorm(x))), frame by frame."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, padding_mode=EDGE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.silu(self.norm(x)))


class MaskPredictor(nn.Module):
    """Regress log(score + FLOOR) of every token from the start latent.

    The first convolution strides from token to token and sees one cell beyond each; so all else
    runs on tokens, a quarter of the cells.
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
            Residual(config.width, config.groups) for _ in range(config.depth)
        )
        self.time = nn.Conv3d(
            config.width, config.width, (3, 1, 1), padding=(1, 0, 0), groups=config.width
        )
        self.head = nn.Conv2d(config.width, 1, 1)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights; blocks and time begin as the identity, the head at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                fan = module.weight[0].numel()
                module.weight.normal_(std=(2 / fan) ** 0.5, generator=generator)
                module.bias.zero_()
        for module in (self.time, self.head):
            module.weight.zero_()

    def forward(self, start: Tensor) -> Tensor:
        """Map a clean latent [B, C, T, H, W], at the target size, to [B, T, h, w] logarithms.

        Raises:
            ValueError: another number of channels, or a size that tokens do not divide.
        """
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
        batch = start.shape[0]
        x = self.stem(start.transpose(1, 2).flatten(0, 1))
        for block in self.blocks:
            x = block(x)
        clip = x.unflatten(0, (batch, -1)).transpose(1, 2)
        clip = clip + self.time(clip)
        x = F.silu(clip.transpose(1, 2).flatten(0, 1))
        return self.head(x)[:, 0].unflatten(0, (batch, -1)).float()

    @torch.no_grad()
    def scores(self, start: Tensor) -> Tensor:
        """Scores [B, T, h, w] in the oracle's unit, divided by the calibration.

        Calibrated, a threshold of tau finds what it was calibrated to find, see
        `training.mask`.
        """
        weight = self.head.weight
        raw = self(start.to(weight.device, weight.dtype))
        return (raw.exp() - FLOOR).clamp(min=0) / self.calibration


def save(
    path: Path,
    weights: Mapping[str, Tensor],
    config: PredictorConfig,
    calibration: float,
    notes: dict,
) -> None:
    """Write weights in fp32, with config, calibration and JSON-able notes.

    The keys of the metadata are not those of a refiner, so that no file is taken for the other.
    """
    metadata = {
        "surf.skip.format": str(FORMAT),
        "surf.skip.config": json.dumps(asdict(config)),
        "surf.skip.calibration": repr(float(calibration)),
        "surf.notes": json.dumps(notes),
    }
    save_file({name: w.float().contiguous() for name, w in weights.items()}, path, metadata)


def load(path: Path) -> tuple[MaskPredictor, dict]:
    """Read a predictor that `save` wrote, in evaluation mode, and its notes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a predictor of ours, a newer format, or weights that do not fit.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"expected a predictor at {path}, found nothing; restore the file.")
    try:
        with safe_open(path, "pt") as file:
            # First, so that a large file of another kind is refused without being read.
            metadata = file.metadata() or {}
            config, calibration = _read(metadata, path)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"expected a .safetensors file, {path} is not one: {error}; download it again."
        ) from error
    model = MaskPredictor(config, calibration)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the weights of {path} do not fit their config: {error}. Use the file as its training "
            "wrote it."
        ) from error
    return model.eval(), json.loads(metadata.get("surf.notes", "{}"))


def _read(metadata: Mapping[str, str], path: Path) -> tuple[PredictorConfig, float]:
    version = metadata.get("surf.skip.format", "")
    if not version.isdecimal():
        raise ValueError(
            f"expected surf.skip.format in the metadata of {path}, got "
            f"{', '.join(sorted(metadata)) or 'none'}; it is no mask predictor."
        )
    if int(version) > FORMAT:
        raise ValueError(
            f"expected format {FORMAT} or older, got {version} in {path}; update the pack."
        )
    try:
        values = json.loads(metadata["surf.skip.config"])
        unknown = values.keys() - {field.name for field in fields(PredictorConfig)}
        calibration = float(metadata["surf.skip.calibration"])
        if unknown or not isfinite(calibration) or calibration <= 0:
            raise ValueError(f"unknown {sorted(unknown)}, {calibration=}")
        config = PredictorConfig(**values | {"patch": tuple(values["patch"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"expected a predictor's config in {path}, got {error!r}; it is damaged."
        ) from error
    return config, calibration
