"""What the cases about the switch share: the host's modules, our nodes, tiny models, comparisons.

For scripts that called `inside.enter` first.
"""

import asyncio
from functools import partial
from unittest import mock

import checkpoints
import torch

K, N = 3, 8
SAMPLERS = (
    "euler", "euler_ancestral", "heun", "dpm_2", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "lcm",
    "res_multistep", "deis", "ddim", "ipndm", "er_sde", "uni_pc", "uni_pc_bh2",
    "gradient_estimation",
)  # fmt: skip


class Host:
    """The host's modules, the pack's nodes, and tiny models."""

    def __init__(self):
        import comfy.sample
        import comfy.samplers
        import comfy.sd
        import latent_preview
        import surf.nodes.host.preview.noise
        from comfy_extras import nodes_custom_sampler, nodes_easycache, nodes_model_advanced

        import nodes

        self.stock, self.custom, self.cache = nodes, nodes_custom_sampler, nodes_easycache
        self.sd3, self.samplers, self.sd = (
            nodes_model_advanced.ModelSamplingSD3,
            comfy.samplers,
            comfy.sd,
        )
        self.preview, self.loaded = latent_preview, {}
        extension = asyncio.run(surf.comfy_entrypoint())
        found = asyncio.run(extension.get_node_list())
        self.nodes = {node.GET_SCHEMA().node_id: node for node in found}
        self.engine = surf.nodes.host.preview.noise

    def model(self, name="tiny_wan_t2v"):
        if name not in self.loaded:
            state = checkpoints.diffusion_model(name)
            self.loaded[name] = self.sd.load_diffusion_model_state_dict(state)
        return self.loaded[name]

    def shifted(self, model, shift):
        return self.sd3().patch(model, shift)[0]

    def ours(self, model, latent, pos, neg, **changes):
        return (
            self.nodes["SurfReshiftKSampler"]
            .execute(
                model=model, positive=pos, negative=neg, latent_image=latent, **(SETTINGS | changes)
            )
            .args
        )

    def leg(self, model, latent, pos, neg, cfg, seed=5, denoise=1.0, noise=None, **legs):
        """Run a stock KSamplerAdvanced; it draws its own noise unless it is given."""
        s, sample = SETTINGS | legs, self.stock.comfy.sample
        drawn = sample.prepare_noise if noise is None else lambda *_: noise
        with mock.patch.object(sample, "prepare_noise", drawn):
            return self.stock.common_ksampler(
                model, seed, s["steps"], cfg, s["sampler_name"], s["scheduler"], pos, neg, latent,
                denoise=denoise, start_step=legs.get("start"), last_step=legs.get("stop"),
                force_full_denoise=True,
            )[0]  # fmt: skip

    def seeds(self, latent, seed=5):
        """Seeds of the items' noise after a switch: from their noise before it."""
        draw = self.stock.comfy.sample.prepare_noise
        first = draw(latent["samples"], seed, latent.get("batch_index"))
        return [self.engine.item_seed(seed, item) for item in first]

    def later(self, latent, low, seed=5):
        """Fresh noise after a switch."""
        return self.engine.fresh_noise(low["samples"], self.seeds(latent, seed))

    def chain(self, model, latent, pos, neg, k=K, evaluate=False, seed=5, low=None, **more):
        """The stock chain: high leg, half size, low leg."""
        high = self.shifted(model, 3.0)
        first = self.leg(high, latent, pos, neg, 7.5, seed, stop=k + evaluate, **more)
        half = self.stock.LatentUpscaleBy().upscale(first, "bilinear", 0.5)[0]
        pos, neg = low or (pos, neg)
        return first, self.leg(
            high, half, pos, neg, 5.0, self.engine.second_seed(seed), start=k,
            noise=self.later(latent, half, seed), **more,
        )  # fmt: skip


SETTINGS = {
    "seed": 5, "steps": N, "switch_step": K, "cfg": 7.5, "cfg_low": 5.0, "shift": 3.0,
    "shift_low": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
    "low_resolution": "by scale", "low_scale": 0.5, "low_width": 416, "low_height": 240,
    "sigma_policy": "same", "noise_policy": "fresh", "handover": "reuse",
}  # fmt: skip


def text(seed, width=4096, **options):
    return [[torch.randn(1, 8, width, generator=torch.Generator().manual_seed(seed)), options]]


def prompts(**options):
    return text(1, **options), text(2, **options)


def random(*shape, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blank(batch=1, channels=16, rows=16, cols=24):
    return {"samples": torch.zeros(batch, channels, 3, rows, cols)}


def same(a, b, atol=0.0):
    a, b = (x["samples"] if isinstance(x, dict) else x for x in (a, b))
    assert a.shape == b.shape, (a.shape, b.shape)
    assert torch.isfinite(a).all()
    gap = (a.double() - b.double()).abs().max().item()
    assert gap <= atol, f"differs by {gap}"


def halve(host, x):
    return host.stock.LatentUpscaleBy().upscale({"samples": x}, "bilinear", 0.5)[0]["samples"]


def refused(call, *words):
    said = None
    try:
        call()
    except ValueError as error:
        said = str(error)
    assert said is not None, "was not refused"
    assert all(word in said for word in words), f"{words} not all in: {said}"


class ClipVision:
    """What CLIP vision makes of a picture."""

    def __init__(self, width=1280, tokens=257, seed=3):
        self.penultimate_hidden_states = random(1, tokens, width, seed=seed)
        self.last_hidden_state = random(1, tokens, width, seed=seed + 1)


def bound(*scripts):
    """Bind every case of scripts, as their globals, to one host: {name: function of nothing}."""
    host = Host()
    found = [item for names in scripts for item in names.items()]
    return {name: partial(case, host) for name, case in found if name.startswith("case_")}
