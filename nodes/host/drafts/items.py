"""Take the items of a batch apart, each as if it came alone; and make several of one start.

The host numbers items in `batch_index` and draws the noise of an item alone by its number, so that
it equals that of the batch. Drafts always carry the number.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ....surf_core.checks import check_choice
from ..draft_record import FORMAT, SEED, check_made_of, maker, record_of, with_record
from ..latents import check_channels, check_companions, is_blank
from ..nested import Parts, join_mask, split, split_mask

ONE_BY_ONE, BATCH = "one by one", "as a batch"
HOW = (ONE_BY_ONE, BATCH)
"""How a sampler makes several drafts; a saved workflow knows these names."""
INDEX = "batch_index"


def start_drafts(latent: dict, count: int, how: str) -> list[dict]:
    """Repeat a start LATENT.

    Args:
        latent: plain, or of video and audio; each of its items is repeated. Not changed.
        count: drafts of each item.
        how: one of HOW.

    Returns:
        LATENTs of one item each, numbered in `batch_index`; or one LATENT of them all.

    Raises:
        ValueError: no usable latent, or a batch of video with audio.
    """
    check_choice(how, "how", HOW)
    parts = split(latent.get("samples"), "latent")
    check_companions(latent, parts.video, "latent")
    own = latent.get(INDEX)
    own = [*range(len(parts.video))] if own is None else [int(number) for number in own]
    apart = max(own) - min(own) + 1
    numbers = [number + turn * apart for turn in range(count) for number in own]
    if how == ONE_BY_ONE:
        ones = drafts_of(latent) * count
        return [{**one, INDEX: [number]} for one, number in zip(ones, numbers, strict=True)]
    if parts.audio is not None:
        raise ValueError(
            "expected a latent without audio to make drafts as a batch, got video and audio "
            f"{parts.shapes}, whose noise the host draws otherwise in a batch than for an item "
            f"alone; set how to {ONE_BY_ONE!r}."
        )
    video = parts.video.repeat(count, *[1] * (parts.video.ndim - 1))
    return [{**latent, "samples": video, INDEX: numbers}]


def flatten(latents: Sequence[dict], name: str = "drafts") -> list[dict]:
    """List the items of all LATENTs, each a LATENT of its own."""
    return [item for latent in latents for item in drafts_of(latent, name)]


def drafts_of(latent: dict, name: str = "latent") -> list[dict]:
    """List the items of a LATENT as if they came alone; tensors share its memory.

    Raises:
        ValueError: no usable latent, or a batch_index or a noise mask that cannot be its own.
    """
    parts = split(latent.get("samples"), name)
    check_companions(latent, parts.video, name)
    return [_item(latent, parts, place) for place in range(len(parts.video))]


def _item(latent: dict, parts: Parts, place: int) -> dict:
    one = Parts(*(part[place : place + 1] for part in parts.tensors))
    out = {**latent, "samples": one.joined()}
    mask, number = latent.get("noise_mask"), latent.get(INDEX)
    if mask is not None:
        masks = split_mask(mask)
        video = _item_mask(masks[0], parts.video, place)
        if masks[1] is None:
            out["noise_mask"] = video
        else:
            audio = _item_mask(masks[1], parts.audio, place)
            out["noise_mask"] = join_mask(video, audio, one)
    if number is not None or len(parts.video) > 1:
        out[INDEX] = [place if number is None else int(number[place])]
    return out


def _item_mask(mask: Tensor | None, part: Tensor | None, place: int) -> Tensor | None:
    """Take an item's noise mask; of a video, axes before [T, H, W] count, else before [H, W].

    The host repeats masks that are fewer than the items.
    """
    if mask is None or part is None or mask.ndim < (5 if part.ndim == 5 else 3) or len(mask) == 1:
        return mask
    place %= len(mask)
    return mask[place : place + 1]


def choose(drafts: list[dict], index: int, seeds: list[int], model: Any = None) -> dict:
    """Take one of the drafts.

    Args:
        drafts: LATENTs of one item each.
        index: its number, from 1.
        seeds: one for all drafts, or one for each; [] for what the drafts say themselves.
        model: the MODEL that made them; None for what the drafts say themselves.

    Raises:
        ValueError: no such draft, other numbers of seeds, a seed that is not the draft's own, or
            drafts that this MODEL did not make.
    """
    if not drafts:
        raise ValueError(
            "expected at least one draft, got none; connect the latent of a sampler to drafts."
        )
    if index > len(drafts):
        raise ValueError(
            f"index must be at most the number of drafts, {len(drafts)}, got {index}; choose "
            f"{'1' if len(drafts) == 1 else f'one from 1 to {len(drafts)}'}, or make more drafts."
        )
    if len(seeds) not in (0, 1, len(drafts)):
        raise ValueError(
            f"expected one seed for all drafts, or one for each of the {len(drafts)}, got "
            f"{len(seeds)}; connect what the seed of their sampler comes from."
        )
    draft = drafts[index - 1]
    if model is not None:
        for each in drafts:
            _check_maker(model, each, "drafts")
        # What a draft says of itself stays.
        draft = with_record(draft, **(maker(model) | record_of(draft)))
    return _with_seed(draft, seeds[min(index, len(seeds)) - 1]) if seeds else draft


def _with_seed(draft: dict, seed: int) -> dict:
    """Write a seed into a draft that does not say its own."""
    own = record_of(draft).get(SEED)
    if own not in (None, seed):
        raise ValueError(
            f"expected the seed that made the draft, {own}, got {seed}; connect the seed of its "
            "sampler, or nothing: the draft says its own."
        )
    return with_record(draft, **{SEED: seed})


def _check_maker(model: Any, draft: dict, name: str) -> None:
    """Refuse a draft that a MODEL cannot have made: by its record, then by its shape."""
    check_made_of(model, draft, name)
    check_channels(model, draft["samples"], name)


def made_again(draft: dict, start: dict, model: Any = None) -> tuple[dict, int]:
    """Return what a sampler needs to make a draft again.

    Args:
        draft: LATENT of one item.
        start: LATENT that its sampler started from: one item, or the batch that it was of.
        model: the MODEL that will make it again; None: not known.

    Returns:
        The start LATENT of one item, with the draft's number and kind of latents; and the seed.

    Raises:
        ValueError: several drafts, one that does not say its seed, a start without it, or a draft
            of another kind of latents than the MODEL or the start.
    """
    items = drafts_of(draft, "draft")
    if len(items) > 1:
        raise ValueError(f"expected one draft, got {len(items)}; choose one with Surf Drafts.")
    seed, number = record_of(draft).get(SEED), items[0].get(INDEX)
    if seed is None:
        raise ValueError(
            "expected a draft that says its seed, got one without, of another sampler than Surf "
            "Reshift KSampler; connect to seed of Surf Drafts what the sampler's seed comes from."
        )
    if model is not None:
        _check_maker(model, items[0], "draft")
    starts = drafts_of(start, "start")
    _check_start(items[0], starts[0])
    return _of_kind(_numbered(starts, number), draft), seed


def _of_kind(start: dict, draft: dict) -> dict:
    """Write a draft's kind of latents into its start, for the sampler that takes it."""
    kind = record_of(draft).get(FORMAT)
    return start if kind is None else with_record(start, **{FORMAT: kind})


