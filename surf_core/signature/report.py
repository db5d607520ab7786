"""All measures of agreement at once, and the controls that every table of them needs.

Tried, and no headline: the root mean square difference of 16x16 area means (grey wins), Canny
edges matched within a pixel (another seed .73, shift by 4 pixels .87), SSIM averaged plainly (grey
.36 above another seed .19) or weighted (`structure`: blur of a misplaced video helps, as it does
with correlation and concordance of bands), `flow` (half the contrast and inverted colours reach
1), `sharpness` and the flow's magnitude (noise and another seed reach 1), `place_error` (mild blur
moves no centre).

The headlines see no mean: a tint is seen by `colour_distance`, brightness that pulses with time by
`flicker`, both in `survival`.

Dims: B batch, T frames, N colours.
"""

from dataclasses import dataclass
from math import isnan

from torch import Tensor

from ..resample import resize
from .agreement import bands, edges, fine, sharpness, structure
from .motion import flow, motion
from .named import named_iou, place_error

HEADLINE = ("bands", "fine", "edges", "motion", "iou")
"""Measures that no blur, absence, noise or other place wins; 1 is best. Still pictures have no
motion, and only toys have iou."""


def scores(video: Tensor, baseline: Tensor, palette: Tensor | None = None) -> dict[str, Tensor]:
    """Compute every measure of each video: name -> [B], those of HEADLINE first.

    Args:
        video, baseline: [B, 3, T, H, W] in 0..1, the baseline of the same seed; both are brought
            to the smaller of their sizes, so that a preview is compared at its own.
        palette: [N, 3], colours of the things, for toys; adds iou and place.

    Raises:
        ValueError: see `surf_core.signature.agreement.pair`.
    """
    found = {
        "bands": bands(video, baseline),
        "fine": fine(video, baseline),
        "edges": edges(video, baseline),
    }
    magnitude = {}
    if video.shape[2] > 1:
        found["motion"] = motion(video, baseline)
        found["flow"], magnitude["magnitude"] = flow(video, baseline)
    if palette is not None:
        found["iou"] = named_iou(video, baseline, palette)
    found["structure"] = structure(video, baseline)
    found |= {"sharpness": sharpness(video, baseline), **magnitude}
    if palette is not None:
        found["place"] = place_error(video, baseline, palette)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class SignatureReport:
    """Agreement of a batch of videos with their baselines, averaged; `asdict` of it is JSON."""

    bands: float
    """Likeness of all octaves."""
    fine: float
    """Of the finest octave: the baseline's own detail."""
    edges: float
    """Of the gradients."""
    motion: float | None
    """Of the changes from frame to frame; None of still pictures."""
    flow: float | None
    """1 - end-point error over the lengths of both flows; None of still pictures."""
    iou: float | None
    """Of the pixels of named colours; None without a palette."""
    structure: float
    """SSIM where there is structure; beside the others, blur can raise it."""
    sharpness: float
    """Power of the finest octave over the baseline's; beside `fine` only."""
    magnitude: float | None
    """Motion over the baseline's; beside `flow` only."""
    place: float | None
    """Place error of named colours, percent; None without a palette, or if none is seen."""


def report(video: Tensor, baseline: Tensor, palette: Tensor | None = None) -> SignatureReport:
    """Average `scores` over the videos; place over those whose baseline shows a colour."""
    means = {name: x.nanmean().item() for name, x in scores(video, baseline, palette).items()}
    found = {name: mean for name, mean in means.items() if not isnan(mean)}
    return SignatureReport(
        bands=found["bands"],
        fine=found["fine"],
        edges=found["edges"],
        motion=found.get("motion"),
        flow=found.get("flow"),
        iou=found.get("iou"),
        structure=found["structure"],
        sharpness=found["sharpness"],
        magnitude=found.get("magnitude"),
        place=found.get("place"),
    )


def controls(
    baseline: Tensor, other: Tensor, size: tuple[int, int], palette: Tensor | None = None
) -> dict[str, dict[str, Tensor]]:
    """Score what any table must be read against.

    Args:
        baseline: [B, 3, T, H, W] in 0..1.
        other: the same of another seed, same prompts.
        size: rows and columns of the previews.
        palette: see `scores`.

    Returns:
        name -> `scores`: "grey", each baseline's mean colour and nothing else; "another seed";
        "a perfect small copy", the baseline averaged down: 1 in every headline measure by
        construction, what a row could reach.
    """
    mean = baseline.float().mean(dim=(2, 3, 4), keepdim=True).expand_as(baseline)
    shown = {"grey": mean, "another seed": other, "a perfect small copy": baseline}
    return {
        name: scores(resize(video.float(), size, "area"), baseline, palette)
        for name, video in shown.items()
    }
