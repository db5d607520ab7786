"""A host model that refines the tokens of a mask alone, as a clone; the others are the start.

Our refiner takes the mask itself. Of Wan, a wrapper round each call of the network puts a patch
round every block: kept tokens are gathered before the first and put back after the last, and what
other nodes put there runs inside. Then, for both, cells that are skipped become the start.

Dims: B batch, C latent channels, T latent frames, H, W latent cells, L tokens of a sequence, K kept
ones and those that belong to no cell, D width.
"""

import inspect
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....surf_core.refiner import SurfRefinerDiT
from ....surf_core.skip import Mask, Packing, check_keep, compose, pack, unpack, weight
from ..attention import KEEP_KEY, ModelCall, read_call
from ..compiling import outside_graphs
from ..models import check_guarded, uncompiled

WRAPPER_KEY = "surf_skip"
GATHERED = ("WanModel", "CameraWanModel")
"""Networks of the host whose blocks are patched: T2V and I2V are one class. VACE adds the output of
a second row of blocks, which would have to be gathered alike."""
BLOCK_PATCHES = ("double_block", "attn1_patch", "attn2_patch")
"""Functions of other nodes that see the tokens of a block and know nothing of a mask."""


def check_mask(mask: Mask, model: Any, latent: Tensor, seam: int, who: str) -> None:
    """Refuse a mask that does not fit the latent, or a model that cannot skip.

    Args:
        mask: of tokens of the target size; with nothing to skip, any model will do.
        model: host MODEL.
        latent: [B, C, T, H, W], what will be sampled; only its shape counts.
        seam: see `surf_core.skip.weight`.
        who: the node, for errors.

    Raises:
        ValueError: another grid, length or resolution, all skipped, a bad seam; or neither our
            refiner nor Wan (T2V, I2V, camera), or with patches that see the tokens of a block; or
            a model that was compiled so that it would not notice the mask.
    """
    patch = _patch(model)
    grid = tuple(-(-side // step) for side, step in zip(latent.shape[2:], patch, strict=True))
    try:
        check_keep(mask.tokens, grid)
        weight(mask.tokens[:1, :1, :1], patch, seam)
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from error
    if mask.tokens.all():
        return
    check_guarded(model, who)
    if _is_ours(model):
        return
    name = type(_network(model)).__name__
    if name not in GATHERED or patch[0] != 1:
        raise ValueError(
            f"{who}: a mask needs a refiner from Surf Refiner Loader or a Wan model (T2V, I2V, "
            f"camera), got {name}, whose blocks hold tokens that a mask cannot leave out; "
            "disconnect the mask."
        )
    _check_patches(model.model_options.get("transformer_options", {}), who)


def skipping(model: Any, start: Tensor, mask: Mask, *, seam: int = 0, who: str) -> Any:
    """Clone a MODEL so that it computes kept tokens alone, and knows the start for the others.

    Args:
        model: host MODEL; its weights are shared, it is not changed.
        start: [B, C, T, H, W], the enlarged preview, VAE space.
        mask: one for all samples, steps, and both halves of the guidance.
        seam: latent cells of blending inside of what is refined.
        who: the node, for errors, also those that come up while the model runs.

    Returns:
        A clone whose clean estimate at skipped cells is the start at every step; `model` itself
        where nothing is skipped.

    Raises:
        ValueError: as `check_mask`.
    """
    check_mask(mask, model, start, seam, who)
    if mask.tokens.all():
        return model
    import comfy.patcher_extension

    clone = model.clone()
    hard, soft = (cell_weight(mask, model, start, blend) for blend in (0, seam))
    options = clone.model_options.get("transformer_options", {})
    options = {**options, KEEP_KEY: hard > 0}
    clone.model_options = {**clone.model_options, "transformer_options": options}
    if not _is_ours(model):
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        clone.remove_wrappers_with_key(kind, WRAPPER_KEY)
        clone.add_wrapper_with_key(
            kind, WRAPPER_KEY, outside_graphs(make_wrapper(who), recursive=False)
        )
    clean = model.model.process_latent_in(start.float())
    earlier = clone.model_options.get("model_function_wrapper")
    clone.set_model_unet_function_wrapper(_make_filled(clean, hard, earlier))
    composed = _make_composed(clean, soft)
    clone.set_model_sampler_post_cfg_function(lambda args: composed(args["denoised"]))
    return clone


def cell_weight(mask: Mask, model: Any, latent: Tensor, seam: int = 0) -> Tensor:
    """How much of each cell of a latent is the refiner's: [T, H, W], see `weight`."""
    frames, rows, columns = latent.shape[2:]
    return weight(mask.tokens, _patch(model), seam)[:frames, :rows, :columns]


def make_wrapper(who: str) -> Callable:
    """Build the wrapper that patches the blocks of one model call, whatever is there by then.

    The patches are the same objects in every call, and find theirs per thread: a host with several
    GPUs runs both halves of the guidance side by side.
    """
    state, patches = threading.local(), {}
    seam = {"seen": False}

    def gather_tokens(executor, *args, **kwargs):
        call = read_call(executor, args, kwargs, who)
        if call.kept is None:
            return executor(*args, **kwargs)
        bound = inspect.signature(executor.original).bind(*args, **kwargs)
        options = bound.arguments["transformer_options"]
        _check_patches(options, who)
        replaced = options.get("patches_replace", {})
        inner = replaced.get("dit", {})
        count = len(uncompiled(executor.class_obj).blocks)
        for index in range(len(patches), count):
            patches["double_block", index] = outside_graphs(
                make_patch(state, index), recursive=False
            )
        outer = getattr(state, "call", None)
        state.call = Gathering(call, bound.arguments["x"].device, inner, count - 1)
        bound.arguments["transformer_options"] = {
            **options, "patches_replace": {**replaced, "dit": {**inner, **patches}}
        }  # fmt: skip
        try:
            result = executor(*bound.args, **bound.kwargs)
            seam["seen"] |= state.call.used
        finally:
            state.call = outer
        if not seam["seen"]:
            raise ValueError(
                f"{who}: a mask needs a host that lets blocks be replaced, and this model's are "
                "not; another node may have changed how it runs: take that out, or disconnect the "
                "mask."
            )
        return result

    return gather_tokens


def make_patch(state: threading.local, index: int) -> Callable:
    """Build the replacement of one block: the block, or what replaced it, on kept tokens."""

    def on_kept_tokens(args: dict, extra: dict) -> dict:
        call: Gathering = state.call
        given = call.gathered(args)
        inner = call.inner.get(("double_block", index))
        out = inner(given, extra) if inner is not None else extra["original_block"](given)
        return {**out, "img": call.whole(out["img"])} if index == call.last else out

    return on_kept_tokens


class Gathering:
    """One call of a Wan network: which tokens its blocks get.

    Args:
        call: with a mask.
        device: of the tokens.
        inner: what other nodes replaced blocks with: {("double_block", index): function}.
        last: index of the last block.
    """

    def __init__(self, call: ModelCall, device: torch.device, inner: dict, last: int):
        self.inner, self.last, self.who = inner, last, call.who
        self.used = False
        video = call.before + call.per_frame * call.frames
        places = (
            torch.arange(call.before), call.before + call.kept.indices,
            torch.arange(video, call.length),
        )  # fmt: skip
        self.packed = Packing(grid=(1, 1, call.length), indices=torch.cat(places).to(device))
        self.table = self.rows = None

    def gathered(self, args: dict) -> dict:
        """What a block is called with, its tokens, positions and times gathered; new, not changed.

        Raises:
            ValueError: a sequence of another length.
        """
        self.used = True
        img, (total, kept) = args["img"], (self.packed.grid[2], len(self.packed.indices))
        if img.shape[1] not in (total, kept):
            raise ValueError(
                f"{self.who}: expected {total} tokens, or the mask's {kept}, got {img.shape[1]}; "
                "another node adds tokens to this model: take it out, or disconnect the mask."
            )
        if img.shape[1] == total:
            img = pack(img, self.packed)
        return {**args, "img": img, "pe": self._positions(args["pe"]),
                "vec": self._times(args["vec"])}  # fmt: skip

    def _positions(self, pe: Tensor) -> Tensor:
        """Rows of the rotary table [1, L, ...]; gathered once while it is the same table."""
        if self.table is not pe:
            self.table, self.rows = pe, pack(pe, self.packed)
        return self.rows

    def _times(self, vec: Tensor) -> Tensor:
        """Modulation [B, n, 6, D]: one row for all tokens, or each for as many tokens in a row.

        Wan 2.2 5B has one for each frame under a noise mask; the host repeats them evenly, which
        gathered tokens are not.
        """
        if vec.ndim < 4 or vec.shape[1] == 1:
            return vec
        each = -(-self.packed.grid[2] // vec.shape[1])
        return vec.index_select(1, self.packed.indices // each)

    def whole(self, img: Tensor) -> Tensor:
        """Put tokens back: [B, K, D] -> [B, L, D]; zeros for skipped ones.

        Zeros move no mean over the output, such as a step cache decides by.
        """
        return unpack(img, self.packed)


def _make_filled(clean: Tensor, hard: Tensor, earlier: Callable | None) -> Callable:
    """Build the model function wrapper: clean estimates that are the start where it skips.

    Before the guidance, so that whatever looks at an estimate as a whole finds a picture there.
    """
    composed = _make_composed(clean, hard)

    def run(apply_model: Callable, args: dict) -> Tensor:
        if earlier is not None:
            return composed(earlier(apply_model, args))
        return composed(apply_model(args["input"], args["timestep"], **args["c"]))

    return run


def _make_composed(clean: Tensor, share: Tensor) -> Callable:
    """Build x0 [n * B, C, T, H, W] -> the same, with the start in it by share."""
    moved: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def composed(x0: Tensor) -> Tensor:
        if x0.device not in moved:
            moved[x0.device] = clean.to(x0.device), share.to(x0.device)
        start, mine = moved[x0.device]
        return compose(x0, start.repeat(len(x0) // len(start), 1, 1, 1, 1), mine)

    return composed


def _check_patches(options: dict, who: str) -> None:
    """Refuse functions of other nodes that would be called with the kept tokens alone."""
    found = [name for name in BLOCK_PATCHES if options.get("patches", {}).get(name)]
    if found:
        raise ValueError(
            f"{who}: another node looks at the tokens of each block ({', '.join(found)}), and a "
            "mask leaves most of them out; take it out, or disconnect the mask."
        )


def _network(model: Any) -> Any:
    return uncompiled(model.get_model_object("diffusion_model"))


def _is_ours(model: Any) -> bool:
    return isinstance(_network(model), SurfRefinerDiT)


def _patch(model: Any) -> tuple[int, int, int]:
    """Latent cells of a token; those of Wan where a network does not say."""
    patch = getattr(_network(model), "patch_size", (1, 2, 2))
    return tuple(patch) if isinstance(patch, list | tuple) and len(patch) == 3 else (1, 2, 2)
