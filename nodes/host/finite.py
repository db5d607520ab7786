"""Stop a run at the first NaN or infinity, and name the stage.

`check_finite` is for what is at hand once: a latent, what a VAE made, frames. `check_conditioning`
is for prompts, before the first evaluation. `NonFiniteGuard` is for the evaluations of a sampling
call: a GPU does not wait for it, since a flag is read only when it has arrived.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

MODEL_CAUSES = (
    "usual causes are a model that overflows in fp16 (load it in bf16), damaged or wrongly scaled "
    "fp8 weights, and a broken LoRA; try without each of them"
)
VAE_CAUSES = "run the VAE in bf16 or fp32 (--bf16-vae, --fp32-vae), or take the one of this model"
GROUP = 64
"""Frames that are looked at together."""
TEXT_CAUSES = "look at the node that made it, often a text encoder in fp16 or fp8"


def is_finite(x: Tensor) -> Tensor:
    """Return a flag on the device of x, without waiting for it: no NaN and no infinity."""
    # torch has no isfinite for 8 bits.
    x = x.float() if x.element_size() < 2 else x
    # Both ends are NaN where a value is; isfinite would copy minutes of frames.
    x = ends(x) if x.device.type == "cpu" and x.numel() else x
    return torch.isfinite(x).all()


def ends(x: Tensor) -> Tensor:
    """Return the least and the largest value of x [N, ...], or NaN twice where one is: [2].

    Some frames at a time: torch copies what is not contiguous, such as one frame shown for minutes.
    """
    parts = x.split(GROUP) if x.ndim else (x,)
    found = torch.stack([torch.stack(torch.aminmax(part)) for part in parts])
    return torch.stack((found[:, 0].amin(), found[:, 1].amax()))


def check_finite(x: Tensor, what: str, advice: str) -> None:
    """Refuse NaN and infinity, e.g. in what a VAE made.

    Args:
        what: the subject of the error, e.g. "the decoded preview".
        advice: a clause without a full stop, e.g. VAE_CAUSES.
    """
    if x.is_floating_point() and not is_finite(x):
        shape = tuple(x.shape)
        raise ValueError(f"{what} must be finite, got NaN or infinity in {shape=}; {advice}.")


def check_conditioning(conds: dict[str, list]) -> None:
    """Refuse conditioning without a prompt, NaN and infinity in it.

    Args:
        conds: {"positive": CONDITIONING, ...}; of an empty one the host would estimate zeros.
    """
    for name, cond in conds.items():
        if not cond:
            raise ValueError(
                f"expected a prompt in the {name} conditioning, got an empty list; connect what a "
                "text encoder makes of a prompt, which may be an empty text."
            )
        for entry in cond:
            for key, x in [("text", entry[0]), *entry[1].items()]:
                for tensor in _tensors(x):
                    check_finite(tensor, f"{key} of the {name} conditioning", TEXT_CAUSES)


def _tensors(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """Walk the tensors of an entry, in lists and dictionaries; models and hooks are left alone."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each, depth - 1)


class NonFiniteGuard:
    """Checks every evaluation of one sampling call; the step after a bad one does not run.

    On a CPU a bad evaluation stops the run itself. On a GPU its flag is copied beside the work and
    read when it is there, most often at the next evaluation, at the latest by `finish`.
    """

    def __init__(self, stage: str):
        """Watch one leg: `stage` is what errors call it, e.g. "before the switch"."""
        self.stage, self.count = stage, 0
        self.pending: deque[tuple[int, Any, Tensor, Any]] = deque()

    def see(self, x0: Tensor, sigma: Any) -> None:
        """Check an evaluation's clean estimate, [B, C, (T,) H, W]; `sigma` is read for errors.

        Raises:
            ValueError: this evaluation, or one before, gave NaN or infinity.
        """
        self._read(wait=False)
        self.count += 1
        self.pending.append((self.count, sigma, *_fetch(is_finite(x0))))
        if x0.device.type == "cpu":
            self._read(wait=True)

    def finish(self) -> None:
        """Check what is left, and wait for it.

        Raises:
            ValueError: an evaluation gave NaN or infinity.
        """
        self._read(wait=True)

    def _read(self, wait: bool) -> None:
        while self.pending:
            number, sigma, flag, arrived = self.pending[0]
            if arrived is not None and not arrived.query():
                if not wait:
                    return
                arrived.synchronize()
            self.pending.popleft()
            if not flag:
                self.pending.clear()
                at = float(sigma.flatten()[0]) if isinstance(sigma, Tensor) else float(sigma)
                raise ValueError(
                    f"expected finite estimates, got NaN or infinity from evaluation {number} "
                    f"{self.stage}, at sigma {at:.3g}; {MODEL_CAUSES}."
                )


def _fetch(flag: Tensor) -> tuple[Tensor, Any]:
    """Start to copy a flag to the CPU: (flag there, event of its arrival).

    None for the event where the device has none of CUDA's; the flag is then read where it is, one
    evaluation late.
    """
    if flag.device.type != "cuda":
        return flag, None
    here = torch.empty((), dtype=torch.bool, pin_memory=True)
    here.copy_(flag, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(flag.device))
    return here, arrived
