"""What was done to a clip, as a frozen record that JSON carries and `degrade` replays.

Every step holds for all frames of the clip; noise is the only thing that differs between frames.
"""

import json
from dataclasses import asdict, dataclass, fields
from math import isfinite, pi

from ..checks import check_choice, check_range

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
    """A kernel that falls off with the distance; two equal sigmas make it isotropic."""

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

    def __post_init__(self):
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

    def __post_init__(self):
        _check_kernel(self.size, "sinc: size")
        check_range(self.cutoff, "sinc: cutoff", 0.01, pi, _REDRAW)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resize:
    """Another size: a factor of the clip's own ("high") or of the degraded clip's ("low")."""

    factor: float
    """Of each side; "low" and 1 is exactly the degraded clip's size."""
    of: str
    """high or low."""
    method: str
    """One of METHODS."""

    def __post_init__(self):
        check_range(self.factor, "resize: factor", 0.01, 10, _REDRAW)
        check_choice(self.of, "resize: of", ("high", "low"))
        check_choice(self.method, "resize: method", METHODS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Noise, fresh in every frame, one strength for all."""

    kind: str
    """One of NOISES."""
    level: float
    """Gaussian: standard deviation in 1/255. Poisson: factor on the noise of 256 photons."""
    gray: bool
    """The same in all three colours."""

    def __post_init__(self):
        check_choice(self.kind, "noise: kind", NOISES)
        check_range(self.level, "noise: level", 0, 255, _REDRAW)


@dataclass(frozen=True, kw_only=True, slots=True)
class Jpeg:
    """JPEG of every frame."""

    quality: int
    """1 to 100, higher is better."""

    def __post_init__(self):
        _check_whole(self.quality, "jpeg: quality", 1, 100)


@dataclass(frozen=True, kw_only=True, slots=True)
class Codec:
    """A video encoder over the whole clip."""

    name: str
    """One of CODECS."""
    quality: int
    """In the encoder's own range; lower is better."""

    def __post_init__(self):
        check_choice(self.name, "codec: name", tuple(CODECS))
        _check_whole(self.quality, f"codec: {self.name} quality", *CODECS[self.name])


Step = Blur | Sinc | Resize | Noise | Jpeg | Codec
STEPS = {kind.__name__.lower(): kind for kind in (Blur, Sinc, Resize, Noise, Jpeg, Codec)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Degradation:
    """All that was drawn for a clip; with the clip it gives the degraded clip, bit for bit."""

    noise_seed: int
    """Of the noise in the frames, 0 to 2**53 - 1."""
    scale: float
    """Sides of the clip over those of the degraded clip, at least 1."""
    size: tuple[int, int] | None = None
    """(height, width) of the degraded clip; None is the clip's, divided by the scale."""
    level: str
    """One of LEVELS; says which ranges were drawn from."""
    steps: tuple[Step, ...]
    """In order; the last resize is to exactly the degraded clip's size."""
    strength: float
    """Share of noise for the degraded latent, 0 to 1; see `add_latent_noise`."""

    def __post_init__(self):
        _check_whole(self.noise_seed, "degradation: noise_seed", 0, 2**53 - 1)
        check_range(self.scale, "degradation: scale", 1, 100, "divide larger by smaller")
        check_range(self.strength, "degradation: strength", 0, 1, _REDRAW)
        check_choice(self.level, "degradation: level", LEVELS)
        if self.size is not None:
            object.__setattr__(self, "size", _pair(self.size, "degradation: size", int))
            check_range(min(self.size), "degradation: size", 1, 2**15, "give (height, width)")
        object.__setattr__(self, "steps", tuple(self.steps))
        if wrong := [step for step in self.steps if type(step) not in STEPS.values()]:
            raise ValueError(
                f"degradation: steps must be of {', '.join(STEPS)}, got {wrong[0]!r}; {_REDRAW}."
            )
        resizes = [step for step in self.steps if isinstance(step, Resize)]
        if not resizes or (resizes[-1].of, resizes[-1].factor) != ("low", 1):
            raise ValueError(
                f"degradation: the last resize must be factor 1 of low, got {resizes[-1:]}; "
                f"{_REDRAW}."
            )

    def to_json(self) -> str:
        """Write the record as one line of JSON; floats keep every bit."""
        record = asdict(self)
        names = {kind: name for name, kind in STEPS.items()}
        record["steps"] = [{"op": names[type(step)], **asdict(step)} for step in self.steps]
        return json.dumps(record, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Degradation":
        """Read what `to_json` wrote.

        Raises:
            ValueError: no JSON, an unknown step, missing or unknown fields, or a value that the
                record refuses.
        """
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"degradation: expected the JSON of a record, got {text[:60]!r} ({error}); "
                "pass what to_json() wrote."
            ) from error
        record = _checked(record, cls, "degradation")
        if not isinstance(record["steps"], list):
            raise ValueError(
                f"degradation: steps must be a list, got {record['steps']!r}; {_REDRAW}."
            )
        try:
            return cls(**{**record, "steps": tuple(_step(step) for step in record["steps"])})
        except TypeError as error:
            raise ValueError(
                f"degradation: a value is of another kind ({error}); {_REDRAW}."
            ) from error


def _step(step) -> Step:
    step = step if isinstance(step, dict) else {"op": step}
    name = step.get("op")
    check_choice(name, "degradation: op", tuple(STEPS))
    inner = {key: value for key, value in step.items() if key != "op"}
    return STEPS[name](**_checked(inner, STEPS[name], name))


def _checked(record, kind, name: str) -> dict:
    """Refuse a mapping whose keys are not the fields of `kind`: a replay must guess nothing."""
    expected = {field.name for field in fields(kind)}
    got = set(record) if isinstance(record, dict) else set()
    if got != expected:
        raise ValueError(
            f"{name}: expected the fields {sorted(expected)}, got {sorted(got)}; "
            "pass what to_json() wrote."
        )
    return record


def _pair(values, name: str, kind: type = float) -> tuple:
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
