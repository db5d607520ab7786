"""Check a MODEL, read its sizes, and clone it with another schedule.

Dims: H, W latent cells.
"""

import copy
import inspect
from typing import Any

import comfy.model_base
import comfy.model_sampling
from torch import Tensor

from ...surf_core.checks import check_choice
from ...surf_core.resample import cell_pixels, target_size
from .node import NodeLog

log = NodeLog(__name__)

COMPILED = "torch_compile_kwargs"
"""Option of a model under which the host keeps how it is compiled."""
STEP_CACHES = ("easycache", "lazycache")
"""Keys of the host's own wrappers that reuse the estimate of an earlier step."""
NOISE_SHUFFLE = "ContextWindows_sampler_sample"
"""Key of the host's wrapper that applies FreeNoise."""
H3_SHIFT = "minimax_h3_sigma_shift"
"""How the host's transformer_options begin that name MiniMax H3's shifts, of video and audio."""
TARGETS = ("1080p", "720p", "by scale", "by size", "1440p", "2160p")
"""Ways to name the size of a refined video, see `target_cells`; saved workflows know the order."""
PADDING = ("WanModel", "HostRefinerDiT")
"""Networks that pad a latent, and all that lies on its grid, to whole patches by themselves."""


def uncompiled(module):
    """Return the model inside a torch.compile wrapper."""
    return getattr(module, "_orig_mod", module)


def check_flow(model: Any) -> None:
    """Refuse a model that is not a rectified flow: the re-noise of SURF is linear in sigma."""
    sampling = model.get_model_object("model_sampling")
    odd = getattr(comfy.model_sampling, "IMG_TO_IMG_FLOW", ())
    if not isinstance(sampling, comfy.model_sampling.CONST) or isinstance(sampling, odd):
        raise ValueError(
            f"expected a flow model such as Wan or HunyuanVideo, got a "
            f"{type(model.model).__name__} that samples as {_bases(sampling)}; "
            "connect a flow model."
        )
    check_audio_schedule(model)


def check_audio_schedule(model: Any) -> None:
    """Refuse a schedule of one shift on a model whose sound has a shift of its own: MiniMax H3.

    The host would fail on it in the first evaluation.
    """
    sampling = model.get_model_object("model_sampling")
    if hasattr(model.model, "audio_scale") and not hasattr(sampling, "audio_scale"):
        raise ValueError(
            f"expected a schedule with a shift for the sound, which {type(model.model).__name__} "
            f"needs, got one that samples as {_bases(sampling)}; take ModelSamplingSD3 out, or use "
            "ModelSamplingMiniMaxH3."
        )


def check_guarded(model: Any) -> None:
    """Reject TorchCompileModel, under which a changed mask would be ignored."""
    if ignores_options(model):
        raise ValueError(
            "expected a model that notices a mask, got one from TorchCompileModel; take "
            "that node out, or leave out the mask."
        )


def ignores_options(model: Any) -> bool:
    """Say whether a MODEL was compiled without guards on transformer_options."""
    options = (model.model_options.get(COMPILED) or {}).get("options")
    # torch takes the filter out of the options, and leaves none of them.
    return options is not None and (not options or "guard_filter_fn" in options)


def _bases(sampling: Any) -> str:
    names = [c.__name__ for c in type(sampling).__mro__ if c.__module__ == "comfy.model_sampling"]
    return " + ".join(names) or type(sampling).__name__


