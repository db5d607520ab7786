"""The mask predictor's task: from the enlarged preview to what refining would add to each token.

What it learns is always told beside what `skip.detail` knows without learning, on the same clips.

Dims: B samples, C latent channels, T latent frames, H, W latent cells; T, h, w tokens.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_range
from ..resample import resize
from ..skip import MaskPredictor, PredictorConfig, detail, down_up, scores
from ..skip import predictor as files
from ..skip.oracle import LATENT
from .sampler import BucketSampler
from .task import Batch, Task

log = logging.getLogger(__name__)

LEAST = 1e-3
"""No threshold is calibrated below this score: it would keep everything."""


class Clip(Protocol):
    """A clip as prepared, see `data.Sample`."""

    hr: Tensor
    lr: Tensor
    start: Tensor | None


class Clips(Protocol):
    """Prepared clips, see `data.Shards`."""

    held_out: tuple[str, ...]

    def buckets(self) -> Mapping[str, str]: ...

    def load(self, key: str) -> Clip: ...


@dataclass(frozen=True, kw_only=True)
class MaskTask(Task):
    """Regress the logarithm of the oracle's score, SmoothL1, token by token.

    The threshold that a half of the held-out clips chooses is judged on the other half.

    Source: ours, after SkipSR.
    """

    clips: Clips
    """What to learn from."""
    batch_size: int
    """Samples of a step, over all processes."""
    config: PredictorConfig = field(default_factory=PredictorConfig)
    """The network."""
    seed: int = 0
    """Of weights and order."""
    ratio: float = 4.0
    """How much smaller a clip is made to see what is lost: the upscale of the refiner."""
    decode: Callable[[Tensor], Tensor] | None = None
    """Latents to pixels in -1..1, to score those; None scores the sharp latent itself."""
    cell: tuple[int, int] = LATENT
    """With decode: pixel frames and pixels a side of a latent cell."""
    tau: float = 3.0
    """Tokens that score as much must be refined: what is calibrated for, and counted."""
    recall: float = 0.98
    """Share of them that the calibrated threshold finds."""
    held_out_clips: int = 64
    """Clips kept back that are looked at during the run, at most; at its end all of them."""

    def __post_init__(self):
        check_range(self.tau, "tau", LEAST, 255.0, "use 3")
        check_range(self.recall, "recall", 0.5, 1.0, "use 0.98")
        if self.batch_size < 1 or self.held_out_clips < 2:
            raise ValueError(
                f"expected a batch of at least 1 and at least 2 held-out clips, got "
                f"{self.batch_size=}, {self.held_out_clips=}."
            )
        sampler = BucketSampler(self.clips.buckets(), self.batch_size, self.seed)
        object.__setattr__(self, "sampler", sampler)

    def notes(self) -> dict:
        names = ("batch_size", "seed", "ratio", "cell", "tau", "recall")
        kept = {name: getattr(self, name) for name in names}
        kept["cell"] = list(self.cell)
        config = asdict(self.config)
        config["patch"] = list(self.config.patch)
        return kept | {"config": config, "pixels": self.decode is not None}

    def build(self) -> nn.Module:
        model = MaskPredictor(self.config)
        model.initialise(torch.Generator().manual_seed(self.seed))
        return model

    def batch(self, step: int, rank: int, world: int) -> Batch:
        keys = self.sampler.at(step, rank, world).keys
        starts, found = zip(*(self.sample(key) for key in keys), strict=True)
        return Batch(
            tensors={"start": torch.stack(starts), "scores": torch.stack(found)}, keys=keys
        )

    def sample(self, key: str) -> tuple[Tensor, Tensor]:
        """Start latent [C, T, H, W] and the oracle's scores [T, h, w] of a clip."""
        clip = self.clips.load(key)
        start = clip.start
        if start is None:
            start = resize(clip.lr[None], tuple(clip.hr.shape[-2:]), "bilinear")[0]
        sharp = clip.hr[None] if self.decode is None else self.decode(clip.hr[None])
        low = down_up(sharp, self.ratio)
        return start, scores(sharp, low, patch=self.config.patch, cell=self.cell)[0]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        given = batch.tensors
        return F.smooth_l1_loss(model(given["start"]).float(), _log(given["scores"]))

    @torch.no_grad()
    def held_out(self, model: nn.Module) -> dict[str, float]:
        """Loss, correlation of logarithms, areas under the curve, recall and share at tau.

        `calibrated_...` are of a threshold that the other half of the clips chose, and `detail_...`
        of the detail score on the same clips, its threshold chosen alike. The calibration is the
        lower of the two thresholds, so that the recall holds on either half.
        """
        return self._judge(model, self.clips.held_out[: self.held_out_clips])[1]

    @torch.no_grad()
    def export(self, weights: dict[str, Tensor], path: Path, notes: dict) -> None:
        """Write the weights with their calibration, and the numbers of `held_out` in the notes."""
        model = MaskPredictor(self.config)
        model.load_state_dict({name: w.float().cpu() for name, w in weights.items()})
        factor, numbers = self._judge(model.eval(), self.clips.held_out)
        more = {"task": self.notes(), "judged": numbers}
        files.save(path, weights, self.config, factor, notes | more)

    def _judge(self, model: nn.Module, keys: tuple[str, ...]) -> tuple[float, dict[str, float]]:
        """The calibration factor, and the numbers of `held_out`."""
        if len(keys) < 2:
            raise ValueError(
                f"expected at least 2 held-out clips, got {len(keys)}; keep more of them back."
            )
        device = next(model.parameters()).device
        halves = []
        for part in (keys[::2], keys[1::2]):
            rows = [self._seen(model, key, device) for key in part]
            halves.append([torch.cat(column) for column in zip(*rows, strict=True)])
        truth, raw, plain = (torch.cat(both) for both in zip(*halves, strict=True))
        must = truth >= self.tau
        numbers = {
            "loss": F.smooth_l1_loss(_log(raw), _log(truth)).item(),
            "correlation": correlation(_log(raw), _log(truth)),
            "detail_correlation": correlation(_log(plain), _log(truth)),
            "auc": auc(raw, must),
            "detail_auc": auc(plain, must),
            "recall": share(raw >= self.tau, must),
            "keep": share(raw >= self.tau),
            "oracle_keep": share(must),
        }
        swapped = torch.cat([halves[1][0], halves[0][0]]) >= self.tau
        lowest = {}
        for column, name in ((1, "calibrated"), (2, "detail")):
            bars = [threshold(half[column], half[0] >= self.tau, self.recall) for half in halves]
            chosen = torch.cat([halves[1][column] >= bars[0], halves[0][column] >= bars[1]])
            numbers[f"{name}_recall"] = share(chosen, swapped)
            numbers[f"{name}_keep"] = share(chosen)
            lowest[name] = min(bars)
        factor = lowest["calibrated"] / self.tau
        return factor, numbers | {"calibration": factor, "clips": float(len(keys))}

    def _seen(self, model: nn.Module, key: str, device: torch.device) -> tuple[Tensor, ...]:
        """Flat scores of a clip: of the oracle, the model (not calibrated), the detail."""
        start, truth = self.sample(key)
        raw = (model(start[None].to(device)).float().cpu().exp() - files.FLOOR).clamp(min=0)
        return truth.flatten(), raw.flatten(), detail(start[None], self.config.patch).flatten()


