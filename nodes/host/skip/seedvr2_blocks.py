"""Run the blocks of the host's SeedVR2 on refined tokens, round what other nodes put there.

Dims: S samples of a call, N tokens of a clip, K refined ones, D width.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from ....surf_core.skip import Mask, Packing, pack, packing, unpack
from ..node import NodeLog, reporting_as, running_node
from ..others import name_of
from .seedvr2_windows import PrefilledCache, fill_cache, partition, phase

log = NodeLog(__name__)

KEY = "surf_seedvr2_skip"
"""Names our wrappers, and what we keep for the length of a call in the host's cache."""
REPLACED = "surf_seedvr2_replaced"
"""Attribute of our functions: the one that each took the place of, or None."""
MODULATION = "emb_repeat_0_vid"
"""Entry of the host's cache that the output norm shares with the blocks."""


def replace_blocks(clone: Any, network: Any, mask: Mask) -> Callable[[dict], dict]:
    """Run every block on refined tokens; a replacement by another node is called inside.

    Returns:
        A function of transformer_options: they, with our replacements round those that another node
        has put in their place since, when it patched the model or before a step.
    """
    patches = clone.model_options.get("transformer_options", {}).get("patches_replace", {})
    present, windows = dict(patches.get("dit", {})), {}
    for block in network.blocks:
        cuts, name = block.attn.window_op(mask.grid, block.attn.window), phase(block.attn)
        if name not in windows:
            windows[name] = partition(mask.tokens, cuts)
    tokens, last = packing(mask.tokens), len(network.blocks) - 1
    attentions = {("block", index): block.attn for index, block in enumerate(network.blocks)}

    def ours(key: tuple[str, int], earlier: Callable | None) -> Callable:
        attention = attentions[key]
        return run_block(attention, windows[phase(attention)], tokens, key[1], last, earlier)

    installed = {key: ours(key, present.get(key)) for key in attentions}
    for (name, index), run in installed.items():
        clone.set_model_patch_replace(run, "dit", name, index)
    told, node = set(), running_node()

    def put_back(options: dict) -> dict:
        patches = options.get("patches_replace", {})
        found = patches.get("dit", {})
        taken = {key: found.get(key) for key, run in installed.items() if found.get(key) is not run}
        if not taken:
            return options
        names = {name_of(each) if each is not None else "nothing" for each in taken.values()}
        if not names <= told:
            told.update(names)
            with reporting_as(node):
                log.info("%s has the place of our blocks and is called inside.", ", ".join(names))
        again = {key: ours(key, earlier) for key, earlier in taken.items()}
        return {**options, "patches_replace": {**patches, "dit": {**found, **again}}}

    return put_back


def run_block(attention, windows, tokens, index: int, last: int, earlier) -> Callable:
    """Build the replacement of one block: gathers if it is the first, scatters if the last."""

    node = running_node()

    def on_refined_tokens(args: dict, extra: dict) -> dict:
        def block(args: dict) -> dict:
            return extra["original_block"](args) if earlier is None else earlier(args, extra)

        cache = args["cache"]
        if isinstance(cache.cache, PrefilledCache):
            # Called by a skip of ours that another node has chained, on gathered tokens.
            return block(args)
        if index == 0:
            with reporting_as(node):
                args = {**args, "vid": _gather(args["vid"], args["vid_shape"], tokens)}
            cache.cache[KEY] = PrefilledCache()
            lengths = [len(tokens.indices)] * len(args["vid_shape"])
            cache.cache[KEY].prefill("vid_len", torch.tensor(lengths, device=args["vid"].device))
        prefilled = cache.cache[KEY]
        if f"{phase(attention)}.win_transform" not in prefilled:
            fill_cache(prefilled, attention, windows, args["txt_shape"])
        out = block({**args, "cache": type(cache)(cache=prefilled)})
        if index < last:
            return out
        with reporting_as(node):
            return {**out, "vid": _scatter(out["vid"], cache.cache, prefilled, tokens)}

    setattr(on_refined_tokens, REPLACED, earlier)
    return on_refined_tokens


def _gather(vid: Tensor, vid_shape: Tensor, tokens: Packing) -> Tensor:
    """Gather the refined tokens of every sample: [S * N, D] -> [S * K, D].

    Raises:
        ValueError: a clip of another size than the mask's.
    """
    samples = vid.unflatten(0, (len(vid_shape), -1))
    return pack(samples, tokens.to(vid.device)).flatten(0, 1)


def _scatter(vid: Tensor, cache: dict, prefilled: PrefilledCache, tokens: Packing) -> Tensor:
    """Put refined tokens back among zeros: [S * K, D] -> [S * N, D].

    What follows the blocks runs on all tokens. It shares a modulation with them, which it expects
    in the cache, one row a token.

    Raises:
        ValueError: the host's blocks did not look up all that was filled in.
    """
    if prefilled.unread:
        raise ValueError(
            f"expected SeedVR2 as ComfyUI 0.33 has it, got one that does not look up "
            f"{sorted(prefilled.unread)}; leave this node out, and look for a newer version of it."
        )
    total, few = prod(tokens.grid), len(tokens.indices)
    if MODULATION in prefilled:
        rows = prefilled[MODULATION]
        cache[MODULATION] = rows[::few].repeat_interleave(total, dim=0)
    return unpack(vid.unflatten(0, (-1, few)), tokens.to(vid.device)).flatten(0, 1)
