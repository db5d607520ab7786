"""Run the legs of a plan as one sampling call: the resolution changes between them, never inside.

Each leg is a plain call of a copy of the host's guider, so conditioning, memory, masks, caches and
previews are built for its size. A clean estimate is resized and noised again for the next leg; a
noisy latent is never resized. Where the size stays, the latent goes on with the noise left in it.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....surf_core.legs import ESTIMATE, LEFTOVER
from ..finite import MODEL_CAUSES, NonFiniteGuard, check_finite
from ..latents import is_blank, to_intermediate
from ..models import cell_side
from ..nested import Parts
from ..node import reporting_as, show_status
from .after_switch import Holder
from .guiders import for_leg
from .leg import Segment, one_bar, sampler_for
from .legs import Call
from .masked import Evaluation, Hook, Start, can_hook, hooked, offset_noise, unblended
from .noise import item_seeds, noise_after, noise_of, sampler_seed, second_seed
from .samples import like_samples, parts_of, resized, zeros_like


@dataclass
class Relay:
    """What one leg hands to the next."""

    x: Tensor
    """[B, C, (T,) H, W], VAE space; clean, or with noise left in it."""
    noise: Tensor
    """[B, C, (T,) H, W], what the next leg adds to it; zeros where x holds its noise."""
    seed: int
    """Of the sampler."""
    first_seed: int
    """Of the run."""
    evaluation: Evaluation | None = None
    """Last (x, sigma, x0) of the leg before, in the model's space."""
    start: Start | None = None
    """What the next leg starts from, where that is not `kept`."""
    kept: Tensor | None = None
    """[B, C, (T,) H, W], VAE space, what a noise mask keeps; None without a mask."""
    kept_noise: Tensor | None = None
    """Its noise, in the model's space; None until the first leg has it."""
    estimate: Parts | None = None
    """The clean estimate that crossed the last switch, VAE space, at the size after it."""
    seen: bool = False
    """Whether an evaluation of this leg has been seen."""


