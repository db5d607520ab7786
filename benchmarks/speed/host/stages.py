"""The stages of the flow in the host: what they took, and what they must take.

Dims: D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from surf_core import cost
from surf_core.window import segments, token_bounds

PLAIN, FIRST, SECOND = "plain run", "first leg, 480p", "second leg, 240p"
UPSAMPLE, DECODE = "upsample through the VAE", "VAE decode"


@dataclass(kw_only=True, slots=True, eq=False)
class TimedStage:
    """Evaluations of one model at one size, or a pass through the VAE; and what they took."""

    target: str
    """The size of the final video, "-" for both legs of a preview."""
    cfg: str
    """Guidance, "on" or "off"; "-" for the VAE."""
    name: str
    work: cost.Evaluations | None
    """Model, size and evaluations; None for the VAE."""
    refiner: str = ""
    """Which one, if it is one."""
    keep: float = 1.0
    """Share of the tokens that a mask keeps."""
    plans: list[str] = field(default_factory=list)
    """Guidance of the plans that it is part of, see `plans.GUIDANCE`."""
    times: int = 0
    """Calls of a turn that measure it."""
    guess: float = 0.0
    """Seconds of an evaluation, as long as none ran."""
    setup: float = 0.0
    """Seconds of a call beside its evaluations, as guessed."""
    planned: int = 1
    """Evaluations of a call."""
    calls: list[tuple[list[float], float]] = field(default_factory=list)
    """(seconds of each evaluation, the first with all before it; seconds after the last)."""
    alone: list[float] = field(default_factory=list)
    """Seconds of the last evaluation of each call, less what came before it."""
    peak: int = 0
    """Bytes allocated at most, weights of all models on the device among them; 0 on a CPU."""
    why_not: str = "the minutes were over"
    """Why it was not measured, if so."""
    failed: bool = False
    """A call of it came to no end: it is not tried again."""

    @property
    def full(self) -> int:
        return self.work.steps if self.work else 1

    @property
    def first(self) -> float:
        """Seconds until the first evaluation ever was over."""
        return self.calls[0][0][0]

    @property
    def later(self) -> float:
        """Median of the evaluations after the first; where there is none, of the first, alone."""
        after = [spent for evaluations, _ in self.calls for spent in evaluations[1:]]
        return median(after or self.alone)

    @property
    def rest(self) -> float:
        """Seconds after the last evaluation."""
        return median(rest for _, rest in self.calls)

    @property
    def total(self) -> float:
        """Seconds of the whole stage: of a call, and of the evaluations that it lacks."""
        return median(
            sum(spent) + rest + (self.full - len(spent)) * self.later for spent, rest in self.calls
        )

    @property
    def whole(self) -> bool:
        return all(len(spent) == self.full for spent, _ in self.calls)

    @property
    def flops(self) -> int:
        """Operations of all evaluations."""
        return self.full * sum(self.operations())

    @property
    def rate(self) -> float:
        """Operations a second of a later evaluation."""
        return sum(self.operations()) / self.later

    def operations(self) -> tuple[float, float]:
        """Count the linear ones of an evaluation, and those of self-attention."""
        work = self.work
        clip = (work.frames, work.height, work.width)
        linear, attention = operations(work.shape, *clip, work.window, work.kept)
        runs = 1 + work.guided
        return linear * runs, attention * runs

    def needs(self, count: int) -> float:
        """Estimate the seconds of a call with this many evaluations."""
        return self.setup + count * (self.later if self.calls else self.guess)

    def take(self, evaluations: list, began: float, ended: float) -> None:
        """Keep what was recorded of a call."""
        marks = [began, *(each.ended for each in evaluations)]
        spent = [after - before for before, after in zip(marks[:-1], marks[1:], strict=True)]
        self.calls.append((spent, ended - marks[-1]))
        self.alone.append(evaluations[-1].ended - evaluations[-1].began)
        self.peak = max(self.peak, *(each.peak for each in evaluations))


def operations(
    shape: cost.ModelShape,
    frames: int,
    height: int,
    width: int,
    window: int = 0,
    kept: Sequence[int] | None = None,
) -> tuple[int, int]:
    """Count the linear operations of a forward, and those of its self-attention.

    Their sum is `cost.forward_flops`. That prices no windows of a model whose text passes through
    the same blocks; here its windows attend to the text too, and the text to everything.

    Args:
        frames: pixel frames.
        height, width: pixels.
        window: latent frames of a self-attention window; 0 is full attention.
        kept: tokens of each latent frame that a mask keeps; None for all.
    """
    count, text = cost.latent_frames(shape, frames), shape.text_tokens if shape.joint_text else 0
    counts = kept or [cost.tokens(shape, frames, height, width) // count] * count
    video = sum(counts)
    whole = cost.forward_flops(shape, frames, height, width, kept=kept)
    linear = whole - shape.layers * 4 * shape.dim * (video + text) ** 2
    attention = 0
    for layers, shifted in (((shape.layers + 1) // 2, False), (shape.layers // 2, True)):
        lengths = [b - a for a, b in token_bounds(counts, segments(count, window, shifted))]
        pairs = sum(length * (length + text) for length in lengths) + text * (video + text)
        attention += layers * 4 * shape.dim * pairs
    return linear, attention


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What it did at best in this run, operations a second."""

    matmul: float
    attention: dict[int, float]
    """By head width."""

    def floor(self, stage: TimedStage) -> float:
        """Return the seconds that an evaluation's operations take at these rates."""
        linear, attention = stage.operations()
        rate = self.attention[stage.work.shape.dim // stage.work.shape.heads]
        return linear / self.matmul + attention / rate


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredFlow:
    """The stages of a plain run and those that take its place."""

    plan: str
    """Where there is guidance, see `plans.GUIDANCE`."""
    plain: TimedStage
    legs: tuple[TimedStage, TimedStage]
    refine: TimedStage
    coding: tuple[TimedStage | None, TimedStage | None]
    """Upsampling and the decode of the result; None where there is no VAE."""

    @property
    def parts(self) -> list[TimedStage]:
        return [self.plain, *self.legs, self.refine, *(each for each in self.coding if each)]

    @property
    def measured(self) -> bool:
        return all(each.calls for each in self.parts)

    @property
    def sampling(self) -> float:
        """Seconds in networks."""
        return sum(each.total for each in (*self.legs, self.refine))

    @property
    def fewer(self) -> float:
        """Operations of the plain run over those of this."""
        return self.plain.flops / sum(each.flops for each in (*self.legs, self.refine))

    @property
    def faster(self) -> float:
        return self.plain.total / self.sampling

    def faster_at(self, machine: Machine) -> float:
        """`faster`, if every evaluation took its floor."""

        def floors(*stages: TimedStage) -> float:
            return sum(each.full * machine.floor(each) for each in stages)

        return floors(self.plain) / floors(*self.legs, self.refine)

    def coded(self, index: int) -> float:
        return self.coding[index].total if self.coding[index] else 0.0

    @property
    def whole(self) -> tuple[float, float]:
        """Seconds with the VAE: of the plain run, of this."""
        upsample, decode = self.coded(0), self.coded(1)
        return self.plain.total + decode, self.sampling + upsample + decode
