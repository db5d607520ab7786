"""Window the self-attention of a host model: by an attention override on a clone, never a mask.

A wrapper round each model call reads where the video tokens lie (token_layout.py); the override
then cuts the self-attention of every block into temporal windows, shifted on odd blocks.

Dims: B batch, L tokens of a sequence, D width of all heads together.
"""

import inspect
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from ....surf_core.window import segments
from ..compiling import outside_graphs, outside_memory_graph
from ..node import NodeLog, reporting_as, running_node
from ..others import ATTENTION, BLOCK, OVERRIDE, PATCH, WRAPPER, log_patches, name_of
from .model_call import ModelCall
from .token_layout import check_tokens_known, count_blocks, number_blocks, read_call

log = NodeLog(__name__)

WRAPPER_KEY = "surf_window"
FATES = {
    ATTENTION: "attends in each window", PATCH: "sees all tokens",
    BLOCK: "its attention is cut, too", WRAPPER: "sees the whole model",
}  # fmt: skip
"""What becomes of the functions of other nodes."""
REPLACED = "surf_replaced"
"""Attribute of our override: the one that it took the place of, or None."""


def with_windows(model, window: int):
    """Return a clone whose self-attention stays inside shifted temporal windows.

    Tokens that belong to no frame of the video (text of HunyuanVideo and MiniMax H3, its keyframes
    and audio, reference images, guides of LTX-2, frames appended in time) attend to everything, and
    every window attends to them. Through them, and through the shift, windows still exchange
    information from block to block.

    Args:
        model: host MODEL; its weights are shared, it is not changed.
        window: latent frames, >= 2; 0 gives the model back untouched, windows of an earlier call
            included.

    Returns:
        A clone, or `model` itself for window 0. An override that is already installed (Sage and
        other kernels use the same slot) is called for each window. Windows of an earlier call are
        replaced, never nested.

    Raises:
        ValueError: a bad window, or a model whose order of tokens is not known.
    """
    check_window(window)
    if window == 0:
        return model
    import comfy.patcher_extension

    check_tokens_known(model.get_model_object("diffusion_model"))
    clone, kind = model.clone(), comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    options = dict(clone.model_options.get("transformer_options", {}))
    earlier = options.get(OVERRIDE)
    log_patches(model, f"windows of {window}", FATES)
    windows = Windows(window)
    options[OVERRIDE] = windows.over(getattr(earlier, REPLACED, earlier))
    clone.model_options = {**clone.model_options, "transformer_options": options}
    # An earlier override of ours that another node has chained cannot be taken out, but without
    # its wrapper it knows of no call and lets everything pass.
    clone.remove_wrappers_with_key(kind, WRAPPER_KEY)
    wrapper = outside_graphs(make_wrapper(windows, options[OVERRIDE]), recursive=False)
    clone.add_wrapper_with_key(kind, WRAPPER_KEY, wrapper)
    return clone


def check_window(window: int) -> None:
    """Refuse a window that would cut the video into still images."""
    segments(1, window, False)


class Windows:
    """The attention overrides of one clone, and what they know of the model call in progress.

    Per thread, because a host with several GPUs runs both halves of the guidance side by side.
    """

    def __init__(self, window: int):
        """Take the window in latent frames, >= 2."""
        self.window = window
        self.state = threading.local()
        """`call`: the ModelCall in progress; `attending`: an attention is cut by one of ours."""
        self.ours: Callable | None = None
        """What `over` returned last, and what it is above."""
        self.below: Callable | None = None
        self.checked = False

    def over(self, inner: Callable | None) -> Callable:
        """Return our override that calls `inner`, or the host's attention, in each window."""
        override = make_override(self.state, self.window, inner)
        return outside_graphs(override, recursive=True)

    def put_back(self, options: dict, first: Callable) -> dict:
        """Return transformer_options with our override above whatever has its place.

        Another node may take it after ours, when the model is patched or before each step.

        Args:
            first: our override as it was installed.
        """
        current = options.get(OVERRIDE)
        if current is first:
            return options
        if self.ours is None or self.below is not current:
            taken = "nothing" if current is None else name_of(current)
            log.info("%s has taken the place of the windows; they are put back above it.", taken)
            self.ours, self.below = self.over(current), current
        return {**options, OVERRIDE: self.ours}

    def check_blocks(self, call: ModelCall, blocks: int) -> None:
        """Warn, after the first call, of blocks whose self-attention did not come by.

        Later calls may leave blocks out: caches of steps do.
        """
        if not self.checked and call.self_attentions < blocks:
            log.warning(
                "windows are off in %d of %d blocks: another node replaces their attention, or "
                "leaves them out. Take it out, or set window to 0.",
                blocks - call.self_attentions, blocks,
            )  # fmt: skip
        self.checked = True


