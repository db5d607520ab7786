"""Surf Compile: run the blocks of a model compiled by torch."""

from comfy_api.latest import io

from .host.compiling import with_compiled_blocks
from .host.node import checks_inputs, declare, names_errors


class SurfCompile(io.ComfyNode):
    """Clone a model so that torch compiles its blocks, one code for all of them."""

    @classmethod
    def define_schema(cls):
        return declare(
            io.Schema,
            node_id="SurfCompile",
            display_name="Surf Compile",
            category="SURF",
            description=(
                "For fewer kernels between matrix products: runs the transformer blocks of a model "
                "compiled by torch. Sizes, windows and masks may change from run to run: what was "
                "compiled serves all of them. The first run takes longer. The model itself stays "
                "as it is."
            ),
            search_aliases=["surf", "torch.compile", "inductor", "speed up", "TorchCompileModel"],
            is_experimental=True,
            inputs=[
                declare(
                    io.Model.Input, "model",
                    tooltip="A refiner from Surf Refiner Loader, Wan, HunyuanVideo, or another "
                    "model of blocks in a row. LoRAs go before or after this node.",
                ),
            ],
            outputs=[
                declare(
                    io.Model.Output, "model",
                    tooltip="A clone with compiled blocks, for any sampler, for Surf Refiner, "
                    "Surf Windowed Attention and Surf Skip Mask.",
                )
            ],
        )  # fmt: skip

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, model) -> io.NodeOutput:
        """Clone; the blocks are compiled when the model runs, from their arguments then."""
        return io.NodeOutput(with_compiled_blocks(model))
