"""Which card would each refiner fit, by what can be counted without one?

    python -m benchmarks.cost.card_memory

Weights, latents and activations of one step, from `surf_core.cost`; benchmarks/cost/block_memory.py
holds its activations against live tensors. With a GPU, `python -m benchmarks.on_gpu cards` has the
allocator's own figures, under a limit of the size of a card.
"""

from collections.abc import Iterator

from benchmarks.page import publish_counted
from benchmarks.speed.host.tables import table
from benchmarks.speed.host_flow import SIDES
from surf_core import cost

SIZES = ("720p", "1080p", "4k")
MODELS = {"surf_1b": cost.SURF_1B, "wan_1_3b": cost.WAN_1_3B}
FRAMES, WINDOW, ITEM = 81, 4, 2
LATENTS = 8
"""In float32, of the whole picture: the start and its noise, what is sampled, the estimates with
and without the prompt, their mix, the difference of the sampler, and one to be put together."""
CARDS = (8, 12, 16, 24, 32, 48, 80)
RESERVED = 1.5
"""GiB that are left to the driver, to the host, and to what kernels need inside: an assumption."""
WAYS = {"whole": (False, None), "segment-wise": (True, None),
        "segment-wise, tiles of 720p": (True, "720p")}  # fmt: skip
"""Name -> whether a block takes one window after the other, size of a tile."""
LEGEND = f"""COUNTED, not measured: bytes that one step must hold, by `surf_core.cost`, of the
networks of `surf_core` in bf16, 81 frames, windows of 4, without guidance or with its two runs one
after the other. `whole` and `segment-wise` are how a block goes over the windows; tiles are blended
where they overlap. {LATENTS} latents are kept in float32. The smallest card is the first of
{", ".join(map(str, CARDS))} GiB that is left with {RESERVED:g} GiB beside the sum, for the driver,
the host and the inside of kernels: an assumption. The host's own Wan runs whole. The VAE is not in
it, nor the base model, which the host moves away."""


def gib(count: float) -> float:
    return float(f"{count / 2**30:.4g}")


def rows() -> Iterator[list]:
    """Yield one plan each."""
    for size in SIZES:
        for name, shape in MODELS.items():
            for way, (segmentwise, tile) in WAYS.items():
                if tile == size:
                    continue
                yield [size, name, way, *figures(shape, SIDES[size], segmentwise, tile)]


def figures(shape: cost.ModelShape, side, segmentwise: bool, tile: str | None) -> list:
    """GiB of weights, latents, activations and their sum; the smallest card."""
    weights = cost.weight_bytes(shape, ITEM)
    cells = cost.latent_frames(shape, FRAMES) * side[0] * side[1] / shape.cell_pixels**2
    latents = LATENTS * shape.latent_channels * cells * 4
    taken = SIDES[tile] if tile else side
    activations = cost.activation_bytes(
        shape, FRAMES, *taken, WINDOW, itemsize=ITEM, segmentwise=segmentwise
    )
    whole = weights + latents + activations
    fits = [card for card in CARDS if card >= whole / 2**30 + RESERVED]
    return [*map(gib, (weights, latents, activations, whole)), fits[0] if fits else "none of these"]


def page() -> list[str]:
    """The page but its last line."""
    columns = ("size | refiner | blocks | weights, GiB | latents, GiB | activations, GiB "
               "| sum, GiB | smallest card, GiB")  # fmt: skip
    return [
        "# The refiner's memory, and the smallest card: counted", "",
        "    python -m benchmarks.cost.card_memory", "", LEGEND, "", *table(columns, rows()),
    ]  # fmt: skip


if __name__ == "__main__":
    publish_counted(__doc__, page)