def with_shift(model: Any, shift: float) -> Any:
    """Clone a MODEL with another timestep shift; its multiplier, class and shift of sound stay.

    Args:
        shift: of the flow schedule; 0 leaves the model as it is.

    Returns:
        `model` itself for 0, else a clone that shares its weights.

    Raises:
        ValueError: the model's schedule has no shift of this kind (e.g. Flux).
    """
    if shift == 0:
        return model
    own = model.get_model_object("model_sampling")
    if not isinstance(own, comfy.model_sampling.ModelSamplingDiscreteFlow):
        raise ValueError(
            f"expected a model whose schedule has a shift, got {_bases(own)} and {shift=}; "
            "set the shift to 0 to leave the model's own schedule."
        )
    new = copy.deepcopy(own)
    parameters = {"shift": shift, "timesteps": len(own.sigmas)}
    parameters["audio_shift"] = getattr(own, "audio_shift", None)
    accepted = inspect.signature(new.set_parameters).parameters
    if "multiplier" in accepted:
        parameters["multiplier"] = own.multiplier
    new.set_parameters(**{key: value for key, value in parameters.items() if key in accepted})
    clone = model.clone()
    clone.add_object_patch("model_sampling", new)
    if parameters["audio_shift"] is not None:
        _tell_shifts(clone, shift, parameters["audio_shift"])
    return clone


def _tell_shifts(clone: Any, video: float, audio: float) -> None:
    """Tell MiniMax H3's network the shifts, from which it finds the noise level of the sound."""
    said = {f"{H3_SHIFT}_video": video, f"{H3_SHIFT}_audio": audio}
    options = clone.model_options.get("transformer_options", {})
    clone.model_options = {**clone.model_options, "transformer_options": {**options, **said}}


