"""SURF for ComfyUI: fast high-resolution video from a low-resolution preview."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import SurfExtension

    return SurfExtension()
