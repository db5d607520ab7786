"""Check a mask of tokens against a latent and a MODEL, and expand it to the latent's cells.

Dims: B batch, C latent channels, T latent frames, H, W latent cells.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....surf_core.refiner import SurfRefinerDiT
from ....surf_core.skip import Mask, check_keep, weight
from ..models import check_guarded, patch_of, uncompiled
from .gather import check_patches

GATHERED = ("WanModel", "VaceWanModel", "CameraWanModel", "HunyuanVideo")
"""Networks of the host whose blocks are run on the mask's tokens: T2V and I2V are one class."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CellWeights:
    """How much of each latent cell is the model's, the rest being the upsampled preview."""

    hard: Tensor
    """[T, H, W]: 1 in refined tokens, 0 in skipped ones."""
    soft: Tensor
    """[T, H, W]: the same with the seam blended."""


def cell_weights(mask: Mask, model: Any, latent: Tensor, seam: int) -> CellWeights | None:
    """Check a mask against a latent and a MODEL, and expand it to the latent's cells.

    Args:
        mask: of tokens of the target size; with nothing to skip, any model will do.
        model: host MODEL.
        latent: [B, C, T, H, W], what will be sampled; only its shape counts.
        seam: latent cells of blending inside of what is refined.

    Returns:
        None where nothing is skipped.

    Raises:
        ValueError: as `_check_mask`.
    """
    _check_mask(mask, model, latent, seam)
    if mask.tokens.all():
        return None
    frames, rows, columns = latent.shape[2:]
    hard, soft = (
        weight(mask.tokens, _patch(model), cells)[:frames, :rows, :columns] for cells in (0, seam)
    )
    return CellWeights(hard=hard, soft=soft)


def _check_mask(mask: Mask, model: Any, latent: Tensor, seam: int) -> None:
    """Refuse a mask that does not fit the latent, or a model that cannot skip.

    Raises:
        ValueError: another grid, length or resolution, all skipped, a bad seam; or neither our
            refiner nor Wan (T2V, I2V, VACE, camera) nor HunyuanVideo, or with patches that see the
            tokens of a block; or a model that was compiled so that it would not notice the mask.
    """
    patch = _patch(model)
    if latent.ndim != 5:
        raise ValueError(
            f"a mask belongs to a video, got one and an image latent {tuple(latent.shape)}; "
            "disconnect the mask."
        )
    grid = tuple(-(-side // cells) for side, cells in zip(latent.shape[2:], patch, strict=True))
    check_keep(mask.tokens, grid)
    weight(mask.tokens[:1, :1, :1], patch, seam)
    if mask.tokens.all():
        return
    check_guarded(model)
    if is_ours(model):
        return
    name = type(_network(model)).__name__
    if name not in GATHERED or patch[0] != 1:
        raise ValueError(
            "a mask needs a refiner from Surf Refiner Loader, a Wan model (T2V, I2V, VACE, "
            f"camera) or HunyuanVideo, got {name}, whose blocks hold tokens that a mask cannot "
            "leave out; disconnect the mask."
        )
    check_patches(model.model_options.get("transformer_options", {}))


def _network(model: Any) -> Any:
    return uncompiled(model.get_model_object("diffusion_model"))


def is_ours(model: Any) -> bool:
    return isinstance(_network(model), SurfRefinerDiT)


def _patch(model: Any) -> tuple[int, int, int]:
    """Return the latent cells of a token; those of Wan where a network has no such attribute."""
    patch = patch_of(_network(model))
    return tuple(patch) if isinstance(patch, list | tuple) and len(patch) == 3 else (1, 2, 2)
