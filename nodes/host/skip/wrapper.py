"""Refine the tokens of a mask alone: a clone whose other cells stay the upsampled preview.

Our refiner takes the mask itself; for Wan and HunyuanVideo, `gather` runs their blocks on tokens of
the mask. Then, for all, skipped cells become the upsampled preview.

Dims: B batch, C latent channels, T latent frames, H, W latent cells.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....surf_core.skip import compose
from ..attention import KEEP_KEY
from ..compiling import outside_graphs
from ..others import BLOCK, FUNCTION, OBJECT, WRAPPER, log_patches
from .cell_weights import CellWeights, is_ours
from .gather import make_wrapper

WRAPPER_KEY = "surf_skip"
FATES = {
    BLOCK: "runs on refined tokens", WRAPPER: "sees all cells", FUNCTION: "sees all cells",
    OBJECT: "runs on refined tokens",
}  # fmt: skip
"""What becomes of the functions of other nodes; those that look at a block's tokens are refused."""


def with_mask(model: Any, upsampled: Tensor, weights: CellWeights) -> Any:
    """Return a clone that computes refined tokens alone.

    Args:
        model: host MODEL; its weights are shared, it is not changed.
        upsampled: [B, C, T, H, W], the upsampled preview, VAE space.
        weights: of `cell_weights`; one for all samples, steps, and both halves of the guidance.

    Returns:
        A clone whose clean estimate at skipped cells is the upsampled preview at every step.
    """
    import comfy.patcher_extension

    log_patches(model, "a mask", FATES)
    clone = model.clone()
    options = clone.model_options.get("transformer_options", {})
    options = {**options, KEEP_KEY: weights.hard > 0}
    clone.model_options = {**clone.model_options, "transformer_options": options}
    if not is_ours(model):
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        clone.remove_wrappers_with_key(kind, WRAPPER_KEY)
        clone.add_wrapper_with_key(
            kind, WRAPPER_KEY, outside_graphs(make_wrapper(), recursive=False)
        )
    clean = model.model.process_latent_in(upsampled.float())
    earlier = clone.model_options.get("model_function_wrapper")
    clone.set_model_unet_function_wrapper(_make_function_wrapper(clean, weights.hard, earlier))
    compose_seam = _composer(clean, weights.soft)
    clone.set_model_sampler_post_cfg_function(lambda args: compose_seam(args["denoised"]))
    return clone


def _make_function_wrapper(clean: Tensor, hard: Tensor, earlier: Callable | None) -> Callable:
    """Build the model function wrapper: skipped cells of clean estimates become `clean`.

    Before the guidance, so that whatever looks at an estimate as a whole finds a picture there.
    """
    fill = _composer(clean, hard)

    def run(apply_model: Callable, args: dict) -> Tensor:
        if earlier is not None:
            return fill(earlier(apply_model, args))
        return fill(apply_model(args["input"], args["timestep"], **args["c"]))

    return run


def _composer(clean: Tensor, share: Tensor) -> Callable:
    """Build x0 [n * B, C, T, H, W] -> share * x0 + (1 - share) * clean."""
    copies: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def compose_with(x0: Tensor) -> Tensor:
        if x0.device not in copies:
            copies[x0.device] = clean.to(x0.device), share.to(x0.device)
        preview, mine = copies[x0.device]
        return compose(x0, preview.repeat(len(x0) // len(preview), 1, 1, 1, 1), mine)

    return compose_with
