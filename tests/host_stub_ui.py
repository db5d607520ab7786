"""The part of the fake host that shows pictures in a node: it notes them instead."""

from dataclasses import dataclass

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
