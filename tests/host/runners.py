"""Run a family of models through the pack's nodes and through the host's own samplers.

For scripts that called `inside.enter` first. All results are lists of parts: [video], or [video,
sound]. Sizes are (width, height) in pixels.
"""

import functools
import json
import re
from types import SimpleNamespace
from unittest import mock

import av_models
import av_runs
import comfy.sample
import comfy.samplers
import comfy.sd
import families
import torch
from inprocess import Host
from inside import noise
from surf.nodes.refine import SurfRefiner

HIGH, LOW, WIDE = (128, 64), (64, 32), (320, 64)
STEPS, K, SEED = 4, 2, 5
REFINE = {
    "seed": 3, "resolution": "by scale", "scale": 1.0, "width": 64, "height": 64,
    "upsample": "latent", "sigma_start": 0.65, "steps": 1, "window": 0, "low_band_lock": 0.0,
    "colour_match": False,
}  # fmt: skip
ATTENTION = re.compile(r"diffusion_model\.\w*blocks\.0\.\w*att\w*\.(q|qkv|qkv_proj|to_q)\.weight")
"""The first projection of a block's attention, whatever the network."""
HOST = Host()


def finite(parts, like=None):
    """Check that all is finite, and has the shapes of other parts."""
    assert all(torch.isfinite(part).all() for part in parts)
    assert like is None or [p.shape for p in parts] == [p.shape for p in like], [
        p.shape for p in parts
    ]
    return parts


def gap(a, b):
    """Largest difference relative to the second's largest value, over all parts."""
    finite(a, b)
    return max(
        ((x.double() - y.double()).abs().max() / y.abs().max()).item()
        for x, y in zip(a, b, strict=True)
    )


class Runner:
    """A loaded family, and its runs.

    Args:
        family: with one latent, plain video or picture.
    """

    has_sound = False

    def __init__(self, family):
        self.family, self.cfg = family, family.cfg
        self.model = family.load()
        self.second = family.load(family.second()) if family.second else None
        self.made = functools.cache(lambda *size: family.make(families.vae(), *size))

    def frames(self):
        shape = self.latent(HIGH)["samples"].shape
        return shape[2] if len(shape) == 5 else 1

    def latent(self, size):
        return dict(self.made(*size)[2])

    def conds(self, size):
        return tuple(self.made(*size)[:2])

    def draft(self, size):
        """A clean latent of a size."""
        latent = self.latent(size)
        return {**latent, "samples": 0.5 * noise(*latent["samples"].shape, seed=4)}

    def sees_neighbours(self):
        """Say whether the network has convolutions over more than a patch, as a camera's."""
        return hasattr(self.model.model.diffusion_model, "control_adapter")

    def experts(self):
        return self.model, self.second or self.model

    def both(self, change):
        """Arguments of `switched`: every expert, changed."""
        changed = {"model": change(self.model)}
        return changed | ({"second": change(self.second)} if self.second else {})

    def fp8(self):
        return self.family.load(dtype=torch.float8_e4m3fn)

    def stock(self, model=None, sampler="euler", size=HIGH, steps=STEPS):
        """The host's own KSampler, without a switch; of a pair, the first alone."""
        return [
            HOST.leg(
                model or self.model, self.latent(size), *self.conds(size), self.cfg[0], SEED,
                sampler_name=sampler, steps=steps,
            )["samples"]
        ]  # fmt: skip

    def switched(
        self, model=None, second=None, sampler="euler", scale=0.5, steps=STEPS, k=K, **changes
    ):
        """Surf Reshift KSampler; with a pair, the second expert takes over at the switch."""
        settings = {"shift": 0.0, "shift_low": 0.0, "cfg": self.cfg[0], "cfg_low": self.cfg[1]}
        settings |= {"steps": steps, "switch_step": k, "low_scale": scale, "sampler_name": sampler}
        if scale != 1:
            made = self.conds(LOW)
            settings |= {"positive_low": made[0], "negative_low": made[1]}
            if self.second:
                settings |= {
                    "model_low_noise": second or self.second,
                    "expert_boundary": self.boundary(k, steps),
                }
        out = HOST.ours(
            model or self.model, self.latent(HIGH), *self.conds(HIGH), **(settings | changes)
        )
        return [out[0]["samples"]]

    def kept(self):
        """A switch that keeps size and guidance."""
        return self.switched(scale=1.0, cfg_low=self.cfg[0], noise_policy="inherited")

    def boundary(self, k, steps):
        """A noise level between the last step before the switch and the first after it."""
        sampling = self.model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
        return round(float(sigmas[k - 1] + sigmas[k]) / 2, 4)

    def chain(self, sampler):
        """Two runs of the host with a resize between them, which a switch must equal."""
        first, second = self.experts()
        steps = {"sampler_name": sampler, "steps": STEPS}
        high = HOST.leg(
            first, self.latent(HIGH), *self.conds(HIGH), self.cfg[0], SEED, stop=K, **steps
        )
        half = HOST.stock.LatentUpscaleBy().upscale(high, "bilinear", 0.5)[0]
        return [
            HOST.leg(
                second, half, *self.conds(LOW), self.cfg[1], HOST.engine.second_seed(SEED),
                start=K, noise=HOST.later(self.latent(HIGH), half), **steps,
            )["samples"]
        ]  # fmt: skip

    def refined(self, latent, model=None, conds=HIGH, **changes):
        """Surf Refiner; of a pair, with the second expert."""
        out = SurfRefiner.execute(
            model or self.experts()[1], *self.conds(conds), latent,
            **(REFINE | {"cfg": self.cfg[0]} | changes),
        ).result[0]  # fmt: skip
        return self.parts(out)

    def parts(self, latent):
        return [latent["samples"]]

    def sampled(self, latent, size=HIGH):
        """The host's own sampler from the refiner's noise and sigmas."""
        x, model = latent["samples"], self.experts()[1]
        drawn = comfy.sample.prepare_noise(x, REFINE["seed"])
        sigmas = torch.linspace(REFINE["sigma_start"], 0, REFINE["steps"] + 1)
        return [
            comfy.sample.sample_custom(
                model, drawn, self.cfg[0], comfy.samplers.sampler_object("euler"), sigmas,
                *self.conds(size), x, disable_pbar=True, seed=REFINE["seed"],
            )
        ]  # fmt: skip

    def weight(self):
        """Name and parameter of an attention's projection."""
        named = dict(self.model.model.named_parameters())
        names = sorted(filter(ATTENTION.fullmatch, named))
        assert names, sorted(named)[:40]
        return names[-1], named[names[-1]]

    def lora(self):
        """A clone with a LoRA on one projection, by the host's loader; and its weights merged."""
        name, weight = self.weight()
        down, up = 0.1 * noise(2, weight.shape[1], seed=1), noise(weight.shape[0], 2, seed=2)
        state = {
            name.replace(".weight", ".lora_down.weight"): down,
            name.replace(".weight", ".lora_up.weight"): up,
        }
        clone, _ = comfy.sd.load_lora_for_models(self.model, None, state, 1.0, 0.0)
        return clone, weight, up @ down


