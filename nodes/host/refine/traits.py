"""Settings of a refinement; the training of a refiner fixes some of them."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ....surf_core.checks import check_range
from ....surf_core.window import segments
from ..conditioning import Conditioning
from ..node import NodeLog
from ..refiner import SIGMA_START_KEY, RefinerTraits, check_text

log = NodeLog(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineSettings:
    """How to sample, whatever the target size."""

    seed: int
    sigma_start: float
    """Share of noise at the start, in (0, 1], with time "t" from 0; a sigma, never a denoise."""
    steps: int
    """Euler steps, linear in sigma."""
    cfg: float
    window: int
    """Latent frames, >= 2; 0 = full attention."""
    low_band_lock: float
    """Share of the steps that keep the preview's low band, in 0..1."""
    colour_match: bool
    tile: int = 0
    """Pixels along the side of a tile; 0 = as large as fits."""
    time: str = "sigma"
    """As in `RefinerTraits`."""
    refine_audio: bool = False
    """Whether audio beside the video is noised and sampled with it; else it stays, bit for bit."""
    chunk_frames: int = 0
    """Pixel frames that the model sees at once; 0 = those that it was made for, if they fit."""

    def __post_init__(self):
        from_zero = self.time == "t"
        if not (0 < self.sigma_start <= 1 or (from_zero and self.sigma_start == 0)):
            raise ValueError(
                f"sigma_start must be above 0 and at most 1, got {self.sigma_start}; "
                "0.45 stays close to the preview, 0.8 invents more."
            )
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}; use about 10.")
        check_range(self.cfg, "cfg", 0.0, 100.0, "use 1 to 6")
        check_range(self.low_band_lock, "low_band_lock", 0.0, 1.0, "use 0 to switch it off")
        segments(1, self.window, False)

    def sigmas(self) -> Tensor:
        """Space [steps + 1] from `sigma_start`, or t = 1, to 0. Source: SURF Tab. R6 (shift 1)."""
        first = 1.0 if self.time == "t" else self.sigma_start
        return torch.linspace(first, 0.0, self.steps + 1)


def apply_traits(traits: RefinerTraits | None, settings: RefineSettings) -> RefineSettings:
    """Override the widgets with what a refiner was trained for, and log it."""
    if traits is None:
        return settings
    log.info("this refiner runs its own windows of %d; window is ignored.", traits.window)
    settings = replace(settings, window=0)
    if traits.sigma_start is None:
        return settings
    if traits.sigma_start_range is not None:
        least, greatest = traits.sigma_start_range
        check_range(
            settings.sigma_start,
            "sigma_start",
            least,
            greatest,
            f"this refiner was trained for these, best known at {traits.sigma_start}",
        )
        return replace(settings, time=traits.time)
    log.info(
        "this refiner was trained for sigma_start %s; the widget is ignored.", traits.sigma_start,
    )  # fmt: skip
    return replace(settings, time=traits.time, sigma_start=traits.sigma_start)


def with_sigma_start(traits: RefinerTraits, model: Any, settings: RefineSettings) -> Any:
    """Return a clone conditioned on sigma_start, where the refiner takes it."""
    if traits.sigma_start_range is None:
        return model
    clone = model.clone()
    options = clone.model_options.get("transformer_options", {})
    clone.model_options["transformer_options"] = {**options, SIGMA_START_KEY: settings.sigma_start}
    return clone


def check_prompts(traits: RefinerTraits | None, conds: dict[str, Conditioning], cfg: float) -> None:
    """Refuse conditioning that a refiner of ours would refuse, before the VAE works."""
    if traits is None:
        return
    for cond in conds.values() if cfg != 1 else [conds["positive"]]:
        for entry in cond:
            check_text(entry[0], traits.text_dim)
