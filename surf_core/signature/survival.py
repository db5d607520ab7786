"""What of a reference survived in a video: five parts, each between its floor and its ceiling.

Dims: B batch, T frames, H, W pixels of the smaller video.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ..resample import resize
from .agreement import COARSEST, bands, check_shape, fine, finest, pair, sharpness
from .distances import colour_distance
from .motion import flow_lengths, motion

GREY, SEED = "grey", "another seed"
MEANING = "Whether both mean the same, no number here can judge: look at them."
FLAT = "the reference has no fine detail, so that none can be kept or lost"
PADDING = 4
"""Frames that two videos may differ by: what a VAE adds to fill its last latent frame."""
MANY = 10
"""Times as much; more is no number to compare."""
ROUNDING = 1 / 255 / 12**0.5
"""Root mean square of what 8 bits leave out: less detail than that is none."""
_STILL = 2 / 255
_FEW = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class SignaturePart:
    """One part of a signature."""

    value: float | None
    """As measured; None where there is nothing to measure."""
    floor: float | None
    """What another seed has, where one is given, else what a grey picture has; None of flicker."""
    ceiling: float
    """What a faithful copy has."""
    kept: float | None
    """Place of `value` between both, 0..1."""
    says: str
    """What was measured, in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survival:
    """All parts of a signature, and how they were compared; `asdict` of it is JSON."""

    parts: dict[str, SignaturePart]
    frames: int
    """Frames that were compared."""
    size: tuple[int, int]
    """Rows and columns at which they were."""
    floor: str
    """"another seed" or "grey"."""
    note: str = MEANING

    def with_note(self, more: str) -> "Survival":
        """Return the same with a sentence before the note; "" adds none."""
        return replace(self, note=f"{more} {self.note}") if more else self

    def text(self) -> str:
        """Format as lines for a reader."""
        rows, columns = self.size
        lines = [f"{self.frames} frames at {columns} x {rows}, 0 % is {self.floor}"]
        for name, part in self.parts.items():
            kept = "   -" if part.kept is None else f"{part.kept:4.0%}"
            lines.append(f"{name:8} {kept}  {part.says}")
        return "\n".join([*lines, self.note])

    def as_dict(self) -> dict:
        """Convert to what JSON holds."""
        return asdict(self)


def flicker(video: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor]:
    """Measure changes of brightness where the baseline stands still.

    Args:
        video, baseline: [B, 3, T, H, W] in 0..1, T at least 2; heights and widths may differ.

    Returns:
        Root mean square change of luma from frame to frame, in units of 0..255, of the video and
        of the baseline: two of [B]. NaN where less than a hundredth of the baseline stands still
        (moves luma by less than 2 of 255). Blur lowers it, so it is no headline.

    Source: after VBench's temporal flickering, on still pixels alone: ours.
    """
    one, other = (x.mean(dim=1).diff(dim=1) for x in pair(video, baseline))
    still = (other.abs() < _STILL).to(one.dtype)
    dims = (1, 2, 3)
    count = still.sum(dims)
    enough = count > _FEW * still[0].numel()

    def change(x: Tensor) -> Tensor:
        power = (x.square() * still).sum(dims) / count.clamp(min=1)
        return torch.where(enough, 255 * power.sqrt(), torch.nan)

    return change(one), change(other)


def _part(
    value: float | None, floor: float, ceiling: float, says: str, lowest: str = GREY
) -> SignaturePart:
    """Place a value between floor and ceiling.

    Args:
        lowest: what the floor is.
    """
    value, kept = None if value is None or value != value else value, None
    if value is not None and abs(ceiling - floor) > 1e-9:
        kept = min(max((value - floor) / (ceiling - floor), 0.0), 1.0)
    elif value is not None:
        says = f"{says}; {lowest} is as good as a copy here"
    return SignaturePart(value=value, floor=floor, ceiling=ceiling, kept=kept, says=says)


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times as much" if ratio <= MANY else f"over {MANY} times as much"


def compared_rates(rates: Sequence[float | None], lengths: Sequence[int]) -> str:
    """Say that frame rates of files differ, "" where they do not; frames are compared one by one.

    Args:
        rates: frames a second of each file; None: not known.
        lengths: frames of each file.

    Raises:
        ValueError: other rates and other lengths: frames of one number show other moments.
    """
    known = {f"{rate:g}" for rate in rates if rate is not None}
    if len(known) < 2:
        return ""
    said = " and ".join("?" if rate is None else f"{rate:g}" for rate in rates)
    if len(set(lengths)) > 1:
        raise ValueError(
            f"expected videos of one frame rate, got {said} frames a second with "
            f"{' and '.join(map(str, lengths))} frames; convert them to one rate and cut them to "
            "the same frames."
        )
    return f"The files have {said} frames a second: frames of the same number were compared."


