"""Leave tokens out of some batches, so that the refiner knows what skipping looks like.

Dims: B samples, C latent channels, T latent frames, H, W latent cells.
"""

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor

from ..resample import resize


@dataclass(frozen=True, kw_only=True, slots=True)
class Holes:
    """How often, and which tokens: those that hold the least that blurring would lose."""

    share: float = 0.5
    """Share of steps with holes. Source: ours, after SkipSR."""
    ratio: float = 4.0
    """How much smaller the clip is made, to see what is lost."""
    kept: float = 0.5
    """Share of the tokens that stay; a batch has one mask, for its most demanding sample."""

    def keep(self, hr: Tensor, patch: tuple[int, int, int]) -> Tensor:
        """Choose the tokens of a batch [B, C, T, H, W] that stay: [T', H', W'] bool, not none."""
        rows, columns = hr.shape[-2:]
        small = max(1, round(rows / self.ratio)), max(1, round(columns / self.ratio))
        lost = (hr - resize(resize(hr, small, "area"), (rows, columns), "bilinear")).square()
        p, q, r = patch
        scores = rearrange(
            lost, "b c (t p) (h q) (w r) -> b t h w (c p q r)", p=p, q=q, r=r
        ).mean(-1).amax(0)  # fmt: skip
        count = max(1, round(self.kept * scores.numel()))
        bar = scores.flatten().topk(count).values[-1]
        return scores >= bar