def make_wrapper(windows: Windows, override: Callable) -> Callable:
    """Build the wrapper that reads each model call for the override, and puts it back."""

    node = running_node()

    def note_tokens(executor, *args, **kwargs):
        bound = inspect.signature(executor.original).bind(*args, **kwargs)
        with reporting_as(node):
            call = read_call(executor, args, kwargs)
            options = bound.arguments.get("transformer_options") or {}
            options = windows.put_back(options, override)
            if not call.numbered:
                options = number_blocks(options, count_blocks(executor.class_obj))
            bound.arguments["transformer_options"] = options
        state = windows.state
        outer, state.call = getattr(state, "call", None), call
        try:
            result = executor(*bound.args, **bound.kwargs)
            with reporting_as(node):
                call.check_windowed()
                windows.check_blocks(call, count_blocks(executor.class_obj))
        finally:
            state.call = outer
        return result

    return note_tokens


def make_override(state: threading.local, window: int, inner: Callable | None) -> Callable:
    """Build the attention override: windows for a block's self-attention, all else untouched.

    Args:
        state: of `Windows`.
        window: latent frames, >= 2.
        inner: the override that was installed before, or None.
    """

    node = running_node()

    def override(func, q: Tensor, k: Tensor, v: Tensor, heads: int, mask=None, **kwargs):
        def attend(q, k, v, mask):
            if inner is None:
                return func(q, k, v, heads, mask=mask, **kwargs)
            return inner(func, q, k, v, heads, mask=mask, **kwargs)

        call: ModelCall | None = getattr(state, "call", None)
        if call is None or getattr(state, "attending", False):
            return attend(q, k, v, mask)
        state.attending = True
        try:
            with reporting_as(node):
                ranges, axis = find_ranges(call, window, q, k, kwargs)
            if ranges is None:
                return attend(q, k, v, mask)
            out_axis = 2 if kwargs.get("skip_output_reshape") else 1
            with outside_memory_graph():
                return attend_ranges(attend, q, k, v, mask, ranges, axis=axis, out_axis=out_axis)
        finally:
            state.attending = False

    setattr(override, REPLACED, inner)
    return override


def find_ranges(
    call: ModelCall, window: int, q: Tensor, k: Tensor, kwargs: dict
) -> tuple[list[slice] | None, int]:
    """Find the ranges of tokens that an attention is cut to, and the axis of tokens.

    Returns:
        None for ranges where the attention is no block's self-attention, or one window holds all.
    """
    axis = 2 if kwargs.get("skip_reshape") else 1
    options = kwargs.get("transformer_options") or {}
    depth = call.self_attention_depth(q.shape[axis], k.shape[axis], options)
    cuts = [] if depth is None else segments(call.frames, window, bool(depth % 2))
    if len(cuts) < 2:
        return None, axis
    return call.token_ranges(call.find_video(q.shape[axis]), cuts), axis


def attend_ranges(
    attend: Callable,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    ranges: list[slice],
    *,
    axis: int,
    out_axis: int,
) -> Tensor:
    """Attend in ranges: each range of tokens attends to itself and to all tokens outside of them.

    Args:
        attend: dense attention, (q, k, v, mask) -> out.
        q, k, v: [B, L, D], or [B, heads, L, D / heads] with `axis` 2.
        mask: None, or [..., 1 or L, L], the host's own: the padding of a text.
        ranges: neighbouring slices of the tokens; those before and after attend to everything.
        axis, out_axis: which axis of the inputs and of the result is L.

    Returns:
        What `attend` returns for the whole sequence: a new tensor.
    """
    length = q.shape[axis]
    before, after = slice(0, ranges[0].start), slice(ranges[-1].stop, length)
    rest = [part for part in (before, after) if part.stop > part.start]
    outs = []
    for part in ranges:
        keys = sorted([part, *rest], key=lambda part: part.start)
        pair = _pick(k, keys, axis), _pick(v, keys, axis)
        outs.append(attend(_pick(q, [part], axis), *pair, _pick_mask(mask, [part], keys)))
    if rest:
        mask = _pick_mask(mask, rest, [slice(0, length)])
        around = attend(_pick(q, rest, axis), k, v, mask)
        sizes = [before.stop, around.shape[out_axis] - before.stop]
        front, back = around.split(sizes, dim=out_axis)
        outs = [front, *outs, back]
    return torch.cat(outs, dim=out_axis)


def _pick(x: Tensor, parts: list[slice], axis: int) -> Tensor:
    """Take slices of one axis; a single slice is a view."""
    views = [x.narrow(axis, part.start, part.stop - part.start) for part in parts]
    return views[0] if len(views) == 1 else torch.cat(views, dim=axis)


def _pick_mask(mask: Tensor | None, rows: list[slice], keys: list[slice]) -> Tensor | None:
    """Cut a mask to these queries and keys; one row serves all queries."""
    if mask is None:
        return None
    if mask.ndim >= 2 and mask.shape[-2] > 1:
        mask = _pick(mask, rows, mask.ndim - 2)
    return _pick(mask, keys, mask.ndim - 1)
