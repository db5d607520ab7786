"""What appears in the graph: the one list of nodes."""

from comfy_api.latest import ComfyExtension, io

from .preview import SurfLatentDownscale, SurfReshiftGuider, SurfReshiftKSampler
from .refine import SurfRefiner


class SurfExtension(ComfyExtension):
    """What the host asks for when it loads the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [SurfReshiftKSampler, SurfReshiftGuider, SurfLatentDownscale, SurfRefiner]