def with_shifts_of(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return model options that tell the shifts of a MODEL, where it tells any."""
    told = model.model_options.get("transformer_options", {})
    shifts = {key: value for key, value in told.items() if str(key).startswith(H3_SHIFT)}
    if not shifts:
        return options
    own = options.get("transformer_options", {})
    return {**options, "transformer_options": {**own, **shifts}}


def without_step_caches(model: Any) -> Any:
    """Clone a MODEL without the host's step caches, or return it when it has none.

    The clean estimate that crosses the switch must come from the network: a cache may return that
    of an earlier step.
    """
    clone, caches = _without(model, STEP_CACHES)
    if caches:
        log.info("%s is off before the switch, on after it.", " and ".join(caches))
    return clone


def without_noise_shuffle(model: Any) -> Any:
    """Clone a MODEL whose context windows leave the noise of a sampling call as it is.

    The host's FreeNoise writes frames over others at the start of each call; inherited noise has
    been through that once. Returns the model itself where it has none.
    """
    return _without(model, (NOISE_SHUFFLE,))[0]


def _without(model: Any, keys: tuple[str, ...]) -> tuple[Any, list[str]]:
    """Clone a MODEL without some wrappers, where it has them; and the keys that it had."""
    had = [key for key in keys if any(key in kind for kind in model.wrappers.values())]
    if not had:
        return model, had
    clone = model.clone()
    for kind in list(clone.wrappers):
        for key in had:
            clone.remove_wrappers_with_key(kind, key)
    return clone, had


def cell_side(model: Any) -> int:
    """Return the pixels per side of a latent cell: what the host says, else 8 where none knows."""
    latent = model.get_model_object("latent_format")
    known = cell_pixels(latent.latent_channels, video=latent.latent_dimensions == 3)
    return getattr(latent, "spacial_downscale_ratio", None) or known or 8


def side_multiple(model: Any) -> int:
    """Return the pixels that a side must be a multiple of: one patch of the transformer."""
    return cell_side(model) * patch_side(model)


def patch_side(model: Any) -> int:
    """Return the latent cells per side of a patch; 2 where the model does not say."""
    patch = patch_of(model.model.diffusion_model)
    return int(patch[-1] if isinstance(patch, list | tuple) else patch or 2)


def patch_of(network: Any) -> Any:
    """Return the latent cells of a token as a network says them, its sides or one number for both.

    LTX has them on its patchifier.
    """
    own = getattr(network, "patch_size", None)
    return own or getattr(getattr(network, "patchifier", None), "patch_size", None)


def unpadded_patch(model: Any) -> int:
    """Return the latent cells per side of a patch where the model cannot pad to it, else 1."""
    unpadded = isinstance(model.model, comfy.model_base.HunyuanVideo)
    return patch_side(model) if unpadded else 1


def takes_odd(model: Any) -> bool:
    """Say whether latents of any size run, for cells of 8 pixels: 1080 are 135 of them.

    Other kinds of Wan (VACE, camera, reference) hold grids beside the latent that are not padded.
    """
    network = uncompiled(model.get_model_object("diffusion_model"))
    return (
        cell_side(model) == 8
        and type(network).__name__ in PADDING
        and getattr(network, "ref_conv", None) is None
    )


def target_cells(
    model: Any, samples: Tensor, **target: Any
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Find the size that a preview [..., H, W] is refined to, as `target_of` for its pixels."""
    cell = cell_side(model)
    rows, columns = samples.shape[-2:]
    return target_of(model, (rows * cell, columns * cell), **target)


def target_of(
    model: Any, source: tuple[int, int], **target: Any
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Find the size that a video is refined to.

    A bucket in its own shapes is met exactly, in the latent where the model takes odd ones, else
    by a crop of the decoded video; so is a scale of 1. Other sizes are whole patches, unless given
    by number: then whole cells where the model takes them.

    Args:
        model: the MODEL that refines.
        source: height and width of the video in pixels.
        target: resolution (one of TARGETS), scale, width and height, as in `target_size`.

    Returns:
        (rows, columns) of the latent, and (height, width) in pixels that were asked for: at most
        what the latent decodes to.

    Raises:
        ValueError: an unknown or unfitting size, or one below the source.
    """
    cell, multiple = cell_side(model), side_multiple(model)
    unit = cell if takes_odd(model) else multiple
    return target_grid(source, cell, unit, multiple, **target)


def target_grid(
    source: tuple[int, int], cell: int, unit: int, patch: int, **target: Any
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Find the size that a video is refined to, for a model of these cells.

    Args:
        source: height and width in pixels.
        cell: pixels per latent cell side.
        unit: pixels that a side must be a multiple of.
        patch: pixels along the side of a patch, which sides are rounded to.
        target: as in `target_of`, which says what comes back.
    """
    check_choice(target["resolution"], "resolution", TARGETS)
    multiple = unit if target["resolution"] == "by size" else patch
    same = target["resolution"] == "by scale" and target["scale"] == 1
    pixels = source if same else target_size(source, multiple=multiple, exact=True, **target)
    height, width = (int(-(-side // unit) * unit) for side in pixels)
    if height < source[0] or width < source[1]:
        raise ValueError(
            f"the target must not be below the preview's {source[1]} x {source[0]} "
            f"pixels, got {width} x {height}; choose a larger one, or connect the low-resolution "
            "preview."
        )
    crop = "" if pixels == (height, width) else f", to be cropped to {pixels[1]} x {pixels[0]}"
    log.info("%d x %d to %d x %d pixels%s", source[1], source[0], width, height, crop)
    return (height // cell, width // cell), pixels


def check_grid(model: Any, rows: int, cols: int) -> None:
    """Refuse latents that HunyuanVideo cannot cut into patches; Wan pads them by itself."""
    side = unpadded_patch(model)
    if not (rows % side or cols % side):
        return
    cell, near = cell_side(model), [max(side, round(n / side) * side) for n in (cols, rows)]
    raise ValueError(
        f"HunyuanVideo needs latents with multiples of {side} rows and columns, got "
        f"{rows} x {cols} ({cols * cell} x {rows * cell} pixels); use "
        f"{near[0] * cell} x {near[1] * cell} pixels."
    )


def check_pair(model: Any, low: Any, name: str = "model_low") -> None:
    """Refuse a second model with another latent space; `name` is its input."""
    first, second = (m.get_model_object("latent_format") for m in (model, low))
    if type(first) is not type(second):
        raise ValueError(
            f"{name} must use the latents of model ({type(first).__name__}), got "
            f"{type(second).__name__}; connect a model of the same family."
        )
