"""The mask predictor's training task: predict the oracle's score from the upsampled preview.

Its metrics are reported next to those of `skip.detail`, which needs no training, on the same clips.

Dims: B samples, C latent channels, T latent frames, H, W latent cells; T, h, w tokens.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_range
from ..skip import MaskPredictor, PredictorConfig, detail, down_up, scores
from ..skip import predictor as files
from ..skip.oracle import LATENT
from .clip_source import ClipSource
from .sampler import BucketSampler
from .task import Batch, Task

log = logging.getLogger(__name__)

LEAST = 1e-3
"""Least calibrated threshold; a lower one would keep everything."""


@dataclass(frozen=True, kw_only=True)
class MaskTask(Task):
    """Regress the logarithm of the oracle's score of each token, with a SmoothL1 loss.

    Thresholds are chosen on one half of the held-out clips and evaluated on the other.

    Source: ours, after SkipSR.
    """

    clips: ClipSource
    """Training and held-out clips."""
    batch_size: int
    """Samples of a step, over all processes."""
    config: PredictorConfig = field(default_factory=PredictorConfig)
    """The network."""
    seed: int = 0
    """Seed of weights and order."""
    ratio: float = 4.0
    """Downscale per side of the oracle, the upscale of the refiner."""
    decode: Callable[[Tensor], Tensor] | None = None
    """Latents to pixels in -1..1, to score those; None scores the sharp latent itself."""
    cell: tuple[int, int] = LATENT
    """With decode: pixel frames and pixels a side of a latent cell."""
    tau: float = 3.0
    """Oracle score from which on a token must be refined: the positives of the metrics."""
    recall: float = 0.98
    """Share of the positives that the calibrated threshold keeps."""
    held_out_clips: int = 64
    """Most held-out clips during the run; at its end all of them are used."""
    sampler: BucketSampler = field(init=False, repr=False, compare=False)
    """Chooses the clips of a step."""

    def __post_init__(self) -> None:
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
        values = {name: getattr(self, name) for name in names}
        values["cell"] = list(self.cell)
        config = asdict(self.config)
        config["patch"] = list(self.config.patch)
        return values | {"config": config, "pixels": self.decode is not None}

    def build(self) -> nn.Module:
        model = MaskPredictor(self.config)
        model.initialise(torch.Generator().manual_seed(self.seed))
        return model

    def batch(self, step: int, rank: int, world: int) -> Batch:
        keys = self.sampler.at(step, rank, world).keys
        starts, targets = zip(*(self.sample(key) for key in keys), strict=True)
        return Batch(
            tensors={"start": torch.stack(starts), "scores": torch.stack(targets)}, keys=keys
        )

    def sample(self, key: str) -> tuple[Tensor, Tensor]:
        """Load the start [C, T, H, W] and compute the oracle's scores [T, h, w] of a clip."""
        clip = self.clips.load(key)
        sharp = clip.hr[None] if self.decode is None else self.decode(clip.hr[None])
        low = down_up(sharp, self.ratio)
        return clip.start, scores(sharp, low, patch=self.config.patch, cell=self.cell)[0]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        tensors = batch.tensors
        return F.smooth_l1_loss(model(tensors["start"]).float(), _log(tensors["scores"]))

    @torch.no_grad()
    def held_out(self, model: nn.Module) -> dict[str, float]:
        """Compute loss, correlation of logarithms, areas under the curve, recall, share at tau.

        `calibrated_...` use a threshold chosen on the other half of the clips, and `detail_...`
        the detail score on the same clips, with a threshold chosen in the same way. The calibration
        is the lower of the two thresholds, so that both halves reach the recall.
        """
        return self._evaluate(model, self.clips.held_out[: self.held_out_clips])[1]

    @torch.no_grad()
    def export(self, weights: dict[str, Tensor], path: Path, notes: dict) -> None:
        """Write the weights with their calibration, and the numbers of `held_out` in the notes."""
        model = MaskPredictor(self.config)
        model.load_state_dict({name: w.float().cpu() for name, w in weights.items()})
        factor, numbers = self._evaluate(model.eval(), self.clips.held_out)
        more = {"task": self.notes(), "judged": numbers}
        files.save(path, weights, self.config, factor, notes | more)

    def _evaluate(self, model: nn.Module, keys: tuple[str, ...]) -> tuple[float, dict[str, float]]:
        """Compute the calibration factor, and the numbers of `held_out`."""
        if len(keys) < 2:
            raise ValueError(
                f"expected at least 2 held-out clips, got {len(keys)}; keep more of them back."
            )
        device = next(model.parameters()).device
        halves = []
        for part in (keys[::2], keys[1::2]):
            rows = [self._all_scores(model, key, device) for key in part]
            halves.append([torch.cat(column) for column in zip(*rows, strict=True)])
        truth, raw, plain = (torch.cat(both) for both in zip(*halves, strict=True))
        positive = truth >= self.tau
        numbers = {
            "loss": F.smooth_l1_loss(_log(raw), _log(truth)).item(),
            "correlation": correlation(_log(raw), _log(truth)),
            "detail_correlation": correlation(_log(plain), _log(truth)),
            "auc": auc(raw, positive),
            "detail_auc": auc(plain, positive),
            "recall": share(raw >= self.tau, positive),
            "keep": share(raw >= self.tau),
            "oracle_keep": share(positive),
        }
        swapped = torch.cat([halves[1][0], halves[0][0]]) >= self.tau
        lowest = {}
        for column, name in ((1, "calibrated"), (2, "detail")):
            limits = [threshold(half[column], half[0] >= self.tau, self.recall) for half in halves]
            chosen = torch.cat([halves[1][column] >= limits[0], halves[0][column] >= limits[1]])
            numbers[f"{name}_recall"] = share(chosen, swapped)
            numbers[f"{name}_keep"] = share(chosen)
            lowest[name] = min(limits)
        factor = lowest["calibrated"] / self.tau
        return factor, numbers | {"calibration": factor, "clips": float(len(keys))}

    def _all_scores(self, model: nn.Module, key: str, device: torch.device) -> tuple[Tensor, ...]:
        """Score the tokens of a clip by oracle, model (not calibrated) and detail: flat tensors."""
        start, truth = self.sample(key)
        raw = (model(start[None].to(device)).float().cpu().exp() - files.FLOOR).clamp(min=0)
        return truth.flatten(), raw.flatten(), detail(start[None], self.config.patch).flatten()


