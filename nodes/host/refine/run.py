"""Refine a preview: prepare, sample down to zero, compose.

One path for any flow model and for a trained flow-mapping refiner, which in sigma form is one too.

Dims: B batch, C latent channels, T latent frames, H, W latent cells.
"""

from dataclasses import asdict
from typing import Any

import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ....surf_core.flow import interpolate
from ....surf_core.lowband import wavelet_match
from ....surf_core.skip import compose
from ..conditioning import Conditioning, Pixels, with_made_for
from ..finite import MODEL_CAUSES, NonFiniteGuard, check_finite
from ..latents import close_latent, to_intermediate
from ..nested import Parts, split_mask, tensors_of
from ..node import show_status
from ..resume import KeptRun, QueuedNode, keep_run
from ..skip import SkipMask
from .prepare import RefineRun, prepare
from .tiling import PLAN_KEY
from .traits import RefineSettings


def refine(
    model: Any,
    positive: Conditioning,
    negative: Conditioning,
    latent: dict | None,
    settings: RefineSettings,
    *,
    upsample: str,
    vae: Any = None,
    mask: SkipMask | None = None,
    seam: int = 0,
    made_for: Pixels = (0, 0),
    start_image: Tensor | None = None,
    image: Tensor | None = None,
    resume: QueuedNode | None = None,
    **target: Any,
) -> tuple[dict, tuple[int, int], dict[str, Conditioning]]:
    """Turn a preview LATENT into one of the target size.

    Args:
        model: any flow video MODEL; not changed.
        positive, negative: CONDITIONING of the preview; what is bound to its size is resized.
        latent: the preview, in the latent space of `model`, video alone or with audio; not changed.
            None where `image` is the preview.
        settings: how to sample; a trained refiner's own sigma_start and window come first.
        upsample: "pixel" (through `vae`) or "latent".
        mask: what to refine; the rest comes out as the upsampled preview, bit for bit. None, or one
            with nothing to skip: all of it.
        seam: latent cells over which refined parts blend into the rest.
        made_for: height and width in pixels that the conditioning was made for; zeros where the
            latent or a video in the conditioning has it.
        start_image: [F, height, width, 3], the pictures of the first frames that the noise mask
            keeps; None refines these with the rest.
        image: [F, height, width, 3] in 0..1, frames that take the place of the upsampled preview:
            encoded by `vae`, and enlarged before, unless they have the target's size.
        resume: the node in its graph, to save the run by and to go on with one that was killed;
            None saves nothing.
        target: resolution, scale, width and height, as in `target_cells`.

    Returns:
        LATENT with samples [B, C, T, H, W] of the new size, noise mask along, and audio where it
        has some; (height, width) in pixels that were asked for: what a model needs more is to be
        cropped after decoding; and the conditioning at the new size, "positive" and "negative".

    Raises:
        ValueError: anything that does not fit, before a model runs.
    """
    conds = {"positive": positive, "negative": negative}
    run = prepare(
        model, conds, latent, settings, upsample=upsample, vae=vae, mask=mask, seam=seam,
        made_for=made_for, start_image=start_image, image=image, **target,
    )  # fmt: skip
    latent = latent or {}
    out = _compose(run, _sample(run, latent, resume)).joined()
    out = close_latent(latent, to_intermediate(out))
    out = run.frames.counted(out, run.clean.video) if run.frames else out
    return (with_made_for(out, made_for) if all(made_for) else out), run.pixels, run.conds


def _sample(run: RefineRun, latent: dict, resume: QueuedNode | None) -> Parts:
    """Noise the upsampled preview once and follow the flow to 0.

    The host mixes (1 - sigma) * clean + sigma * noise by itself. With time "sigma", clean is the
    upsampled preview and noise is noise. With time "t", noise is the flow map's point at t = 1, the
    preview with its share of noise, and clean is zero; the host's noise mask would paste that zero,
    so it is applied afterwards.
    """
    settings, clean = run.settings, run.clean
    guider = comfy.samplers.CFGGuider(run.model)
    guider.set_conds(run.conds["positive"], run.conds["negative"])
    guider.set_cfg(settings.cfg)
    noise = comfy.sample.prepare_noise(clean.joined(), settings.seed, latent.get("batch_index"))
    start = clean.joined()
    if settings.time == "t":
        end = run.model.model.process_latent_in(clean.video.float())
        noise = interpolate(end, noise.to(end), settings.sigma_start)
        start = torch.zeros_like(end)
    sigmas, guard = settings.sigmas(), NonFiniteGuard("of the refinement")
    kept = None if resume is None else _keep(run, resume, noise, start)
    sampler = comfy.samplers.sampler_object("euler")
    sampler = sampler if kept is None else kept.sampler(sampler)
    first = 0 if kept is None else kept.first
    show = latent_preview.prepare_callback(run.model, settings.steps)
    height, width = run.pixels

    def say(done: int) -> None:
        more = "" if kept is None else kept.said
        show_status(f"{width} x {height}: {done}/{settings.steps} steps{more}")

    def callback(step: int, x0: Any, x: Any, total: int) -> None:
        guard.see(Parts(*tensors_of(x0)).packed(), sigmas[first + step])
        show(first + step, x0, x, total)
        say(first + step + 1)

    say(first)

    out = guider.sample(
        noise,
        start,
        sampler,
        sigmas,
        denoise_mask=run.noise_mask if settings.time == "sigma" else None,
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=settings.seed,
    )
    guard.finish()
    out = Parts(*tensors_of(out))
    check_finite(out.packed(), "what the sampler made", MODEL_CAUSES)
    if kept is not None:
        kept.finish()
    if run.noise_mask is None or settings.time == "sigma":
        return out
    outside = 1 - comfy.sampler_helpers.prepare_mask(
        run.noise_mask, out.video.shape, out.video.device
    )
    return Parts(out.video + outside * (clean.video.to(out.video) - out.video))


def _keep(run: RefineRun, resume: QueuedNode, noise: Any, start: Any) -> KeptRun:
    """Begin or take up the run that these noise and clean latents are of."""
    parts, weights = Parts(*tensors_of(noise)), run.weights
    sampled = {
        "noise": parts.tensors, "start": tensors_of(start), "conds": run.conds,
        "mask": tensors_of(run.noise_mask), "settings": asdict(run.settings),
        "keep": None if weights is None else [weights.hard, weights.soft],
    }  # fmt: skip
    return keep_run(
        resume, sampled, run.model.load_device, tuple(parts.packed().shape),
        run.model.get_attachment(PLAN_KEY), run.settings.steps,
    )  # fmt: skip


def _compose(run: RefineRun, out: Parts) -> Parts:
    """Match colours where the noise mask lets change, and put back what the skip mask skips.

    Audio that was not to be refined comes back as it was: the host returns it rounded.
    """
    video = out.video
    if run.settings.colour_match:
        matched, mask = (
            wavelet_match(video, run.clean.video.to(video)),
            split_mask(run.noise_mask)[0],
        )
        if mask is None:
            video = matched
        else:
            changing = comfy.sampler_helpers.prepare_mask(mask, video.shape, video.device)
            video = video.lerp(matched, changing.to(video))
    if run.weights is not None:
        video = compose(video, run.clean.video, run.weights.hard)
    return Parts(video, run.clean.audio if run.keeps_audio else out.audio)
