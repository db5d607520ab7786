"""One call of a diffusion model: where its video tokens lie, and which block attends.

Dims: T latent frames.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from ....surf_core.skip import Packing
from ....surf_core.window import token_bounds

SKIPPED = "stg_skip_self_attn"
"""Option of the host under which a block of LTX-2 makes no self-attention over the video."""


@dataclass(kw_only=True, slots=True)
class ModelCall:
    """One call of a diffusion model: its grid, and the block that attends."""

    frames: int
    """Latent frames, and frames of tokens: the patch is 1 in time."""
    per_frame: int
    """Video tokens of one frame."""
    find_video: Callable[[int], int | None]
    """Length of a sequence -> its first video token; None if no block has such a sequence."""
    before: int = 0
    """Tokens of pictures ahead of the video's; of Wan and HunyuanVideo only."""
    length: int = 0
    """Tokens of the whole sequence, skipped ones included; of Wan only."""
    packing: Packing | None = None
    """The video tokens that a mask refines, on the CPU; None for all of them."""
    first_alone: bool = False
    """Whether of a block's attentions the first alone may be that of the video; of LTX-2, whose
    audio or text may have as many tokens."""
    numbered: bool = True
    """Whether the host tells an attention the number of its block; else `number_blocks` does."""
    cross_lengths: frozenset[int] = frozenset()
    """Lengths of the sequences that a block cross-attends to, in case one equals its own."""
    text_last: bool = False
    """Whether a joint sequence ends with the text; else it begins with it."""
    single_after: int = 0
    """Blocks that come before the single-stream ones."""
    control_order: dict[int, int] = field(default_factory=dict)
    """Block -> index of the control block (VACE) that runs after it under the same number."""
    block: tuple[str, int] | None = None
    """Kind and number of the block that attended last."""
    cross_is_next: bool = False
    self_attentions: int = 0
    """Self-attentions over the video so far."""
    longer: set[int] = field(default_factory=set)
    """Lengths of sequences too long to be the video's."""

    def self_attention_depth(self, queries: int, keys: int, options: dict) -> int | None:
        """Return the index of the block whose self-attention this is; None for any other attention.

        Args:
            queries, keys: tokens of both sides.
            options: the host's transformer_options, with the number of the block.

        Raises:
            ValueError: the host does not number its blocks.
        """
        if queries != keys:
            return None
        if self.find_video(queries) is None:
            if queries > self.frames * self.per_frame:
                self.longer.add(queries)
            return None
        block = options.get("block_type", "double"), options.get("block_index")
        if block[1] is None:
            raise ValueError(
                f"windowed attention needs a host that numbers its blocks (ComfyUI "
                f"0.8.0 or later), got {sorted(options)}; update it, or set window to 0."
            )
        again = block == self.block
        if self.first_alone and (again or options.get(SKIPPED)):
            return None
        if queries in self.cross_lengths:
            # Same length on both sides: a block attends to itself first, then to the text.
            self.cross_is_next = not (again and self.cross_is_next)
            if not self.cross_is_next:
                return None
        self.block = block
        self.self_attentions += 1
        if again:
            return self.control_order.get(block[1], block[1])
        return block[1] + (self.single_after if block[0] == "single" else 0)

    def token_ranges(self, first: int, cuts: list[tuple[int, int]]) -> list[slice]:
        """Return the tokens of a sequence that belong to each range of frames; no empty ones.

        Args:
            first: the first video token.
            cuts: ranges of latent frames, in order.
        """
        counts = self.per_frame if self.packing is None else self.packing.counts
        bounds = token_bounds(counts, cuts)
        return [slice(first + start, first + stop) for start, stop in bounds if stop > start]

    def check_windowed(self) -> None:
        """Refuse to go on when every sequence was longer than expected.

        Raises:
            ValueError: no self-attention over the video, yet one over more tokens.
        """
        if self.longer and not self.self_attentions:
            raise ValueError(
                f"expected self-attention over {self.frames} frames of "
                f"{self.per_frame} tokens, got {sorted(self.longer)} tokens; another node adds "
                "tokens to this model: set window to 0."
            )
