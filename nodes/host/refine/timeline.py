"""The time of a video: how long a model sees at once, and where chunks of it lie.

Dims: T latent frames; F pixel frames.
"""

from functools import cached_property
from math import lcm
from typing import Any

from torch import Tensor

from ....surf_core.chunks import Chunk, chunks
from ....surf_core.cuts import scene_cuts
from ....surf_core.tiny.model import CLIP
from ..audio_length import FRAMES_PER_TOKEN, pixel_frames
from ..node import NodeLog
from ..refiner import TinyFormat

log = NodeLog(__name__)

OVERLAP = 7
"""Latent frames that neighbours share, as the host's context windows of Wan do: 30 frames."""
MADE_FOR = {
    "MiniMaxH3": 362, "LTXAV": 481, "LTXV": 257, "HunyuanVideo15": 121, "HunyuanVideo": 129,
    "WAN22": 121, "WAN22_S2V": 77, "WAN22_Animate": 77, "WAN21": 81, "SurfRefinerModel": 81,
}  # fmt: skip
"""The host's models -> the frames that they were made for. MiniMax H3's are in the tooltip of its
nodes, LTX-2's are the 20 seconds of its positions (max_pos of its network) at 24 a second; those of
Wan and HunyuanVideo 1.5 are in the host's templates or the defaults of its nodes. LTX-Video's are
below 257 by its model card, and HunyuanVideo's are the 129 of its maker's examples. Models that
derive from one inherit its number: ours. Refiners of ours are trained on clips of 81."""
RATES = {"LTXAV": 8, "LTXV": 8, "GenmoMochi": 6}
"""Pixel frames of a latent frame after the first, where they are not 4."""


class Timeline:
    """The latent frames of a video, and how a model takes them."""

    def __init__(self, model: Any, frames: int, window: int = 0, preview: Tensor | None = None):
        """Read from a MODEL how long it may see.

        Args:
            frames: T of the video; 1 of an image.
            window: latent frames of an attention window; chunks start where windows do, if that
                makes few more of them.
            preview: [B, C, T, h, w], clean, where scenes are looked for.
        """
        kinds = [kind.__name__ for kind in type(model.model).__mro__]
        space = model.get_model_object("latent_format")
        self.frames, self.window, self.preview = frames, window, preview
        self._known: dict[tuple[int, int], list[Chunk]] = {}
        self.repeats = "MiniMaxH3" in kinds
        """Whether every fifth latent frame stands for one frame, as the first does."""
        self.rate = next((RATES[kind] for kind in kinds if kind in RATES), 4)
        pixels = next((MADE_FOR[kind] for kind in kinds if kind in MADE_FOR), None)
        pixels = CLIP if isinstance(space, TinyFormat) else pixels
        self.made_for = pixels and self.latent_frames(pixels + 1) - 1
        """Latent frames that the model was made for; None where nobody knows."""
        self.lead = int(self.rate > 1 and not self.repeats)
        """A causal VAE's first latent frame stands for one frame, and a model takes the first one
        that it sees for that: what it makes of it is thrown away."""

    def pixels(self, frames: int) -> int:
        """Count the pixel frames of so many latent frames from the first."""
        return pixel_frames(frames) if self.repeats else 1 + (frames - 1) * self.rate

    def latent_frames(self, pixels: int) -> int:
        """Count the latent frames that hold so many pixel frames."""
        frames = 1
        while self.pixels(frames) < pixels:
            frames += 1
        return frames

    def is_length(self, frames: int) -> bool:
        """Say whether a video may have so many latent frames: MiniMax H3's are 5 k + 2."""
        return not self.repeats or frames % self._period == 2

    @property
    def least(self) -> int:
        """Latent frames of a chunk at least: two overlaps, and a window."""
        return max(2 * (self.lead + 2), 2 + self._period, self.window)

    @property
    def limit(self) -> int:
        """Latent frames of a chunk at most, as long as nobody asks for more."""
        return self.frames if self.made_for is None else min(self.frames, self.made_for)

    @property
    def shortest(self) -> int:
        """Latent frames of the shortest chunk that is taken, by hand or to save memory."""
        return min(self.least, self.limit)

    @property
    def _period(self) -> int:
        return len(FRAMES_PER_TOKEN) if self.repeats else 1

    @cached_property
    def cuts(self) -> list[int]:
        """Frames of the preview at which a scene begins."""
        if self.preview is None or self.preview.ndim != 5:
            return []
        cuts = scene_cuts(self.preview)
        if cuts:
            log.info("scenes begin at frames %s.", [self.pixels(cut) for cut in cuts])
        return cuts

    def overlap(self, most: int) -> int:
        """Return the latent frames that chunks of a length share: fewer in short ones."""
        return min(OVERLAP, most // 2, most - self._period)

    def chunks(self, frames: int, most: int) -> list[Chunk]:
        """Cut a video of `frames` into chunks of `most` at most.

        The host hands a model fewer frames than the video's under prompts for a part of it, and
        under context windows of its own; where scenes begin is then unknown.
        """
        if (frames, most) not in self._known:
            self._known[frames, most] = self._cut(frames, most)
        return self._known[frames, most]

    def _cut(self, frames: int, most: int) -> list[Chunk]:
        if most >= min(frames, self.frames):
            return [Chunk(0, frames)]
        overlap, multiple = self.overlap(most), lcm(self._period, self.window or 1)
        if 2 * multiple > most - overlap:
            multiple = self._period
        return chunks(
            frames, most, overlap, lead=self.lead, multiple=multiple,
            cuts=self.cuts if frames == self.frames else (),
        )  # fmt: skip

    def computed(self, most: int) -> int:
        """Count the latent frames that are computed in all."""
        return sum(chunk.length for chunk in self.chunks(self.frames, most))

    def longest(self, frames: int, most: int) -> int:
        """Return the latent frames of the longest chunk."""
        return max(chunk.length for chunk in self.chunks(frames, most))

    def by_hand(self, chunk_frames: int) -> int:
        """Return the latent frames that hold so many pixel frames.

        Raises:
            ValueError: fewer than a chunk must have.
        """
        if chunk_frames >= self.pixels(self.frames):
            return self.frames
        most = self.latent_frames(chunk_frames)
        if most < self.shortest:
            least = self.pixels(self.shortest)
            raise ValueError(
                f"a chunk must hold {self._held()}, {least} frames, got {chunk_frames=}; use "
                f"{least} or more, or 0 for automatic."
            )
        return most

    def _held(self) -> str:
        """Say what the shortest chunk must hold."""
        if self.least > self.limit:
            short = self.limit == self.frames
            return "all of so short a video" if short else "what the model was made for"
        inside = f"a window of {self.window} latent frames and " if self.window > 1 else ""
        return f"{inside}two overlaps"

    def sound(self, chunk: Chunk, frames: int, count: int) -> slice:
        """Return the audio latents of a chunk, of `count` for `frames`.

        A chunk's first latent frame is to the model one pixel frame, at time 0.
        """
        before = pixel_frames(chunk.start) if self.repeats else chunk.start * self.rate
        share = count / self.pixels(frames)
        return slice(round(before * share), round(self.pixels(chunk.stop) * share))
