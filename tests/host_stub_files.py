"""The fake host's folders and previews of latents. Installed by host_stub.py."""

import os
import re
import tempfile
from types import SimpleNamespace

import torch

FOLDERS = {
    name: tempfile.mkdtemp(prefix=f"stub_{name}_") for name in ("input", "output", "temp", "user")
}
"""Folders of this process; a test may put others here."""


def get_input_directory():
    return FOLDERS["input"]


def get_output_directory():
    return FOLDERS["output"]


def get_temp_directory():
    return FOLDERS["temp"]


def get_user_directory():
    return FOLDERS["user"]


def get_directory_by_type(type_name):
    return FOLDERS.get(type_name)


folder_names_and_paths = {}


def get_full_path(folder_name, filename):
    for folder in folder_names_and_paths[folder_name][0]:
        path = os.path.join(folder, filename)
        if os.path.isfile(path):
            return path
    return None


def annotated_filepath(name):
    found = re.fullmatch(r"(.*?) ?\[(input|output|temp)\]", name)
    return (found[1], FOLDERS[found[2]]) if found else (name, None)


def get_save_image_path(filename_prefix, output_dir, image_width=0, image_height=0):
    subfolder, filename = os.path.split(os.path.normpath(filename_prefix))
    folder = os.path.join(output_dir, subfolder)
    if os.path.commonpath((output_dir, os.path.abspath(folder))) != output_dir:
        raise Exception("Saving image outside the output folder is not allowed.")
    os.makedirs(folder, exist_ok=True)
    found = [re.fullmatch(rf"{re.escape(filename)}_(\d+).*", name) for name in os.listdir(folder)]
    counter = max([0, *(int(match[1]) for match in found if match)]) + 1
    return folder, filename, counter, subfolder, filename_prefix


class Image:
    """What the nodes use of the imaging library's class."""

    def __init__(self, rgb):
        self.rgb, self.size = rgb, (rgb.shape[1], rgb.shape[0])

    def convert(self, mode):
        assert mode == "RGB"
        return self

    def tobytes(self):
        return bytes(self.rgb.flatten().tolist())


class Latent2RGBPreviewer:
    def __init__(
        self, latent_rgb_factors, latent_rgb_factors_bias=None, latent_rgb_factors_reshape=None
    ):
        self.factors = torch.tensor(latent_rgb_factors)

    def decode_latent_to_preview(self, x0):
        image = torch.einsum("crw,cd->rwd", x0[0, :, 0] if x0.ndim == 5 else x0[0], self.factors)
        return Image(((image + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8))


def get_previewer(device, latent_format):
    """Previews are off, as they are unless the user turns them on."""


def contents(formats):
    """Module name -> members, for host_stub.install; formats by channels."""
    base = formats[16].__mro__[-2]
    names = ("get_input_directory", "get_output_directory", "get_temp_directory",
             "get_directory_by_type", "annotated_filepath", "get_save_image_path",
             "get_user_directory", "get_full_path", "folder_names_and_paths")  # fmt: skip
    return {
        "comfy.cli_args": {"args": SimpleNamespace(disable_metadata=False)},
        "comfyui_version": {"__version__": "0.0.0"},
        "comfy.latent_formats": {"LatentFormat": base},
        "folder_paths": {name: globals()[name] for name in names},
        "latent_preview": {
            "Latent2RGBPreviewer": Latent2RGBPreviewer,
            "get_previewer": get_previewer,
        },
    }
