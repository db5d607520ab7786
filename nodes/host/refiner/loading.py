"""Load files of our own format with the host's own function.

That function detects which model a file holds. Ours comes from a private copy of the host's module,
whose `model_detection` answers for us: nothing of the host is changed, so other loads, in other
threads too, are not affected.
"""

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.utils
import folder_paths
import torch

from ....surf_core import checkpoint
from ....surf_core.checks import check_choice
from ....surf_core.refiner import RefinerConfig
from ....surf_core.window import BACKENDS
from ..node import label
from .model import ATTENTION_KEY, HOST_ATTENTION, RefinerSupport, SurfRefinerModel

FOLDER = "diffusion_models"
WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
"""As the host's own loader maps them."""
ATTENTIONS = (HOST_ATTENTION, *BACKENDS)
TRAITS_KEY = "surf_refiner"
"""Where the MODEL of a refiner carries its RefinerTraits."""


def refiner_names() -> list[str]:
    """List the files of the folder with our refiners and the diffusion models of the host."""
    return folder_paths.get_filename_list(FOLDER)


def load_named(name: str, weight_dtype: str, attention: str) -> Any:
    """Load a file of `refiner_names()`, see `load_refiner`."""
    return load_refiner(named_file(name), weight_dtype, attention)


def named_file(name: str) -> str:
    """Return the path of a file of `refiner_names()`.

    Raises:
        ValueError: it is gone, another machine's workflow names it, or nothing is named.
    """
    if not name.strip():
        raise ValueError(
            f"expected the name of a file in models/{FOLDER}, got none; put a refiner there, press "
            "R, and choose it."
        )
    try:
        return folder_paths.get_full_path_or_raise(FOLDER, name)
    except FileNotFoundError as error:
        raise ValueError(
            f"expected a file in models/{FOLDER}, got {name[:200]!r}, which is not there; put it "
            "there, or choose another."
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class RefinerTraits:
    """What the training of a refiner fixed: attached to its MODEL under `TRAITS_KEY`.

    A flow map between (1 - s) * preview + s * noise and the high-resolution latent is, up to the
    scale of its time, a flow model that starts at sigma = s. Models without traits are free.
    """

    sigma_start: float | None
    """The s of its training; None for a text-to-video model, which starts anywhere."""
    window: int
    """Latent frames of the attention windows that the model itself runs; 0 = full."""
    time: str = "sigma"
    """What its time means. "sigma": the noise in the latent, from sigma_start down to 0.
    "t": the way from the preview, 1, to the result, 0; sigma_start may then be 0."""
    text_dim: int = 4096
    """Channels of its text."""
    sigma_start_range: tuple[float, float] | None = None
    """Least and greatest sigma_start of its training, where it is conditioned on it; None: one."""


def load_refiner(
    path: str, weight_dtype: str = "default", attention: str = HOST_ATTENTION, **more: Any
) -> Any:
    """Load a refiner of ours as a MODEL.

    Args:
        path: a file that surf_core.checkpoint.save wrote.
        weight_dtype: one of WEIGHT_DTYPES.
        attention: one of ATTENTIONS, for the windows; "host" is what the host was started with.
        more: options of newer hosts (disable_dynamic), which load a model again for another GPU.

    Returns:
        A MODEL that carries RefinerTraits.

    Raises:
        ValueError: not a file of ours, of a newer format, with keys that do not fit, before
            anything is allocated; or weights that are not finite.
    """
    check_choice(weight_dtype, "weight_dtype", tuple(WEIGHT_DTYPES))
    check_choice(attention, "attention", ATTENTIONS)
    config = _check_file(path)
    support = RefinerSupport(config)
    model = _load(path, lambda *args, **kwargs: support, WEIGHT_DTYPES[weight_dtype], more)
    _check_detected(isinstance(getattr(model, "model", None), SurfRefinerModel))
    model.model_options["transformer_options"][ATTENTION_KEY] = attention
    traits = {field.name: getattr(config, field.name) for field in fields(RefinerTraits)}
    model.set_attachments(TRAITS_KEY, RefinerTraits(**traits))
    # What newer hosts call to load the model once more, for another GPU.
    model.cached_patcher_init = (load_refiner, (path, weight_dtype, attention))
    return model


def load_as_wan(path: str, **more: Any) -> Any:
    """Load a text-to-video model of ours as the host's own Wan, with the heads of its config.

    By itself the host counts one head for 128 channels, whatever the file says.

    Args:
        path: a file that surf_core.checkpoint.save wrote, of the block "wan".
        more: as in `load_refiner`.

    Raises:
        ValueError: as in `load_refiner`.
    """
    heads = _check_file(path).heads

    def detected(*args: Any, **kwargs: Any) -> Any:
        found = comfy.model_detection.model_config_from_unet(*args, **kwargs)
        if found is not None:
            found.unet_config["num_heads"] = heads
        return found

    model = _load(path, detected, {}, more)
    network = getattr(getattr(model, "model", None), "diffusion_model", None)
    _check_detected(getattr(network, "num_heads", None) == heads)
    return model


def _load(path: str, detected: Callable[..., Any], how: dict, more: dict) -> Any:
    """Load a file as the model whose entry in the host's table `detected` returns.

    Args:
        how: the host's options of a model.
        more: options of the host's function; those that it does not know are left out.

    Raises:
        ValueError: weights that are not finite.
    """
    state, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    checkpoint.check_finite(state, Path(path))
    load = _private_loader(_Detection(detected))
    options = {"metadata": metadata, **more}
    accepted = inspect.signature(load).parameters
    known = {name: value for name, value in options.items() if name in accepted}
    return load(state, model_options=dict(how), **known)


def _check_detected(ours: bool) -> None:
    if not ours:
        raise RuntimeError(
            f"{label()}: this host finds out which model a file holds in a way that is unknown "
            "here; update this pack."
        )


def _check_file(path: str) -> RefinerConfig:
    """Read the header, and refuse a file whose keys or latents do not fit.

    Raises:
        ValueError: with the list.
    """
    try:
        config, _ = checkpoint.read_config(path)
        problems = checkpoint.report(path)
    except ValueError as error:
        raise ValueError(
            f"{error} Surf Refiner takes any other flow video model too, from Load Diffusion Model."
        ) from error
    if problems:
        raise ValueError(
            f"the keys of {checkpoint.short(Path(path))} do not fit the config in it: "
            f"{checkpoint.listed(problems)}. Use the file as its training wrote it; scaled fp8 "
            "and other repacked weights are not read, weight_dtype makes fp8 of the original."
        )
    return config


class _Detection:
    """The host's model_detection with an answer of ours."""

    def __init__(self, detected: Callable[..., Any]):
        self.model_config_from_unet = detected

    def __getattr__(self, name: str) -> Any:
        return getattr(comfy.model_detection, name)


def _private_loader(detection: _Detection) -> Callable[..., Any]:
    """Return the host's loading function from a second copy of its module with another detection.

    Executing the module's file again takes some milliseconds and imports nothing anew; the copy is
    in no list of modules and goes with the load.
    """
    spec = importlib.util.find_spec("comfy.sd")
    private = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(private)
    private.model_detection = detection
    return private.load_diffusion_model_state_dict