def check_rows(rows: int) -> None:
    """Refuse a number of rows that nothing can be compared at; 0 is all of them."""
    if rows and rows < COARSEST:
        raise ValueError(f"rows must be 0, or at least {COARSEST}, got {rows}; use 480.")


def _small(video: Tensor, rows: int) -> Tensor:
    """Bring a video to at most `rows` along its shorter side."""
    share = min(1.0, rows / min(video.shape[-2:])) if rows else 1.0
    size = round(video.shape[-2] * share), round(video.shape[-1] * share)
    return video if size == tuple(video.shape[-2:]) else resize(video.float(), size, "area")


def survival(
    video: Tensor, reference: Tensor, other: Tensor | None = None, *, rows: int = 480
) -> Survival:
    """Compare one video with the one whose signature it should keep.

    Args:
        video: [1, 3, T, H, W] in 0..1, such as a refined video.
        reference: its preview, or the same seed in full resolution; height and width may differ,
            T by at most PADDING frames: the first that both have are compared.
        other: another seed of the reference, as the floor.
        rows: pixels along the shorter side at which all are compared, at most; 0 is all of the
            smaller video.

    Raises:
        ValueError: lengths that differ by more, rows of 1 to 7; see also
            `surf_core.signature.agreement.pair`.
    """
    check_rows(rows)
    given = [video, reference] if other is None else [video, reference, other]
    lengths = [len(x[0, 0]) for x in given]
    if max(lengths) - min(lengths) > PADDING:
        raise ValueError(
            f"expected videos of the same length, got {' and '.join(map(str, lengths))} frames; "
            "cut them to the same frames, at the same frame rate."
        )
    for name, one in zip(("reference", "other"), given[1:], strict=False):
        check_shape(video, one, name)
    video, reference, *others = (_small(x[:, :, : min(lengths)], rows) for x in given)
    video, reference = pair(video, reference)
    size = (int(video.shape[-2]), int(video.shape[-1]))
    grey = reference.mean(dim=(2, 3, 4), keepdim=True).expand_as(reference)
    floor = pair(others[0], reference)[0] if others else grey
    moves = video.shape[2] > 1

    def of(measure: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> float:
        return measure(x, reference).item()

    lowest = SEED if others else GREY

    def part(
        measure: Callable[[Tensor, Tensor], Tensor], ceiling: float, says: str
    ) -> SignaturePart:
        return _part(of(measure, video), of(measure, floor), ceiling, says, lowest)

    still = _part(None, 0.0, 0.0, "one frame")
    parts = {
        "layout": part(bands, 1.0, "what is where, at every scale (bands)"),
        "colour": part(colour_distance, 0.0, "distance of the colours' mean and spread"),
        "motion": part(motion, 1.0, _flow(video, reference)) if moves else still,
        "flicker": _flicker(video, reference) if moves else still,
        "detail": part(
            fine, 1.0,
            "the reference's own finest detail; the video has "
            + _times(of(sharpness, video)),
        ),
    }  # fmt: skip
    if finest(reference).item() < ROUNDING:
        parts["detail"] = replace(parts["detail"], kept=None, says=FLAT)
    return Survival(parts=parts, frames=min(lengths), size=size, floor=lowest)


def _flow(video: Tensor, reference: Tensor) -> str:
    """Say how much optical flow there is, and how it agrees."""
    error, mine, theirs = (x.item() for x in flow_lengths(video, reference))
    says = "what changes from frame to frame, where and when; "
    if not theirs:
        return f"{says}nothing in the reference moves{', but in the video' if mine else ''}"
    agreement = 1 - error / (mine + theirs)
    return f"{says}flow agrees to {agreement:.0%}, {_times(mine / theirs)}"


def _flicker(video: Tensor, reference: Tensor) -> SignaturePart:
    mine, own = (x.item() for x in flicker(video, reference))
    if mine != mine:
        return _part(None, 0.0, 0.0, "nothing stands still")
    says = f"{mine:.2f} of 255 where the reference, {own:.2f}, stands still"
    kept = 1.0 if mine <= own else own / mine
    return SignaturePart(value=mine, floor=None, ceiling=own, kept=kept, says=says)