def scaled_fp8(state):
    """A state dict whose blocks have weights of eight bits, each with a scale of its own."""
    made = dict(state)
    for name, weight in state.items():
        if re.fullmatch(r"blocks\..*\.weight", name) and weight.ndim == 2:
            layer, scale = name.removesuffix(".weight"), weight.abs().max() / 448
            said = json.dumps({"format": "float8_e4m3fn"}).encode()
            made[name] = (weight / scale).to(torch.float8_e4m3fn)
            made[f"{layer}.weight_scale"] = scale
            made[f"{layer}.comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
    return made


class SoundRunner(Runner):
    """MiniMax H3 or LTX-2.x, whose latents hold video and sound: by Surf Reshift Any Guider."""

    has_sound = True

    def __init__(self, name):
        av_models.check_known()
        self.name, self.cfg, self.second = name, (1.0, 1.0), None
        self.path = av_models.write(name, av_runs.FOLDER)
        self.model = av_runs.LOADED[name] = comfy.sd.load_diffusion_model(str(self.path))

    def latent(self, size, seed=None):
        cell = 16 if av_models.is_h3(self.name) else 32
        cells = (2 * size[1] // cell, 2 * size[0] // cell)
        return av_models.latent(self.name, av_runs.frames_of(self.name), *cells, seed=seed)

    def draft(self, size):
        return self.latent(size, seed=4)

    def frames(self):
        return self.latent(HIGH)["samples"].unbind()[0].shape[2]

    def conds(self, size):
        return av_models.prompt(self.name), av_models.prompt(self.name, seed=2)

    def fp8(self):
        """LTX-2.x by the loader's choice; MiniMax H3 from a file whose layers say that they are."""
        if not av_models.is_h3(self.name):
            options = {"dtype": torch.float8_e4m3fn}
            return comfy.sd.load_diffusion_model(str(self.path), model_options=options)
        state = av_models.network(self.name).state_dict()
        return comfy.sd.load_diffusion_model_state_dict(scaled_fp8(state))

    def given(self, model, sampler, steps):
        rows, columns = self.latent(HIGH)["samples"].unbind()[0].shape[-2:]
        return av_runs.inputs(self.name, (rows, columns), sampler, steps, patcher=model)

    def stock(self, model=None, sampler="euler", size=HIGH, steps=STEPS):
        guider = av_runs.basic(self.name, model)
        return av_runs.plain(guider, self.given(model, sampler, steps)).unbind()

    def switched(self, model=None, sampler="euler", scale=0.5, steps=STEPS, k=K, **changes):
        given, guider = self.given(model, sampler, steps), av_runs.basic(self.name, model)
        ours = av_runs.switched(guider, switch_step=k, low_scale=scale, **changes)
        return av_runs.plain(ours, given).unbind()

    def kept(self):
        """A switch through the clean estimate that keeps the size."""
        guider = av_runs.basic(self.name)
        return av_runs.through_estimate(guider, self.given(None, "euler", STEPS), K).unbind()

    def chain(self, sampler):
        """Nothing to compare with: the host has no chain that resizes video and keeps its sound."""

    def parts(self, latent):
        return list(latent["samples"].unbind())

    def sampled(self, latent, size=HIGH):
        import av_refining

        with mock.patch.object(av_refining, "SETTINGS", SimpleNamespace(**REFINE).__dict__):
            mask = av_refining.silent(latent)
            video, _ = av_refining.stock(
                self.name, latent, self.model, positive=self.conds(size)[0], mask=mask
            )
        return [video, latent["samples"].unbind()[1]]
