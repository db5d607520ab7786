"""The models on both sides of a switch: one, another after it, or the two experts of a pair."""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch

from ....surf_core.checks import check_range
from .. import models
from ..conditioning import Conditioning
from .plan import Stage

Kind = TypeVar("Kind")


def take(kind: type[Kind], given: dict[str, Any]) -> Kind:
    """Build a dataclass from a node's inputs of the same names, which leave `given`."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: given.pop(name) for name in names if name in given})


def check_expert_numbers(expert_boundary: float, cfg_low_noise: float) -> None:
    """Refuse numbers of a pair of experts that cannot go together."""
    check_range(expert_boundary, "expert_boundary", 0.0, 1.0, "use 0.9 for I2V, 0.875 for T2V")
    if cfg_low_noise and not expert_boundary:
        raise ValueError(
            "cfg_low_noise is the guidance of a low-noise expert and needs an expert_boundary "
            f"above 0, got {cfg_low_noise=} and {expert_boundary=}; set the boundary to 0.9 for "
            "I2V or 0.875 for T2V, or cfg_low_noise to 0."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sides:
    """Models, guidance and conditioning before and after a switch; its fields are inputs."""

    cfg: float
    """Guidance before the switch."""
    cfg_low: float
    """Guidance after the switch."""
    model_low: Any = None
    """Another MODEL after the switch."""
    model_low_noise: Any = None
    """The low-noise expert, below the boundary at both sizes."""
    expert_boundary: float = 0.0
    """Sigma at which it takes over; 0 for one expert."""
    cfg_low_noise: float = 0.0
    """Guidance of the low-noise expert; 0 for that of the size."""
    positive_low: Conditioning | None = None
    """Made for the size after the switch."""
    negative_low: Conditioning | None = None
    """Made for the size after the switch."""

    def __post_init__(self) -> None:
        check_expert_numbers(self.expert_boundary, self.cfg_low_noise)
        self._check_models()

    def _check_models(self) -> None:
        """Refuse experts without a boundary, a boundary without them, and a third model."""
        boundary = self.expert_boundary
        if boundary and self.model_low is not None:
            raise ValueError(
                "model_low is another model after the switch and expert_boundary changes between "
                f"two experts at both sizes, got both ({boundary=}); for a pair such as Wan 2.2 "
                "connect the low-noise expert to model_low_noise, else set expert_boundary to 0."
            )
        if boundary and self.model_low_noise is None:
            raise ValueError(
                f"an expert_boundary of {boundary} needs two experts, got one model; connect the "
                "low-noise expert to model_low_noise, or set expert_boundary to 0."
            )
        if self.model_low_noise is not None and not boundary:
            raise ValueError(
                "model_low_noise runs below expert_boundary, got a boundary of 0, where it never "
                "would; set it to 0.9 for I2V or 0.875 for T2V, or disconnect the model."
            )

    def stages(
        self, model: Any, shift: float = 0.0, shift_low: float = 0.0, sampler_low: Any = None
    ) -> tuple[Stage, Stage]:
        """Build what samples before and after the switch.

        Args:
            model: the MODEL, or the high-noise expert.
            shift, shift_low: timestep shifts before and after; 0 leaves the models' own.

        Raises:
            ValueError: no flow models, two that do not belong together, or two experts with
                shifts of their own that differ.
        """
        low = model if self.model_low is None else self.model_low
        high, low = [model], [low]
        if self.model_low_noise is not None:
            high.append(self.model_low_noise)
            low.append(self.model_low_noise)
        for each in {id(m): m for m in (*high, *low)}.values():
            check_can_switch(each)
        models.check_pair(model, low[0])
        if self.model_low_noise is not None:
            check_same_family(model, self.model_low_noise)
            for value, name in ((shift, "shift"), (shift_low, "shift_low")):
                if not value:
                    check_same_schedule(model, self.model_low_noise, name)
        names = {"positive": self.positive_low, "negative": self.negative_low}
        return (
            Stage(
                models=tuple(models.with_shift(m, shift) for m in high),
                cfg=self.cfg,
                cfg_low_noise=self.cfg_low_noise,
            ),
            Stage(
                models=tuple(models.with_shift(m, shift_low) for m in low),
                cfg=self.cfg_low,
                cfg_low_noise=self.cfg_low_noise,
                conds={name: cond for name, cond in names.items() if cond is not None},
                sampler=sampler_low,
            ),
        )


def check_can_switch(model: Any) -> None:
    """Refuse a model that is no flow, or whose network reads the noise level of the next step.

    A leg ends in 0 or at a level of its own, so such a network would be told a wrong one.
    """
    models.check_flow(model)
    network = models.uncompiled(model.get_model_object("diffusion_model"))
    if getattr(network, "time_r_in", None) is not None:
        raise ValueError(
            f"expected a model that can be switched, got a {type(model.model).__name__} whose "
            "network reads the noise level of the next step (mean flow), which a switch changes; "
            "sample it with SamplerCustomAdvanced and its own guider, and make the preview with "
            "the model that it enlarges."
        )


def check_same_family(model: Any, low_noise: Any) -> None:
    """Refuse two experts that take other latents, or other conditioning beside them."""
    models.check_pair(model, low_noise, "model_low_noise")
    kinds = [_family(each) for each in (model, low_noise)]
    if kinds[0] != kinds[1]:
        said = [f"{name} with {channels} channels" for name, channels in kinds]
        raise ValueError(
            f"expected two experts of one family, got {said[0]} for model and {said[1]} for "
            "model_low_noise; connect the high-noise and the low-noise file of the same model."
        )


def _family(model: Any) -> tuple[str, Any]:
    """Return the class of a MODEL and the channels that go into its network."""
    config = getattr(getattr(model.model, "model_config", None), "unet_config", {})
    return type(model.model).__name__, config.get("in_dim", config.get("in_channels"))


def check_same_schedule(model: Any, low_noise: Any, name: str) -> None:
    """Refuse two experts whose own schedules differ, where neither gets a shift from us."""
    first, second = (m.get_model_object("model_sampling") for m in (model, low_noise))
    tables = [getattr(sampling, "sigmas", None) for sampling in (first, second)]
    if all(isinstance(table, torch.Tensor) for table in tables):
        same = tables[0].shape == tables[1].shape and torch.allclose(*(t.cpu() for t in tables))
    else:
        same = type(first) is type(second)
    if not same:
        shifts = [getattr(sampling, "shift", "none") for sampling in (first, second)]
        raise ValueError(
            f"both experts must have one timestep shift, got {shifts[0]} for model and {shifts[1]} "
            f"for model_low_noise; set the same one on both with ModelSamplingSD3, or {name} here."
        )
