"""List the nodes of the pack."""

from comfy_api.latest import ComfyExtension, io

from .colour import SurfColourMatch
from .compile import SurfCompile
from .decode import SurfDecodeVideo, SurfVAEDecode
from .draft_files import SurfLoadDraft, SurfSaveDraft
from .drafts import SurfDrafts, SurfFinishDraft, SurfStartDrafts
from .guiders import SurfReshiftAnyGuider, SurfReshiftLadder
from .image_to_video import SurfImageToVideo
from .loader import SurfRefinerLoader
from .plan import SurfPlan
from .preview import SurfLatentDownscale, SurfReshiftGuider, SurfReshiftKSampler
from .refine import SurfRefiner
from .seedvr2 import SurfSeedVR2Skip
from .signature import SurfSignature
from .skip import SurfSkipMask
from .tiny import SurfTinyModels, SurfTinyPrompt
from .windows import SurfWindowedAttention


class SurfExtension(ComfyExtension):
    """Entry point of the host for the list of nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            SurfReshiftKSampler,
            SurfReshiftGuider,
            SurfReshiftAnyGuider,
            SurfReshiftLadder,
            SurfLatentDownscale,
            SurfRefiner,
            SurfRefinerLoader,
            SurfWindowedAttention,
            SurfColourMatch,
            SurfTinyModels,
            SurfTinyPrompt,
            SurfSkipMask,
            SurfSeedVR2Skip,
            SurfCompile,
            SurfVAEDecode,
            SurfDecodeVideo,
            SurfImageToVideo,
            SurfSignature,
            SurfStartDrafts,
            SurfDrafts,
            SurfFinishDraft,
            SurfSaveDraft,
            SurfLoadDraft,
            SurfPlan,
        ]
