"""Run the blocks of the host's Wan and HunyuanVideo on the tokens of a mask.

A wrapper round each call of the network puts a patch round every block: the mask's tokens are
gathered before the first and put back after the last, and what other nodes put there runs inside.
"""

import inspect
import threading
from collections.abc import Callable
from typing import Any

from ..attention import read_call
from ..compiling import outside_graphs, outside_memory_graph
from ..models import uncompiled
from .joint_tokens import JointTokens
from .wan_tokens import WanTokens

BLOCK_PATCHES = ("double_block", "attn1_patch", "attn1_output_patch", "attn2_patch")
"""Functions of other nodes that see the tokens of a block and know nothing of a mask."""


def make_wrapper() -> Callable:
    """Build the wrapper that patches the blocks of a model call, round the patches of other nodes.

    The patches are the same objects in every call and read its state per thread, because a host
    with several GPUs runs both halves of the guidance side by side.
    """
    state, patches = threading.local(), {}
    ran = {"patches": False}

    def gather_tokens(executor, *args, **kwargs):
        call = read_call(executor, args, kwargs)
        if call.packing is None:
            return executor(*args, **kwargs)
        bound = inspect.signature(executor.original).bind(*args, **kwargs)
        options = bound.arguments["transformer_options"]
        check_patches(options)
        _check_control(bound.arguments)
        patches_replace = options.get("patches_replace", {})
        inner = patches_replace.get("dit", {})
        network = uncompiled(executor.class_obj)
        keys = block_keys(network)
        for key in keys:
            if key not in patches:
                patches[key] = outside_graphs(make_patch(state, key), recursive=False)
        kind = JointTokens if hasattr(network, "double_blocks") else WanTokens
        tokens = kind(call, bound.arguments["x"].device)
        outer = getattr(state, "call", None)
        state.call = BlocksOfCall(tokens, inner, keys[-1])
        bound.arguments["transformer_options"] = {
            **options, "patches_replace": {**patches_replace, "dit": {**inner, **patches}}
        }  # fmt: skip
        try:
            with tokens.around(network):
                result = executor(*bound.args, **bound.kwargs)
            ran["patches"] |= state.call.have_run
        finally:
            state.call = outer
        if not ran["patches"]:
            raise ValueError(
                "a mask needs a host that lets blocks be replaced, and this model's are "
                "not; another node may have changed how it runs: take that out, or disconnect the "
                "mask."
            )
        return result

    return gather_tokens


def block_keys(network: Any) -> list[tuple[str, int]]:
    """List the keys under which the host lets the blocks of a network be replaced, in order."""
    if not hasattr(network, "double_blocks"):
        return [("double_block", index) for index in range(len(network.blocks))]
    rows = {"double_block": network.double_blocks, "single_block": network.single_blocks}
    return [(name, index) for name, row in rows.items() for index in range(len(row))]


class BlocksOfCall:
    """What the patches of the blocks need to know of the call of the network in progress.

    Args:
        tokens: of the network's kind.
        inner: what other nodes replaced blocks with: {key: function}.
        last: key of the last block.
    """

    def __init__(self, tokens: WanTokens | JointTokens, inner: dict, last: tuple[str, int]):
        self.tokens, self.inner, self.last = tokens, inner, last
        self.have_run = False


def make_patch(state: threading.local, key: tuple[str, int]) -> Callable:
    """Build the replacement of one block: the block, or what replaced it, on the mask's tokens."""

    def on_mask_tokens(args: dict, extra: dict) -> dict:
        call: BlocksOfCall = state.call
        call.have_run = True
        with outside_memory_graph():
            args = call.tokens.gather(args)
        inner = call.inner.get(key)
        out = inner(args, extra) if inner is not None else extra["original_block"](args)
        if key != call.last:
            return out
        with outside_memory_graph():
            return {**out, "img": call.tokens.scatter(out["img"])}

    return on_mask_tokens


def check_patches(options: dict) -> None:
    """Refuse functions of other nodes that would be called with the refined tokens alone."""
    names = [name for name in BLOCK_PATCHES if options.get("patches", {}).get(name)]
    if names:
        raise ValueError(
            f"another node looks at the tokens of each block ({', '.join(names)}), and a "
            "mask leaves most of them out; take it out, or disconnect the mask."
        )


def _check_control(arguments: dict) -> None:
    """Refuse a ControlNet, whose outputs the host adds to all tokens between two blocks."""
    if arguments.get("control") is not None:
        raise ValueError(
            "a ControlNet adds to all tokens of this model, and a mask leaves most of them out; "
            "take the ControlNet out, or disconnect the mask."
        )
