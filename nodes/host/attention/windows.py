"""Window the self-attention of a host model: by an attention override on a clone, never a mask.

A wrapper round each model call reads where the video tokens lie (token_layout.py); the override
then cuts the self-attention of every block into temporal windows, shifted on odd blocks.

Dims: B batch, L tokens of a sequence, D width of all heads together.
"""

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from ....surf_core.window import segments
from ..compiling import outside_graphs
from ..node_name import reporting_as, running_node
from .token_layout import ModelCall, check_tokens_known, read_call

WRAPPER_KEY = "surf_window"
OVERRIDE = "optimized_attention_override"
REPLACED = "surf_replaced"
"""Attribute of our override: the one that it took the place of, or None."""


def with_windows(model, window: int):
    """Return a clone whose self-attention stays inside shifted temporal windows.

    Tokens that belong to no frame of the video (text of HunyuanVideo, reference images, frames
    appended in time) attend to everything, and every window attends to them. Through them, and
    through the shift, windows still exchange information from block to block.

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
    state, earlier = threading.local(), options.get(OVERRIDE)
    override = make_override(state, window, getattr(earlier, REPLACED, earlier))
    options[OVERRIDE] = outside_graphs(override, recursive=True)
    clone.model_options = {**clone.model_options, "transformer_options": options}
    # An earlier override of ours that another node has chained cannot be taken out, but without
    # its wrapper it knows of no call and lets everything pass.
    clone.remove_wrappers_with_key(kind, WRAPPER_KEY)
    wrapper = outside_graphs(make_wrapper(state), recursive=False)
    clone.add_wrapper_with_key(kind, WRAPPER_KEY, wrapper)
    return clone


def check_window(window: int) -> None:
    """Refuse a window that would cut the video into still images."""
    segments(1, window, False)


def make_wrapper(state: threading.local) -> Callable:
    """Build the wrapper that reads each model call for the override, per thread.

    Per thread, because a host with several GPUs runs both halves of the guidance side by side.
    """

    node = running_node()

    def note_tokens(executor, *args, **kwargs):
        with reporting_as(node):
            call = read_call(executor, args, kwargs)
        outer, state.call = getattr(state, "call", None), call
        try:
            result = executor(*args, **kwargs)
            with reporting_as(node):
                call.check_windowed()
        finally:
            state.call = outer
        return result

    return note_tokens


def make_override(state: threading.local, window: int, inner: Callable | None) -> Callable:
    """Build the attention override: windows for a block's self-attention, all else untouched.

    Args:
        state: its `call` is the ModelCall in progress.
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
        axis = 2 if kwargs.get("skip_reshape") else 1
        options = kwargs.get("transformer_options") or {}
        with reporting_as(node):
            tokens = q.shape[axis], k.shape[axis]
            depth = call.self_attention_depth(*tokens, options) if call else None
        if depth is None:
            return attend(q, k, v, mask)
        cuts = segments(call.frames, window, bool(depth % 2))
        if len(cuts) == 1:
            return attend(q, k, v, mask)
        runs = call.runs(call.find_video(q.shape[axis]), cuts)
        out_axis = 2 if kwargs.get("skip_output_reshape") else 1
        return attend_runs(attend, q, k, v, mask, runs, axis=axis, out_axis=out_axis)

    setattr(override, REPLACED, inner)
    return override


def attend_runs(
    attend: Callable,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    runs: list[slice],
    *,
    axis: int,
    out_axis: int,
) -> Tensor:
    """Attend in runs: each run of tokens attends to itself and to all tokens outside the runs.

    Args:
        attend: dense attention, (q, k, v, mask) -> out.
        q, k, v: [B, L, D], or [B, heads, L, D / heads] with `axis` 2.
        mask: None, or [..., 1 or L, L], the host's own: the padding of a text.
        runs: neighbouring slices of the tokens; those before and after attend to everything.
        axis, out_axis: which axis of the inputs and of the result is L.

    Returns:
        What `attend` returns for the whole sequence: a new tensor.
    """
    length = q.shape[axis]
    before, after = slice(0, runs[0].start), slice(runs[-1].stop, length)
    rest = [part for part in (before, after) if part.stop > part.start]
    outs = []
    for run in runs:
        keys = sorted([run, *rest], key=lambda part: part.start)
        pair = _pick(k, keys, axis), _pick(v, keys, axis)
        outs.append(attend(_pick(q, [run], axis), *pair, _pick_mask(mask, [run], keys)))
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
