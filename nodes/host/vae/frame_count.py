"""Count the frames of a video in latents, and remember how many are its own.

A video VAE takes whole groups of frames, 4 n + 1 for Wan. A video of another count is filled up
with its last frame, and its LATENT carries the count, so that Surf VAE Decode cuts the rest off.

Dims: B batch, T latent frames, F pixel frames.
"""

from typing import Any

from torch import Tensor

from ..node import NodeLog

log = NodeLog(__name__)

KEY = "surf_frames"
"""Key of a LATENT: frames of the video; more that it decodes to are repeats of the last."""


def frames_of(vae: Any, latent_frames: int) -> int:
    """Count the frames that latent frames decode to."""
    ratio = getattr(vae, "upscale_ratio", None)
    if isinstance(ratio, tuple) and callable(ratio[0]):
        return ratio[0](latent_frames)
    return 1 + (latent_frames - 1) * (vae.temporal_compression_decode() or 1)


def latent_frames_for(vae: Any, frames: int) -> int:
    """Count the latent frames that hold so many frames; the last one may have room for more."""
    count = 1
    while frames_of(vae, count) < frames:
        count += 1
    return count


def with_frame_count(latent: dict, vae: Any, frames: int) -> dict:
    """Return a LATENT that carries the count of its frames where it decodes to more, and say so."""
    held = frames_of(vae, latent_frames_for(vae, frames))
    if held == frames:
        return {key: value for key, value in latent.items() if key != KEY}
    log.info(
        "%d frames are filled up to the VAE's %d with the last one; Surf VAE Decode cuts these "
        "off again.", frames, held,
    )  # fmt: skip
    return {**latent, KEY: frames}


def kept_frames(latent: dict, samples: Tensor, vae: Any) -> int | None:
    """Return the frames of a video before it was filled up; None where nothing is known of it.

    A count that does not belong to the latent, which other nodes have cut, is passed over.

    Args:
        samples: the latent's video.
    """
    count = latent.get(KEY)
    if not isinstance(count, int) or count < 1 or samples.ndim != 5:
        return None
    return count if latent_frames_for(vae, count) == samples.shape[2] else None


def cut_frames(latent: dict, samples: Tensor, vae: Any, decoded: Tensor) -> Tensor:
    """Cut off the frames that a video was filled up with: [B * F, rows, columns, channels]."""
    count = kept_frames(latent, samples, vae)
    if count is None:
        return decoded
    videos = decoded.unflatten(0, (len(samples), -1))
    if videos.shape[1] <= count:
        return decoded
    log.info("%d of %d frames, as many as the video has.", count, videos.shape[1])
    return videos[:, :count].flatten(0, 1)
