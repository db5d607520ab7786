"""What may change after a switch, inside a real host: the low band, its sigma, Wan's positions.

    cd $COMFYUI_PATH && python tests/host/after_switch_cases.py RESULTS.json

Every function `case_*` takes the host and asserts; run by test_inside.py.
"""

import contextlib
from functools import partial
from unittest import mock

import inprocess
import inside
import torch
from inprocess import K, N, blank, prompts, refused, same
from leg_cases import any_guider, guided, guiders

OFF = {"low_band_lock": 0.0, "switch_sigma": 0.0, "rope_scale_low": 1.0}
POLICIES = {"noise_policy": "inherited", "sigma_policy": "snr_equal"}


def low_band(x, factor=2.0):
    from surf.surf_core.lowband import low_band as band

    return band(x, factor)


def halved(latent):
    from surf.surf_core.resample import resize

    rows, columns = (side // 2 for side in latent["samples"].shape[-2:])
    return resize(latent["samples"], (rows, columns))


def far(preview, x0):
    """How far the low band of a preview is from that of the clean estimate at the switch."""
    wanted = low_band(halved(x0))
    return ((low_band(preview["samples"]) - wanted).abs().max() / wanted.abs().max()).item()


@contextlib.contextmanager
def watched(model):
    """A clone of a model, and of each evaluation (sigma, rows, rope_options)."""
    import comfy.patcher_extension

    seen, clone = [], model.clone()

    def wrapper(executor, x, timestep, *args, **kwargs):
        options = next(a for a in (*args, kwargs.get("transformer_options")) if isinstance(a, dict))
        seen.append((timestep.flatten()[0].item() / 1000, x.shape[-2], options.get("rope_options")))
        return executor(x, timestep, *args, **kwargs)

    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    clone.add_wrapper_with_key(kind, "watched", wrapper)
    yield clone, seen


def case_off_is_bit_for_bit_the_run_without_the_inputs(host):
    for policies in ({}, POLICIES):
        ours = host.ours(host.model(), blank(), *prompts(), **OFF, **policies)
        for a, b in zip(ours, host.ours(host.model(), blank(), *prompts(), **policies),
                        strict=True):  # fmt: skip
            same(a, b)


def case_a_lock_keeps_the_low_band_of_the_switch_with_any_sampler(host):
    run = partial(host.ours, host.model(), blank(), *prompts(), **POLICIES)
    for sampler in ("euler", "dpmpp_2m", "res_multistep", "heun", "uni_pc", "euler_ancestral"):
        preview, x0 = run(sampler_name=sampler, low_band_lock=1.0)
        free, _ = run(sampler_name=sampler)
        # uni_pc and heun end in a correction beside the last estimate.
        assert far(preview, x0) < (1e-4 if sampler != "uni_pc" else 2e-2), (
            sampler,
            far(preview, x0),
        )
        assert far(free, x0) > 5e-2, (sampler, far(free, x0))
        assert torch.isfinite(preview["samples"]).all()
    part = run(low_band_lock=0.4)[0]
    assert far(part, x0) > 1e-4
    assert not torch.equal(part["samples"], run()[0]["samples"])


def case_a_lock_leaves_what_a_noise_mask_keeps(host):
    mask = torch.ones(1, 1, 1, 16, 24)
    mask[..., :12] = 0
    latent = {"samples": 0.3 * torch.ones_like(blank()["samples"]), "noise_mask": mask}
    run = partial(host.ours, host.model(), latent, *prompts(), **POLICIES)
    for ours in (run(low_band_lock=1.0)[0], run()[0]):
        kept = ours["samples"][..., :6]
        assert (kept - 0.3).abs().max() < 1e-4


def case_the_schedule_is_at_switch_sigma_and_keeps_its_evaluations(host):
    for changes, first in (({}, 0.75), ({"sigma_policy": "snr_equal"}, 0.6)):
        with watched(host.model()) as (model, seen):
            host.ours(
                model, blank(), *prompts(), cfg=1.0, cfg_low=1.0, switch_sigma=0.75, **changes
            )
        assert [rows for _, rows, _ in seen] == [16] * K + [8] * (N - K)
        assert abs(seen[K][0] - first) < 1e-6, seen
        levels = [sigma for sigma, *_ in seen]
        assert levels == sorted(levels, reverse=True)
    guider = host.nodes["SurfReshiftGuider"].execute(
        model=host.model(), **dict(zip(("positive", "negative"), prompts(), strict=True)),
        switch_step=K, cfg=4.0, cfg_low=4.0, switch_sigma=0.75, steps_low=2,
        **{k: inprocess.SETTINGS[k] for k in ("low_resolution", "low_scale", "low_width",
                                              "low_height", "sigma_policy", "noise_policy",
                                              "handover")},
    ).args[0]  # fmt: skip
    sigmas = torch.linspace(1, 0, N + 1)
    from surf.nodes.host.preview.legs import Call

    call = Call(noise=torch.ones(1, 16, 3, 16, 24), samples=blank()["samples"],
                sampler=host.samplers.sampler_object("euler"), sigmas=sigmas,
                mask=None)  # fmt: skip
    high, low = guider.legs(call)
    assert (high.evaluations, low.evaluations) == (K, 2)
    assert low.sigmas[0] == 0.75
    assert torch.equal(sigmas, torch.linspace(1, 0, N + 1))


def case_positions_of_wan_are_stretched_after_the_switch_alone(host):
    with watched(host.model()) as (model, seen):
        stretched = host.ours(
            model, blank(), *prompts(), cfg=1.0, cfg_low=1.0, rope_scale_low=2.0
        )  # fmt: skip
    plain = host.ours(host.model(), blank(), *prompts(), cfg=1.0, cfg_low=1.0)
    same(stretched[1], plain[1])
    assert not torch.equal(stretched[0]["samples"], plain[0]["samples"])
    assert [options for _, rows, options in seen if rows == 16] == [None] * K
    factors = [options["scale_x"] for _, rows, options in seen if rows == 8]
    wanted = [2 - i / (N - K - 1) for i in range(N - K)]
    assert all(abs(a - b) < 1e-5 for a, b in zip(factors, wanted, strict=True)), factors
    # The host's own stretch, constant: what its network makes of the same factor.
    where = "surf.nodes.host.preview.after_switch.AfterSwitch.rope_at"
    with mock.patch(where, return_value=1.5):
        ours = host.ours(host.model(), blank(), *prompts(), rope_scale_low=2.0)[0]
    own = host.model().clone()
    own.model_options["transformer_options"]["rope_options"] = {"scale_x": 1.5, "scale_y": 1.5}
    same(ours, host.ours(host.model(), blank(), *prompts(), model_low=own)[0])


def case_a_stretch_is_refused_where_positions_do_not_follow(host):
    hunyuan = host.model("tiny_hunyuan")
    narrow = [[[text[..., :64], more] for text, more in prompt] for prompt in prompts()]
    refused(
        lambda: host.ours(hunyuan, blank(), *narrow, rope_scale_low=2.0),
        "rope_scale_low", "positions of Wan", "set it to 1",
    )  # fmt: skip
    refused(
        lambda: host.ours(host.model(), blank(), *prompts(), switch_step=0, low_band_lock=0.5),
        "low_band_lock", "at least one step",
    )  # fmt: skip
    refused(
        lambda: host.ours(host.model(), blank(), *prompts(), switch_step=0, switch_sigma=0.5),
        "switch_sigma", "before and after",
    )  # fmt: skip


def case_every_guider_of_the_host_takes_a_lock(host):
    for name, guider in guiders(host).items():
        held, free = (guided(host, any_guider(host, guider, low_band_lock=share))[0]["samples"]
                      for share in (1.0, 0.0))  # fmt: skip
        assert not torch.equal(held, free), name
        # The coarse part of two runs with other noise after the switch is one.
        fresh = any_guider(host, guider, low_band_lock=1.0, noise_policy="fresh")
        other = guided(host, fresh)[0]["samples"]
        assert (low_band(other) - low_band(held)).abs().max() < 1e-3 * held.abs().max(), name
        assert not torch.equal(other, held), name


if __name__ == "__main__":
    results = inside.enter()
    inside.report(results, inprocess.bound(globals()))
