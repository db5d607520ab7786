"""A node pack for the host tests: random CONDITIONING in place of text encoders of many gigabytes.

Copied to custom_nodes; the host reads NODE_CLASS_MAPPINGS.
"""

import torch


class RandomConditioning:
    """Emits what a text encoder would, of the width that the model asks for."""

    CATEGORY = "testing"
    FUNCTION = "make"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        number = ("INT", {"default": 0, "min": 0, "max": 65536})
        return {"required": {"seed": number, "width": number, "pooled_width": number}}

    def make(self, seed, width, pooled_width):
        generator = torch.Generator().manual_seed(seed)
        extra = {}
        if pooled_width:
            extra["pooled_output"] = torch.randn(1, pooled_width, generator=generator)
        return ([[torch.randn(1, 8, width, generator=generator), extra]],)


NODE_CLASS_MAPPINGS = {"RandomConditioning": RandomConditioning}