def _log(scores: Tensor) -> Tensor:
    return (scores + files.FLOOR).log()


def correlation(one: Tensor, other: Tensor) -> float:
    """Compute Pearson's correlation, 0 where either tensor is constant."""
    one, other = (x.double() - x.double().mean() for x in (one, other))
    scale = one.norm() * other.norm()
    return (one @ other / scale).item() if scale > 0 else 0.0


def auc(scores: Tensor, positive: Tensor) -> float:
    """Compute the area under the ROC curve, ties count half; 0.5 without positives or negatives."""
    yes, no = scores[positive].double(), scores[~positive].double().sort().values
    if not len(yes) or not len(no):
        return 0.5
    below, upto = (torch.searchsorted(no, yes, right=right).double() for right in (False, True))
    return ((below + upto).mean() / (2 * len(no))).item()


def share(chosen: Tensor, among: Tensor | None = None) -> float:
    """Compute the share of the tokens, or of those `among`, that are chosen; 1 of none."""
    chosen = chosen if among is None else chosen[among]
    return chosen.double().mean().item() if len(chosen) else 1.0


def threshold(scores: Tensor, positive: Tensor, recall: float) -> float:
    """Find the greatest threshold that reaches a recall of the positive tokens."""
    ascending = scores[positive].sort().values
    if not len(ascending):
        log.warning("no held-out token must be refined: the threshold is not calibrated")
        return LEAST
    # The small number keeps 0.98 of 50 at 49, whatever the rounding of the product.
    missed = int((1 - recall) * len(ascending) + 1e-9)
    return max(ascending[missed].item(), LEAST)
