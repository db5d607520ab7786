"""Encode a caption to text tokens: of drawn clips, or by umt5.

Dims: L tokens, D width.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..tiny.prompt import encode_prompt
from .codecs import WAN_EXTRA, named, stable_name

WAN_LENGTH = 512
"""Tokens that a caption is cut at. Source: Wan 2.1."""


class Text(Protocol):
    """Interface of a text encoder."""

    name: str
    """Name in the folder's options."""

    def __call__(self, caption: str) -> Tensor:
        """Caption -> [L, D]. ValueError where it does not know the words."""


class TinyText:
    """Captions of drawn clips: a token a phrase."""

    name = "tiny"

    def __call__(self, caption: str) -> Tensor:
        return encode_prompt(caption)[0]


class Umt5Text:
    """Wan 2.1's text encoder through transformers: the tokens of the caption, without the filling.

    Args:
        tokenizer: of the encoder.
        encoder: an `UMT5EncoderModel`.
        name: see `Text`.
    """

    def __init__(self, tokenizer: Any, encoder: Any, name: str = "umt5"):
        self.tokenizer, self.encoder, self.name = tokenizer, encoder, name

    @torch.no_grad()
    def __call__(self, caption: str) -> Tensor:
        tokens = self.tokenizer(
            [caption], max_length=WAN_LENGTH, truncation=True, return_tensors="pt"
        )
        device = next(self.encoder.parameters()).device
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        return self.encoder(ids, attention_mask=mask).last_hidden_state[0].float()


def load_text(spec: Any, device: str = "cpu") -> Text | None:
    """Load a text encoder.

    Args:
        spec: "tiny"; "none"; "umt5:FOLDER", a local diffusers model or a folder with `tokenizer`
            and `text_encoder`; "module:function", called without arguments; or an object.
        device: where umt5 works.

    Raises:
        ValueError: none of these.
        ImportError: transformers is missing.
    """
    if spec == "none":
        return None
    encoder: Any
    if not isinstance(spec, str):
        encoder = spec
    elif spec == "tiny":
        encoder = TinyText()
    elif spec.startswith("umt5:"):
        encoder = _umt5(spec, device)
    else:
        encoder = named(spec, "text encoder")()
    if not callable(encoder) or not hasattr(encoder, "name"):
        raise ValueError(
            f"expected a text encoder that is called with a caption and has a name, got "
            f"{type(encoder).__name__}; wrap it in a class that has both."
        )
    return encoder


def _umt5(spec: str, device: str) -> Umt5Text:
    try:
        from transformers import AutoTokenizer, UMT5EncoderModel
    except ImportError as error:
        raise ImportError(f"umt5 needs transformers, which is missing; {WAN_EXTRA}") from error
    folder = Path(spec.removeprefix("umt5:"))
    if not (folder / "tokenizer").is_dir() or not (folder / "text_encoder").is_dir():
        raise ValueError(
            f"expected a folder with tokenizer/ and text_encoder/, got {str(folder)!r}; download "
            "Wan in diffusers' format first and name its folder."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = UMT5EncoderModel.from_pretrained(
        folder / "text_encoder", torch_dtype=torch.bfloat16, local_files_only=True
    )
    return Umt5Text(tokenizer, encoder.to(device).eval(), stable_name(spec))
