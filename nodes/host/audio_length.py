"""Tell how long the audio of a video is in latents, and refuse one of another length.

Dims: T latent frames.
"""

from typing import Any

from .nested import Parts, needs_audio

FRAMES_PER_TOKEN = (1, 4, 4, 4, 4)
"""Pixel frames of MiniMax H3's latent frames, again and again."""
SOUND_PER_FRAME = 40 / 24
"""Audio latents of MiniMax H3 in a pixel frame."""
SLACK = 0.05
"""Share by which LTX-2's audio may differ: 24 and 25 frames a second are 4 % apart."""


def pixel_frames(frames: int) -> int:
    """Count the pixel frames of so many latent frames of MiniMax H3."""
    return sum(FRAMES_PER_TOKEN[index % len(FRAMES_PER_TOKEN)] for index in range(frames))


def check_length(model: Any, parts: Parts) -> None:
    """Refuse what MiniMax H3 cannot sample: several videos, or sound of another length.

    Raises:
        ValueError: names what fits.
    """
    if not needs_audio(model) or parts.audio is None:
        return
    if len(parts.video) != 1:
        raise ValueError(
            f"expected one video for MiniMax H3, got a batch of {len(parts.video)}; take one out "
            "with Latent From Batch, and queue the others with other seeds."
        )
    frames, latents = parts.video.shape[2], parts.audio.shape[-1]
    fits = round(pixel_frames(frames) * SOUND_PER_FRAME)
    if latents != fits:
        raise ValueError(
            f"expected sound as long as the video, {fits} audio latents for {frames} latent "
            f"frames, got {latents}; make both with MiniMaxH3ImageToVideo or "
            "EmptyMiniMaxH3LatentAV, whose length is 17 k + 5."
        )


def check_frame_rate(model: Any, parts: Parts, conds: dict[str, Any], guides: int) -> None:
    """Refuse audio of LTX-2 that is not as long as its video, by more than a latent frame.

    Args:
        conds: CONDITIONING by name; the frame rate is in it.
        guides: latent frames behind the video's.

    Raises:
        ValueError: names the latents that would fit.
    """
    patchifier = getattr(model.model.diffusion_model, "a_patchifier", None)
    rates = [entry[1]["frame_rate"] for cond in conds.values() for entry in cond
             if entry[1].get("frame_rate")]  # fmt: skip
    if patchifier is None or parts.audio is None or not rates:
        return
    per_latent = patchifier.hop_length * patchifier.audio_latent_downsample_factor
    per_frame = patchifier.sample_rate / per_latent / rates[0]
    frames, latents = 8 * (parts.video.shape[2] - guides) - 7, parts.audio.shape[2]
    fits = frames * per_frame
    if abs(latents - fits) > 8 * per_frame + SLACK * fits:
        raise ValueError(
            f"expected sound as long as the video, about {round(fits)} audio latents for {frames} "
            f"frames at {rates[0]:g} a second, got {latents}; join the audio of this video, or set "
            "the frame rate with LTXVConditioning."
        )
