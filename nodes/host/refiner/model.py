"""Our refiner as a model of the host: network, BaseModel, and the entry of its loader.

Dims: B batch, C latent channels, T latent frames, H, W latent cells, L text tokens.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.ldm.common_dit
import comfy.model_base
import comfy.model_management
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ....surf_core import cost
from ....surf_core.refiner import RefinerConfig, SurfRefinerDiT, kitchen
from ....surf_core.refiner.fused import eager
from ....surf_core.resample import cell_pixels
from ....surf_core.window import backend, grouped
from ..attention import HostAttention, kept_tokens
from ..compiling import outside_graphs
from ..node import name_error

NODE = "Surf Refiner"
"""Named by errors of the network, which other nodes may run as well."""
ATTENTION_KEY = "surf_attention"
"""Where transformer_options carry the name of the attention of the windows."""
SIGMA_START_KEY = "surf_sigma_start"
"""Where transformer_options carry sigma_start, for a network conditioned on it."""
HOST_ATTENTION = "host"
FORMATS = {16: comfy.latent_formats.Wan21, 48: comfy.latent_formats.Wan22}
"""Latent channels -> the latent space that our refiners of that many are trained in."""


def host_layers(
    operations: Any, device: torch.device | None, dtype: torch.dtype
) -> SimpleNamespace:
    """Return the host's layers as surf_core's factory, with device and dtype filled in.

    Eight bits are for the linear maps. Norms and the patch embedding stay in fp32, as in the host's
    own Wan: they are few, and each scales a whole channel.
    """
    exact = torch.float32 if dtype.itemsize == 1 else dtype

    def fill(kind: str, dtype: torch.dtype):
        return partial(getattr(operations, kind), device=device, dtype=dtype)

    return SimpleNamespace(
        Linear=fill("Linear", dtype),
        Conv3d=fill("Conv3d", exact),
        LayerNorm=fill("LayerNorm", exact),
        RMSNorm=fill("RMSNorm", exact),
    )


class HostRefinerDiT(SurfRefinerDiT):
    """SurfRefinerDiT with the call of the host's diffusion models.

    Args:
        config: from the file.
        dtype, device, operations: from the host's loader.
    """

    def __init__(self, config: RefinerConfig, dtype=None, device=None, operations=None):
        attention = HostAttention()
        super().__init__(
            config, host_layers(operations, device, dtype), attention, kitchen() or eager
        )
        self.dtype = dtype
        self.patch_size = config.patch
        self.packings = {HOST_ATTENTION: grouped(attention)}
        for index, block in enumerate(self.blocks):
            block.register_forward_pre_hook(partial(_set_block_index, attention, index))

    def forward(
        self, x: Tensor, timestep: Tensor, context=None, transformer_options=None, **kwargs
    ) -> Tensor:
        """Predict the velocity of x [B, C, T, H, W]; other arguments of the host are ignored.

        Args:
            timestep: [B], 0..1000.
            context: [B, L, text_dim].

        Raises:
            ValueError: no text, or one of another width.
        """
        options = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._predict, self, wrappers)
        # Options last among the positional ones, where the host's step cache looks for them.
        return executor.execute(x, timestep, context, options, **kwargs)

    def _predict(self, x: Tensor, timestep: Tensor, context, transformer_options, **kwargs):
        check_text(context, self.config.text_dim)
        self.packed = self._packed_by(transformer_options.get(ATTENTION_KEY, HOST_ATTENTION))
        padded = comfy.ldm.common_dit.pad_to_patch_size(x, self.patch_size)
        blocks = {"total_blocks": len(self.blocks), "block_type": "double"}
        self.attention.options = {**transformer_options, **blocks}
        try:
            sigma = transformer_options.get(SIGMA_START_KEY)
            sigma_start = None if sigma is None else torch.full_like(timestep, sigma)
            keep = kept_tokens(x, transformer_options, self.patch_size)
            out = super().forward(padded, timestep, context, sigma_start, keep)
        finally:
            self.attention.options = {}
        return out[..., : x.shape[-3], : x.shape[-2], : x.shape[-1]]

    def _packed_by(self, name: str):
        if name not in self.packings:
            self.packings[name] = outside_graphs(backend(name), recursive=True)
        return self.packings[name]


def check_text(context: Tensor | None, width: int) -> None:
    """Refuse conditioning without text of the network's width.

    Args:
        context: [B, L, text_dim], or None where conditioning holds no text.
        width: the text_dim of the network.

    Raises:
        ValueError: no text, or one of another width.
    """
    if context is None:
        text = (
            "expected conditioning with text, got none; connect the prompt, or an empty one: CLIP "
            "Text Encode without text."
        )
        raise name_error(ValueError(text), NODE)
    if context.shape[-1] != width:
        text = (
            f"expected text of {width} channels, got {context.shape[-1]}; use the text encoder "
            "that this refiner was trained with (umt5-xxl, type wan, for 4096)."
        )
        raise name_error(ValueError(text), NODE)


def _set_block_index(attention: HostAttention, index: int, module, args) -> None:
    """Put the block's index into the options of an attention override, as the host's models do."""
    attention.options["block_index"] = index


class SurfRefinerModel(comfy.model_base.BaseModel):
    """A flow model that estimates its memory from its windows."""

    def __init__(self, model_config, device=None):
        super().__init__(
            model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=HostRefinerDiT
        )

    def extra_conds(self, **kwargs) -> dict:
        """Return those of the base, but the text as it is, not repeated to a common length."""
        out = super().extra_conds(**kwargs)
        text = kwargs.get("cross_attn")
        if text is not None:
            out["c_crossattn"] = comfy.conds.CONDRegular(text)
        return out

    def memory_required(self, input_shape, *args, **kwargs) -> float:
        """Estimate the bytes of activations for a latent [B, C, T, H, W], run window by window."""
        batch, channels, frames, rows, cols = input_shape
        cell = cell_pixels(channels) or 8
        shape = cost.ModelShape.of(self.diffusion_model.config, cell_pixels=cell)
        return cost.activation_bytes(
            shape, 1 + (frames - 1) * shape.cell_frames, rows * cell, cols * cell,
            self.diffusion_model.window, batch=batch,
            itemsize=comfy.model_management.dtype_size(self.manual_cast_dtype or self.get_dtype()),
        )  # fmt: skip


class RefinerSupport(comfy.supported_models_base.BASE):
    """The entry of a refiner's file in the host's table of models.

    Raises:
        ValueError: latent channels of no known latent space.
    """

    unet_extra_config = {}
    sampling_settings = {"shift": 1.0}
    supported_inference_dtypes = [torch.float16, torch.bfloat16, torch.float32]

    def __init__(self, config: RefinerConfig):
        super().__init__({"config": config})
        if config.latent_channels not in FORMATS:
            raise ValueError(
                f"expected a refiner of 16 (Wan 2.1) or 48 (Wan 2.2 5B) latent channels, "
                f"got {config.latent_channels}; its latents are those of no model of the host."
            )
        self.latent_format = FORMATS[config.latent_channels]()
        self.memory_usage_factor = config.dim / 2222

    def get_model(self, state_dict, prefix="", device=None) -> SurfRefinerModel:
        return SurfRefinerModel(self, device=device)
