"""The embedded model as a guest of the host: every `case_*` takes the host and asserts."""

import torch
from inprocess import K, N, random, same

SETTINGS = {"steps": N, "switch_step": K, "cfg": 4.0, "cfg_low": 3.0}
PROMPT = (
    "red ball moving right in the northwest, four blue beads moving up in the southeast, on sand"
)


def embedded(host):
    """Our own model and the host's Wan of the same file."""
    from surf.nodes.host.refiner.tiny import load_tiny_t2v
    from surf.surf_core.tiny.model import TinyT2V

    return TinyT2V([PROMPT]), load_tiny_t2v()


def case_embedded_model_is_the_hosts_wan(host):
    """With four heads, which its own loader would not find out."""
    tiny, model = embedded(host)
    network = model.model.diffusion_model
    assert (type(model.model).__name__, type(network).__name__) == ("WAN21", "WanModel")
    assert network.num_heads == network.blocks[0].self_attn.num_heads == tiny.model.config.heads
    z, t = random(2, 16, 4, 16, 16), torch.tensor([900.0, 300.0])
    context = tiny.context.expand(2, -1, -1)
    same(model.model.diffusion_model.float()(z, t, context), tiny.model(z, t, context), 5e-5)


def case_core_and_node_make_the_same_preview(host):
    import comfy.sample
    from surf.surf_core import reshift

    tiny, model = embedded(host)
    flow = [host.shifted(model, 3.0).get_model_object("model_sampling"), "simple", N]
    sigmas, seed = host.samplers.calculate_sigmas(*flow), 5
    draw = comfy.sample.prepare_noise
    latent = torch.zeros(1, 16, 4, 16, 16)
    low = {"samples": torch.zeros(1, 16, 4, 8, 8)}
    fresh = host.later({"samples": latent}, low, seed)
    conds = [[[cond, {}]] for cond in (tiny.context, torch.zeros_like(tiny.context))]
    for noise_policy in reshift.NOISE_POLICIES:
        for sigma_policy in ("same", "snr_equal"):
            for handover in ("reuse", "evaluate"):
                policies = {"noise_policy": noise_policy, "sigma_policy": sigma_policy}
                policies["handover"] = handover
                ours = reshift.preview(
                    tiny.velocity(4.0), draw(latent, seed), sigmas, K, (8, 8), noise=fresh,
                    velocity_low=tiny.velocity(3.0), **policies,
                )  # fmt: skip
                node = host.ours(model, {"samples": latent}, *conds, **SETTINGS, **policies)
                same(node[0], model.model.process_latent_out(ours), 2e-3)