def _check_start(draft: dict, start: dict) -> None:
    """Refuse a start that was encoded for another model than the draft's.

    An empty one has no model: the host gives it the channels, and the audio, of its sampler's.
    """
    made, given = split(draft["samples"], "draft"), split(start["samples"], "start")
    if given.audio is None and is_blank(given.video):
        return
    lacks_audio = made.audio is not None and given.audio is None
    if made.video.shape[1] != given.video.shape[1] or lacks_audio:
        raise ValueError(
            f"expected a start of the draft's model, with {made.video.shape[1]} channels as "
            f"{made.shapes}, got {given.shapes}; connect the latent that the draft's sampler "
            "started from, with the model that made the draft."
        )


def _numbered(starts: list[dict], number: Any) -> dict:
    """Find the start of a draft, or give the only one the draft's number."""
    if len(starts) == 1:
        return starts[0] if number is None else {**starts[0], INDEX: number}
    for one in starts:
        if one[INDEX] == number:
            return one
    raise ValueError(
        f"expected a start with the number of the draft, {number}, got {len(starts)} items with "
        f"{[one[INDEX][0] for one in starts]}; connect the latent that goes to Surf Start Drafts, "
        "or that the sampler started from."
    )


def listed(values: Any) -> list[Any]:
    """Return the values of an input: a list of the host's, or one value of a program's."""
    values = values if isinstance(values, list) else [values]
    return [value for value in values if value is not None]


def single(values: Any, name: str) -> Any:
    """Return the one value of an input; None where nothing is connected.

    Raises:
        ValueError: several values.
    """
    values = listed(values)
    if len(values) > 1:
        raise ValueError(
            f"expected one {name}, got {len(values)}; connect one value, or set it in the node."
        )
    return values[0] if values else None