class Run:
    """One sampling call, leg by leg."""

    def __init__(
        self,
        guider: Any,
        legs: list[Segment],
        call: Call,
        *,
        inherits: bool,
        node: str,
        on_switch: Callable[[Tensor], None] | None,
    ):
        """Take a GUIDER, which stays as it is, and the legs that it runs.

        Args:
            inherits: whether the noise after a switch is what is left of the noise before it.
            node: whose name errors begin with.
            on_switch: called once with the clean estimate at the first switch, VAE space.
        """
        self.guider, self.legs, self.call = guider, legs, call
        self.inherits, self.node, self.on_switch = inherits, node, on_switch

    def sample(self, callback: Callable[..., None] | None, disable_pbar: bool, seed: int) -> Tensor:
        """Run every leg: [B, C, (T,) h, w], VAE space, on the device of the model."""
        call, callback_of = self.call, one_bar(callback, [leg.evaluations for leg in self.legs])
        relay = Relay(x=call.samples, noise=call.noise, seed=seed, first_seed=seed)
        seeds = self._seeds(seed)
        if self.legs[0].place and self.on_switch is not None:
            self.on_switch(call.samples)
        for index, leg in enumerate(self.legs):
            if index and not self.legs[index - 1].estimates:
                relay.seed = second_seed(relay.seed)
            self._begin(relay, index, seeds.get(leg.place))
            self._run(relay, index, callback_of(index), disable_pbar)
            if leg.switches and self.on_switch is not None:
                self.on_switch(self._estimate(relay, leg))
        return relay.x

    def _seeds(self, seed: int) -> dict[int, list[int]]:
        """Give the items a seed of fresh noise at each new size, from their first noise.

        Before the first leg, since the host's context windows write into its noise.
        """
        if self.inherits or is_blank(self.call.noise):
            return {}
        made = {}
        for place in range(1, self.legs[-1].place + 1):
            made[place] = item_seeds(seed, self.call.noise)
            seed = second_seed(seed)
        return made

    def _begin(self, relay: Relay, index: int, seeds: list[int] | None) -> None:
        """Fit latent and noise to the leg that follows.

        Args:
            seeds: of the items, for fresh noise; None where it is inherited or zero.
        """
        leg = self.legs[index]
        if leg.begins == LEFTOVER:
            relay.noise = zeros_like(relay.x)
        elif leg.begins == ESTIMATE or leg.size != tuple(relay.x.shape[-2:]):
            noise = relay.noise
            if relay.evaluation is not None:
                noise = noise_of(relay.evaluation, relay.x)
            relay.x = resized(to_intermediate(relay.x), leg.size)
            relay.estimate = parts_of(relay.x)
            relay.noise = zeros_like(relay.x)
            if not is_blank(noise):
                relay.noise = noise_after(noise, leg.size, seeds, relay.x)
        if self.call.mask is not None and not leg.estimates:
            self._begin_masked(relay, index, fresh=bool(seeds))

    def _begin_masked(self, relay: Relay, index: int, fresh: bool) -> None:
        """Part what a noise mask keeps from what the leg starts from.

        Args:
            fresh: whether the noise of the leg is new.
        """
        leg = self.legs[index]
        if relay.kept is None:
            # The first leg, or the first after a noisy latent was parted.
            relay.kept = relay.x
            return
        new = fresh and leg.begins == ESTIMATE
        relay.start = Start(clean=relay.x, noise=None if new else relay.noise)
        if leg.begins == ESTIMATE:
            relay.kept = resized(to_intermediate(relay.kept), leg.size)
            kept_noise = relay.kept_noise
            relay.kept_noise = (
                relay.noise if new else noise_after(kept_noise, leg.size, None, relay.kept)
            )
        relay.x, relay.noise = relay.kept, relay.kept_noise.to(relay.noise.device)

    def _run(
        self, relay: Relay, index: int, callback: Callable[..., None] | None, disable_pbar: bool
    ) -> None:
        """Run one leg, and keep what the next one needs of its last evaluation."""
        leg = self.legs[index]
        rows, columns = (cells * cell_side(leg.model) for cells in leg.size)
        show_status(f"{columns} x {rows}: {leg.evaluations} steps\n{leg.stage}")
        guard, records = NonFiniteGuard(leg.stage), self._records(index)
        relay.evaluation, relay.seen = None, False
        changes = leg.after is not None and leg.after.changes

        def keep(x: Tensor, sigma: Tensor, x0: Tensor) -> None:
            relay.evaluation = (x.clone(), sigma, x0.clone())

        def see(x: Tensor, sigma: Tensor, x0: Tensor) -> None:
            relay.seen = True
            with reporting_as(self.node):
                guard.see(x0, sigma)
            if records:
                keep(x, sigma, x0)

        masked = self.call.mask is not None and not leg.estimates and len(self.legs) > 1
        sampler = sampler_for(leg)
        if masked:
            sampler = self._masked(relay, leg, sampler, keep if records else None)
        latent, noise = relay.x, relay.noise
        hold = None
        if changes and leg.after.held_to <= 1:
            assert relay.estimate is not None
            hold = Holder(leg, relay.estimate)
        relay.x = for_leg(self.guider, leg, see, relay.first_seed, hold).sample(
            noise,
            latent,
            sampler,
            leg.sigmas,
            None if leg.estimates else self.call.mask,
            self._checked(relay, callback, changes) if records or changes else callback,
            disable_pbar,
            sampler_seed(relay.seed, leg.model.load_device),
        )
        if masked and relay.evaluation is not None and not can_hook(sampler):
            mask, kept_noise = self.call.mask, relay.kept_noise
            relay.evaluation = unblended(relay.evaluation, leg.model, mask, latent, kept_noise)
        with reporting_as(self.node):
            guard.finish()
            for part in parts_of(relay.x).tensors:
                check_finite(part, f"what the sampler made {leg.stage}", MODEL_CAUSES)

    def _masked(
        self,
        relay: Relay,
        leg: Segment,
        sampler: Any,
        keep: Callable[[Tensor, Tensor, Tensor], None] | None,
    ) -> Any:
        """Return the sampler of a leg under a noise mask, or set the noise that stands in for it.

        Args:
            keep: takes the evaluations that the next leg needs.
        """
        start, relay.start = relay.start, None
        if not can_hook(sampler):
            relay.kept_noise = relay.noise if relay.kept_noise is None else relay.kept_noise
            if start is not None:
                sigma = leg.sigmas[0].item()
                relay.noise = offset_noise(leg.model, start, relay.x, relay.noise, sigma)
            return sampler

        def on_noise(noise: Tensor) -> None:
            relay.kept_noise = like_samples(noise, relay.x)

        return hooked(
            sampler,
            Hook(
                schedule=self.call.sigmas,
                start=start,
                kept_noise=relay.kept_noise
                if start is not None and start.noise is not None
                else None,
                on_noise=on_noise,
                on_evaluation=keep,
            ),
        )

    def _checked(
        self, relay: Relay, callback: Callable[..., None] | None, changes: bool
    ) -> Callable[..., None]:
        """Stop at the first step where no later leg could go on from what is recorded.

        Args:
            changes: whether predictions are to be changed, too, which only wrappers can.
        """

        def told(*args: Any) -> None:
            with reporting_as(self.node):
                if not relay.seen if changes else relay.evaluation is None:
                    raise ValueError(
                        "expected a guider that predicts through the host's wrappers, got "
                        f"{type(self.guider).__name__}, whose predictions none of them sees; set "
                        "noise_policy to fresh and leave low_band_lock and rope_scale_low off, or "
                        "take the guider of the host."
                    )
            if callback is not None:
                callback(*args)

        return told

    def _records(self, index: int) -> bool:
        """Say whether the last evaluation of a leg is needed after it."""
        leg = self.legs[index]
        if index == len(self.legs) - 1:
            return False
        if self.legs[index + 1].begins == LEFTOVER:
            return leg.switches and self.on_switch is not None
        return self.inherits or leg.estimates or self._has_audio()

    def _has_audio(self) -> bool:
        return parts_of(self.call.samples).audio is not None

    def _estimate(self, relay: Relay, leg: Segment) -> Tensor:
        """Return the clean estimate at the end of a leg, VAE space."""
        if leg is self.legs[-1] or leg.sigmas[-1] == 0 or relay.evaluation is None:
            return relay.x
        return leg.model.model.process_latent_out(relay.evaluation[2])
