"""Encode pixels to latents and back: a linear codec, Wan's VAE, or any other object.

Dims: B batch, F pixel frames, T latent frames, H, W pixels, h, w latent cells.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..tiny import codec as tiny_codec

WAN_EXTRA = 'install it with: pip install "surf-video[wan]"'


class LatentCodec(Protocol):
    """Interface of a codec; a VAE with these members is one."""

    @property
    def name(self) -> str:
        """Name in the folder's options: another name is another folder."""

    @property
    def cell(self) -> int:
        """Pixels along a side of a latent cell."""

    def encode(self, video: Tensor) -> Tensor:
        """Pixels [B, 3, F, H, W] in -1..1 -> latent [B, C, T, H / cell, W / cell]."""

    def decode(self, latent: Tensor) -> Tensor:
        """Latent -> pixels, in about -1..1."""


@dataclass(frozen=True, slots=True)
class TinyCodec:
    """The linear codec of drawn clips: a latent frame is a frame, a cell 4 x 4 pixels."""

    name: str = "tiny"
    cell: int = tiny_codec.CELL

    def encode(self, video: Tensor) -> Tensor:
        return tiny_codec.encode(video)

    def decode(self, latent: Tensor) -> Tensor:
        return tiny_codec.decode(latent)


class WanCodec:
    """A diffusers `AutoencoderKLWan`, with the latents that the diffusion model sees.

    The mean of the posterior is taken, not a sample, and each channel is brought to mean 0 and
    deviation 1 by the VAE's own numbers.

    Args:
        vae: the module, or one with the same methods and config.
        name: see `LatentCodec`.
    """

    def __init__(self, vae: Any, name: str = "wan"):
        self.vae, self.name = vae, name
        self.cell = int(getattr(vae.config, "scale_factor_spatial", None) or 8)
        self._mean, self._deviation = (
            torch.tensor(values).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )

    def _place(self) -> dict:
        weight = next(self.vae.parameters())
        return {"device": weight.device, "dtype": weight.dtype}

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        latent = self.vae.encode(video.to(**self._place())).latent_dist.mode()
        return (latent.float() - self._mean.to(latent.device)) / self._deviation.to(latent.device)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        device = self._place()["device"]
        scaled = latent.to(device).float() * self._deviation.to(device) + self._mean.to(device)
        return self.vae.decode(scaled.to(**self._place())).sample.float()


def stable_name(spec: object) -> str:
    """Return the name of a codec, text encoder or scorer for the options, without local paths."""
    if not isinstance(spec, str):
        name = getattr(spec, "name", None) or getattr(spec, "__name__", type(spec).__name__)
        return str(name)
    kind, _, rest = spec.partition(":")
    return f"{kind}:{Path(rest).name}" if kind in ("wan", "umt5") else spec


def named(spec: str, what: str) -> Any:
    """Import the object that "package.module:attribute" names.

    Raises:
        ValueError: no such module or attribute.
    """
    module, _, attribute = spec.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"expected a {what} as package.module:attribute, got {spec!r} ({error}); "
            "check the name, and that the package is installed."
        ) from error


def load_codec(spec: Any, device: str = "cpu") -> LatentCodec:
    """Load a codec.

    Args:
        spec: "tiny"; "wan:FOLDER", a local diffusers model or its vae; "module:function", called
            without arguments; or an object with encode, decode, name and cell.
        device: where Wan's VAE works.

    Raises:
        ValueError: none of these.
        ImportError: diffusers is missing.
    """
    codec: Any
    if not isinstance(spec, str):
        codec = spec
    elif spec == "tiny":
        codec = TinyCodec()
    elif spec.startswith("wan:"):
        codec = _wan(spec, device)
    else:
        codec = named(spec, "codec")()
    if missing := [one for one in ("name", "cell", "encode", "decode") if not hasattr(codec, one)]:
        raise ValueError(
            f"expected a codec with name, cell, encode and decode, got {type(codec).__name__} "
            f"without {', '.join(missing)}; wrap it in a class that has them."
        )
    return codec


def _wan(spec: str, device: str) -> WanCodec:
    try:
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise ImportError(f"Wan's VAE needs diffusers, which is missing; {WAN_EXTRA}") from error
    folder = Path(spec.removeprefix("wan:"))
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    if not folder.is_dir():
        raise ValueError(
            f"expected a folder with Wan's VAE in diffusers' format, got {str(folder)!r}; download "
            "the model first and name its folder."
        )
    vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    return WanCodec(vae.to(device).eval().requires_grad_(False), stable_name(spec))
