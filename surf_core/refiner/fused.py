"""Fused operations around attention: modulated norm, norm and rotation, rotation.

In plain torch, and by the kernels of comfy-kitchen (Apache-2.0), which ships with ComfyUI. Its
functions are for inference only; with gradients the plain ones run.

Dims: B batch, L tokens, H heads, K channels per head, D width.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rope import rotate

log = logging.getLogger(__name__)

EPS = 1e-6
"""Of every norm of the model, as in Wan."""
ROWS = 8192
"""Tokens that plain torch norms or rotates at once without gradients, since it needs float32."""
NEEDED = ("adaln", "rms_adaln", "rms_rope_", "apply_rope1_")
"""Functions of comfy-kitchen that are called here; 0.2.3 lacks those in place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fused:
    """Three functions; the last two may write into q, k and x when gradients are off."""

    name: str
    """`eager` or `kitchen`."""
    modulated_norm: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """(x [B, L, D], scale [B, 1, D], shift or None) -> norm(x) * (1 + scale) + shift, a new
    tensor; LayerNorm with a shift, RMSNorm without, neither with weights."""
    norm_rotate: Callable[[Tensor, Tensor, nn.Module, nn.Module, Tensor], tuple[Tensor, Tensor]]
    """(q, k [B, L, H, K], their RMSNorms over K, table [1, L, 1, K/2, 2, 2]) -> both, normed and
    rotated."""
    rotate: Callable[[Tensor, Tensor], Tensor]
    """(x [B, L, H, K], table) -> x, rotated."""


def out_of_place() -> bool:
    """Whether to return new tensors instead of writing into x, `ROWS` tokens at a time.

    True with gradients, and in compiled code, where the compiler removes temporaries itself.
    """
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def by_rows(change: Callable[..., Tensor], x: Tensor, *along: Tensor) -> Tensor:
    """Apply `change` to x [B, L, ...] and tensors [B, L, ...] along the same tokens.

    It takes `ROWS` tokens at a time and writes into x, unless `out_of_place()`.
    """
    if out_of_place():
        return change(x, *along)
    for start in range(0, x.shape[1], ROWS):
        part = slice(start, start + ROWS)
        x[:, part] = change(x[:, part], *(other[:, part] for other in along))
    return x


def _modulate(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    width = x.shape[-1:]
    if shift is None:
        return F.rms_norm(x, width, eps=EPS) * (1 + scale)
    return torch.addcmul(shift, F.layer_norm(x, width, eps=EPS), 1 + scale)


def _modulated_norm(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    if out_of_place() or x.shape[1] <= ROWS:
        return _modulate(x, scale, shift)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for start in range(0, x.shape[1], ROWS):
        part = slice(start, start + ROWS)
        out[:, part] = _modulate(x[:, part], scale, shift)
    return out


def _norm_rotate(
    q: Tensor, k: Tensor, norm_q: nn.Module, norm_k: nn.Module, table: Tensor
) -> tuple[Tensor, Tensor]:
    return (
        by_rows(lambda x, table: rotate(norm_q(x), table), q, table),
        by_rows(lambda x, table: rotate(norm_k(x), table), k, table),
    )


eager = Fused(
    name="eager",
    modulated_norm=_modulated_norm,
    norm_rotate=_norm_rotate,
    rotate=partial(by_rows, rotate),
)
"""Plain torch, everywhere."""


def why_not_kitchen() -> str | None:
    """Return the reason why comfy-kitchen cannot be used, or None."""
    try:
        import comfy_kitchen
    except (ImportError, OSError) as error:
        return f"comfy-kitchen cannot be imported ({error}); it comes with ComfyUI."
    missing = [name for name in NEEDED if not hasattr(comfy_kitchen, name)]
    if missing:
        return f"comfy-kitchen is too old, it lacks {', '.join(missing)}; update it."
    return None


def kitchen() -> Fused | None:
    """Return the functions of comfy-kitchen, or None, with a logged reason, where they are missing.

    comfy-kitchen chooses the kernel (CUDA, HIP, Triton, plain torch) by device, dtype and shape.
    """
    reason = why_not_kitchen()
    if reason is not None:
        log.info("norms and rotary positions run in plain torch: %s", reason)
        return None
    import comfy_kitchen

    def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        if shift is None:
            return comfy_kitchen.rms_adaln(x, scale, torch.zeros_like(scale), EPS)
        return comfy_kitchen.adaln(x, scale, shift, EPS)

    def norm_rotate(
        q: Tensor, k: Tensor, norm_q: nn.Module, norm_k: nn.Module, table: Tensor
    ) -> tuple[Tensor, Tensor]:
        # The CUDA kernel takes these widths; for others all of it would run in plain torch.
        if q.shape[-1] % 32 or not (_fits(norm_q, q) and _fits(norm_k, k)):
            rope = comfy_kitchen.apply_rope1_
            return rope(by_rows(norm_q, q), table), rope(by_rows(norm_k, k), table)
        weights = (cast(Tensor, norm.weight).detach() for norm in (norm_q, norm_k))
        return comfy_kitchen.rms_rope_(q, k, table, *weights, EPS)

    return Fused(
        name="kitchen",
        modulated_norm=modulated_norm,
        norm_rotate=norm_rotate,
        rotate=comfy_kitchen.apply_rope1_,
    )


def _fits(norm: nn.Module, x: Tensor) -> bool:
    """Whether a norm's weight has the device and dtype of x; if not, its layer casts it."""
    return norm.weight.device == x.device and norm.weight.dtype == x.dtype
