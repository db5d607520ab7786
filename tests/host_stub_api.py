"""The fake host's node API: schemas as the pack declares them, and pictures shown in a node, noted.

Installed by host_stub.py.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace


class Input:
    io_type = ""

    def __init__(
        self, id, display_name=None, optional=False, tooltip=None, extra_dict=None, advanced=None,
        default=None, options=None, min=None, max=None, step=None, round=None,
        control_after_generate=None, force_input=None,
    ):  # fmt: skip
        self.__dict__.update({k: v for k, v in locals().items() if k != "self"})

    def get_io_type(self):
        return self.io_type


class Output:
    io_type = ""

    def __init__(self, id=None, display_name=None, tooltip=None, is_output_list=False):
        self.id, self.display_name, self.tooltip = id, display_name or id, tooltip
        self.is_output_list = is_output_list

    def get_io_type(self):
        return self.io_type


def socket(io_type):
    kinds = {"Input": Input, "Output": Output}
    return SimpleNamespace(**{n: type(n, (k,), {"io_type": io_type}) for n, k in kinds.items()})


@dataclass
class Schema:
    node_id: str
    display_name: str = None
    category: str = "sd"
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    description: str = ""
    is_experimental: bool = False
    is_input_list: bool = False


class NodeOutput:
    def __init__(self, *args, ui=None):
        self.args, self.ui = args, ui


def types():
    """Name -> the host's class of a type of sockets."""
    plain = ("Model", "Conditioning", "Latent", "Guider", "Vae", "Image", "Audio", "Video")
    named = ("Int", "Float", "Combo", "Boolean", "String")
    made = {name: socket(name.upper()) for name in plain + named}
    return made | {"ClipVisionOutput": socket("CLIP_VISION_OUTPUT")}


io = SimpleNamespace(
    Schema=Schema, NodeOutput=NodeOutput, ComfyNode=object, Input=Input, Output=Output,
    Custom=socket, Hidden=SimpleNamespace(
        prompt="PROMPT", extra_pnginfo="EXTRA_PNGINFO", dynprompt="DYNPROMPT"
    ),
    FolderType=SimpleNamespace(temp="temp"), **types(),
)  # fmt: skip

SAVED = []
"""(folder, frames) of every moving picture."""


class ImageSaveHelper:
    @staticmethod
    def save_animated_webp(
        images, filename_prefix, folder_type, cls, fps, lossless, quality, method
    ):
        SAVED.append((folder_type, images.clone()))
        return {"filename": f"{filename_prefix}.webp", "subfolder": "", "type": folder_type}


@dataclass
class SavedImages:
    results: list
    is_animated: bool = False


class VideoFromFile:
    def __init__(self, file):
        self.file = file


InputImpl = SimpleNamespace(VideoFromFile=VideoFromFile)
ui = SimpleNamespace(ImageSaveHelper=ImageSaveHelper, SavedImages=SavedImages)
