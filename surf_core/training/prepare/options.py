"""The options that determine the content of a shard, as a frozen record hashed into every key."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from typing import Any

from ...checks import check_choice, check_range
from ...degrade import MIX
from ...tiny.caption import PHRASES
from .buckets import buckets
from .clips import LENGTHS
from .decode import FPS
from .filters import Limits

VERSION = 1
"""Of the shards' format; another one is another hash."""
STARTS = ("pixel", "latent")
DTYPES = ("bf16", "fp16", "fp32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How clips are chosen, degraded and stored."""

    resolutions: tuple[str, ...] = ("1080p", "720p")
    """Names of resolutions, in order of preference; see `buckets`. Source: Bowtie-flow B.3."""
    scales: tuple[float, ...] = (4.5, 3.0)
    """Of each resolution: sides of the clip over those of the degraded clip."""
    low_unit: int = 16
    """Pixels that sides of the degraded clip are rounded to: a token of the model."""
    lengths: tuple[int, ...] = LENGTHS
    """Frames of a clip, 4n + 1 each."""
    fps: int = FPS
    """Frames a second."""
    limits: Limits = field(default_factory=Limits)
    """What a clip must keep to."""
    mix: tuple[float, float, float] = MIX
    """Weights of weak, medium and full degradation."""
    start: str = "pixel"
    """pixel: the degraded clip enlarged, bicubic, is encoded and stored too; latent: it is not, and
    readers enlarge the degraded latent."""
    dtype: str = "bf16"
    """Of what is stored."""
    text_length: int = 512
    """Tokens of a caption that the model sees; readers fill up with zeros. Source: Wan 2.1."""
    seed: int = 0
    """Of the degradations."""

    def __post_init__(self) -> None:
        for name in self.resolutions:
            buckets(name)
        if not self.resolutions or len(self.resolutions) != len(self.scales):
            raise ValueError(
                f"expected a scale for each resolution, got resolutions={self.resolutions}, "
                f"scales={self.scales}; e.g. ('1080p', '720p') and (4.5, 3.0)."
            )
        for scale in self.scales:
            check_range(scale, "scale", 1, 16, "divide the larger side by the smaller")
        if not self.lengths or any(n < 1 or n % 4 != 1 for n in self.lengths):
            raise ValueError(
                f"expected lengths of 4n + 1 frames, got {self.lengths}; use 81 and 21."
            )
        for name, least in (("fps", 1), ("low_unit", 1), ("text_length", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(
                    f"{name} must be a whole number from {least}, got {value!r}; correct it."
                )
        if len(self.mix) != 3 or min(self.mix) < 0 or not sum(self.mix) > 0:
            raise ValueError(f"mix must be three weights, not all 0, got {self.mix}; e.g. {MIX}.")
        check_choice(self.start, "start", STARTS)
        check_choice(self.dtype, "dtype", DTYPES)

    def low_size(self, resolution: str, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the degraded clip: each side through the scale, to the unit."""
        scale = self.scales[self.resolutions.index(resolution)]
        rows, columns = (max(1, round(side / scale / self.low_unit)) for side in size)
        return rows * self.low_unit, columns * self.low_unit


def wan() -> Options:
    """Options for Wan 2.1: 720p and 1080p, 81 and 21 frames, previews of 240p."""
    return Options()


def tiny() -> Options:
    """Options for the embedded model: drawn scenes of 128x128, 5 frames, 4 times smaller.

    Drawn scenes are flat between their edges, so the limits of sharpness and quality are off;
    those of brightness are the usual ones.
    """
    return Options(
        resolutions=("tiny",),
        scales=(4.0,),
        low_unit=8,
        lengths=(5,),
        limits=Limits(sharpness=0.0, quality=0.0),
        dtype="fp16",
        text_length=PHRASES,
    )


PRESETS = {"wan": wan, "tiny": tiny}


def identity(options: Options, *, codec: str, text: str, scorer: str) -> dict:
    """Everything that decides a shard's content, as plain JSON values, one level deep."""
    record = asdict(options)
    limits = {f"limits.{name}": value for name, value in record.pop("limits").items()}
    record |= {"version": VERSION, "codec": codec, "text": text, "scorer": scorer, **limits}
    return json.loads(json.dumps(record))


def digest(record: Mapping) -> str:
    """Hash an `identity`: 16 hex digits."""
    text = json.dumps(record, sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def differences(have: Mapping, want: Mapping) -> list[str]:
    """Name what two identities disagree on, a line each."""
    names = sorted(set(have) | set(want))
    return [
        f"{name}: the folder has {have.get(name)!r}, you ask for {want.get(name)!r}"
        for name in names
        if have.get(name) != want.get(name)
    ]


def from_identity(record: Mapping) -> Options:
    """The options of an `identity`."""
    known = {one.name for one in fields(Options)} - {"limits"}
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in record.items()
        if name in known
    }
    limits = {
        name.removeprefix("limits."): value
        for name, value in record.items()
        if name.startswith("limits.")
    }
    return Options(**plain, limits=Limits(**limits))
