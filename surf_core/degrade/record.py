"""The degradation of a clip as a frozen record, stored as JSON and replayed by `degrade`.

Every operation has one set of parameters for all frames of the clip; only its noise differs.
"""

import json
from dataclasses import asdict, dataclass, fields
from math import isfinite, pi
from typing import Any

from ..checks import check_choice, check_range
from ..header import json_object

LEVELS = ("weak", "medium", "full")
SHAPES = ("gaussian", "generalised", "plateau")
METHODS = ("area", "bilinear", "bicubic")
NOISES = ("gaussian", "poisson")
CODECS = {"libx264": (0, 51), "mpeg4": (1, 31)}
"""Encoder -> its range of quality, where lower is better: CRF, and the quantiser."""
LARGEST_KERNEL = 51

_REDRAW = "take the record from draw()"


@dataclass(frozen=True, kw_only=True, slots=True)
class Blur:
    """A blur kernel, isotropic if its two sigmas are equal."""

    shape: str
    """How it falls off: one of SHAPES."""
    size: int
    """Pixels along a side, odd."""
    sigma: tuple[float, float]
    """Widths along the two axes, in pixels, before the rotation."""
    angle: float = 0.0
    """Rotation of the axes in radians."""
    beta: float = 1.0
    """Exponent of the generalised and plateau shapes."""

    def __post_init__(self) -> None:
        check_choice(self.shape, "blur: shape", SHAPES)
        _check_kernel(self.size, "blur: size")
        object.__setattr__(self, "sigma", _pair(self.sigma, "blur: sigma"))
        for sigma in self.sigma:
            check_range(sigma, "blur: sigma", 0.01, 50, _REDRAW)
        check_range(self.angle, "blur: angle", -pi, pi, _REDRAW)
        check_range(self.beta, "blur: beta", 0.1, 10, _REDRAW)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sinc:
    """An ideal low-pass filter, cut off at the kernel's edge: it rings."""

    size: int
    """Pixels along a side, odd."""
    cutoff: float
    """Highest frequency that passes, in radians a pixel; pi passes all."""

    def __post_init__(self) -> None:
        _check_kernel(self.size, "sinc: size")
        check_range(self.cutoff, "sinc: cutoff", 0.01, pi, _REDRAW)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resize:
    """A resize to a factor of the clip's size ("high") or of the degraded clip's ("low")."""

    factor: float
    """Of each side; "low" and 1 is exactly the degraded clip's size."""
    of: str
    """high or low."""
    method: str
    """One of METHODS."""

    def __post_init__(self) -> None:
        check_range(self.factor, "resize: factor", 0.01, 10, _REDRAW)
        check_choice(self.of, "resize: of", ("high", "low"))
        check_choice(self.method, "resize: method", METHODS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Noise, new in every frame, of one strength for all."""

    kind: str
    """One of NOISES."""
    level: float
    """Gaussian: standard deviation in 1/255. Poisson: factor on the noise of 256 photons."""
    gray: bool
    """The same in all three colours."""

    def __post_init__(self) -> None:
        check_choice(self.kind, "noise: kind", NOISES)
        check_range(self.level, "noise: level", 0, 255, _REDRAW)


@dataclass(frozen=True, kw_only=True, slots=True)
class Jpeg:
    """JPEG of every frame."""

    quality: int
    """1 to 100, higher is better."""

    def __post_init__(self) -> None:
        _check_whole(self.quality, "jpeg: quality", 1, 100)


@dataclass(frozen=True, kw_only=True, slots=True)
class Codec:
    """A video encoder over the whole clip."""

    name: str
    """One of CODECS."""
    quality: int
    """In the encoder's own range; lower is better."""

    def __post_init__(self) -> None:
        check_choice(self.name, "codec: name", tuple(CODECS))
        _check_whole(self.quality, f"codec: {self.name} quality", *CODECS[self.name])


Operation = Blur | Sinc | Resize | Noise | Jpeg | Codec
KINDS: dict[str, type[Operation]] = {
    "blur": Blur,
    "sinc": Sinc,
    "resize": Resize,
    "noise": Noise,
    "jpeg": Jpeg,
    "codec": Codec,
}
"""Operations by their name in JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Degradation:
    """The degradation of a clip; both together determine the degraded clip bit for bit."""

    noise_seed: int
    """Seed of the noise in the frames, 0 to 2**53 - 1."""
    scale: float
    """Sides of the clip over those of the degraded clip, at least 1."""
    size: tuple[int, int] | None = None
    """(height, width) of the degraded clip; None is the clip's, divided by the scale."""
    level: str
    """One of LEVELS: the ranges that it was drawn from."""
    operations: tuple[Operation, ...]
    """In order, `steps` in JSON; the last resize is to exactly the degraded clip's size."""
    strength: float
    """Share of noise for the degraded latent, 0 to 1; see `add_latent_noise`."""

    def __post_init__(self) -> None:
        _check_whole(self.noise_seed, "degradation: noise_seed", 0, 2**53 - 1)
        check_range(self.scale, "degradation: scale", 1, 100, "divide larger by smaller")
        check_range(self.strength, "degradation: strength", 0, 1, _REDRAW)
        check_choice(self.level, "degradation: level", LEVELS)
        if self.size is not None:
            object.__setattr__(self, "size", _pair(self.size, "degradation: size", int))
            check_range(min(self.size), "degradation: size", 1, 2**15, "give (height, width)")
        object.__setattr__(self, "operations", tuple(self.operations))
        if wrong := [one for one in self.operations if type(one) not in KINDS.values()]:
            raise ValueError(
                f"degradation: steps must be of {', '.join(KINDS)}, got {wrong[0]!r}; {_REDRAW}."
            )
        resizes = [one for one in self.operations if isinstance(one, Resize)]
        if not resizes or (resizes[-1].of, resizes[-1].factor) != ("low", 1):
            raise ValueError(
                f"degradation: the last resize must be factor 1 of low, got {resizes[-1:]}; "
                f"{_REDRAW}."
            )

    def to_json(self) -> str:
        """Write the record as one line of JSON; floats keep every bit."""
        names = {kind: name for name, kind in KINDS.items()}
        operations = [{"op": names[type(one)], **asdict(one)} for one in self.operations]
        record = {
            "steps" if name == "operations" else name: operations if name == "operations" else value
            for name, value in asdict(self).items()
        }
        return json.dumps(record, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Degradation":
        """Read what `to_json` wrote.

        Raises:
            ValueError: no JSON, an unknown operation, missing or unknown fields, or a value out of
                range.
        """
        try:
            record = json_object(text)
        except ValueError as error:
            raise ValueError(
                f"degradation: expected the JSON of a record, got {text[:60]!r} ({error}); "
                "pass what to_json() wrote."
            ) from error
        names = {field.name for field in fields(cls)} - {"operations"} | {"steps"}
        record = _checked(record, names, "degradation")
        operations = record.pop("steps")
        if not isinstance(operations, list):
            raise ValueError(f"degradation: steps must be a list, got {operations!r}; {_REDRAW}.")
        try:
            return cls(**record, operations=tuple(_operation(one) for one in operations))
        except TypeError as error:
            raise ValueError(
                f"degradation: a value is of another kind ({error}); {_REDRAW}."
            ) from error


def _operation(record: object) -> Operation:
    """Parse one operation of a record's JSON."""
    mapping: dict[str, Any] = record if isinstance(record, dict) else {"op": record}
    name = mapping.get("op", "")
    check_choice(name, "degradation: op", tuple(KINDS))
    values = {key: value for key, value in mapping.items() if key != "op"}
    kind = KINDS[name]
    return kind(**_checked(values, {field.name for field in fields(kind)}, name))


def _checked(record: object, expected: set[str], name: str) -> dict:
    """Return a copy of a mapping with exactly the expected keys; raise for any other."""
    got = set(record) if isinstance(record, dict) else set()
    if not isinstance(record, dict) or got != expected:
        raise ValueError(
            f"{name}: expected the fields {sorted(expected)}, got {sorted(got)}; "
            "pass what to_json() wrote."
        )
    return dict(record)


def _pair(values: object, name: str, kind: type = float) -> tuple:
    pair = tuple(values) if isinstance(values, (tuple, list)) else ()
    numbers = all(isinstance(value, (int, float)) and isfinite(value) for value in pair)
    if len(pair) != 2 or not numbers or any(kind(value) != value for value in pair):
        raise ValueError(
            f"{name} must be two numbers ({kind.__name__}), got {values!r}; {_REDRAW}."
        )
    return tuple(kind(value) for value in pair)


def _check_whole(value: int, name: str, low: int, high: int) -> None:
    if type(value) is not int:
        raise ValueError(f"{name} must be a whole number, got {value!r}; {_REDRAW}.")
    check_range(value, name, low, high, _REDRAW)


def _check_kernel(size: int, name: str) -> None:
    if type(size) is not int or not 1 <= size <= LARGEST_KERNEL or size % 2 == 0:
        raise ValueError(
            f"{name} must be odd, 1 to {LARGEST_KERNEL} pixels, got {size}; {_REDRAW}."
        )