def _log(found: Tensor) -> Tensor:
    return (found + files.FLOOR).log()


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's, 0 where either does not vary."""
    one, other = (x.double() - x.double().mean() for x in (one, other))
    scale = one.norm() * other.norm()
    return (one @ other / scale).item() if scale > 0 else 0.0


def auc(found: Tensor, must: Tensor) -> float:
    """Chance that a token of `must` scores above one that is not, ties half; 0.5 without either."""
    yes, no = found[must].double(), found[~must].double().sort().values
    if not len(yes) or not len(no):
        return 0.5
    below, upto = (torch.searchsorted(no, yes, right=right).double() for right in (False, True))
    return ((below + upto).mean() / (2 * len(no))).item()


def share(chosen: Tensor, among: Tensor | None = None) -> float:
    """Share of the tokens, or of those `among`, that are chosen; 1 of none."""
    chosen = chosen if among is None else chosen[among]
    return chosen.double().mean().item() if len(chosen) else 1.0


def threshold(found: Tensor, must: Tensor, recall: float) -> float:
    """The greatest score from which on `recall` of the tokens of `must` are found."""
    wanted = found[must].sort().values
    if not len(wanted):
        log.warning("no held-out token must be refined: the threshold is not calibrated")
        return LEAST
    # The small number keeps 0.98 of 50 at 49, whatever the rounding of the product.
    missed = int((1 - recall) * len(wanted) + 1e-9)
    return max(wanted[missed].item(), LEAST)
