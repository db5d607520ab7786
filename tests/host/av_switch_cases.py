"""The switch on video and audio: exact where it must be, for guiders, samplers, masks, keyframes.

    python tests/host/av_switch_cases.py RESULTS.json

Run with the host's folder as the working directory and its Python; see test_inside.py.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))

import av_models  # noqa: E402
import inside  # noqa: E402
from av_runs import (  # noqa: E402
    FAMILIES,
    H3,
    HIGH,
    LTX,
    LTX_25,
    PRUNED,
    SEED,
    STEPS,
    K,
    basic,
    gap,
    guided,
    inputs,
    model,
    plain,
    severed,
    sound_gap,
    switched,
    through_estimate,
)
from inprocess import refused  # noqa: E402

RESULTS = inside.enter()

import torch  # noqa: E402

EXACT = 1e-6
HISTORY = {"res_multistep": 5e-2, "dpmpp_2m": 5e-2, "heun": 2e-2, "uni_pc": 1e-1}
"""Samplers that begin anew after a switch -> how far that may lead, relative; measured are 1e-4 to
4e-2 on these networks."""
DRAWING = ("euler_ancestral", "lcm", "dpmpp_2m_sde")
"""Samplers that draw other noise after a switch."""


def case_a_switch_to_the_same_size_is_the_uninterrupted_run():
    """Through the clean estimate and its implied noise, at an early, a middle and a late step."""
    for name in FAMILIES:
        given, expected = inputs(name), plain(basic(name), inputs(name))
        for k in (1, K, STEPS - 1):
            assert max(gap(through_estimate(basic(name), given, k), expected)) < EXACT, (name, k)
        # Handed on with the noise left in it.
        assert max(gap(plain(switched(basic(name), low_scale=1.0), given), expected)) < EXACT


def case_every_guider_of_the_host_keeps_its_run_through_the_same_size():
    from comfy_extras.nodes_custom_sampler import Guider_DualModel
    from comfy_extras.nodes_lt import Guider_LTXAVDualCFG

    def dual_cfg(name):
        guider = Guider_LTXAVDualCFG(model(name))
        guider.set_conds(av_models.prompt(name), av_models.prompt(name, seed=2))
        guider.set_cfg(3.0, 7.0)
        return guider

    def dual_model(name):
        guider = Guider_DualModel(model(name), model(name).clone())
        guider.set_conds(av_models.prompt(name), av_models.prompt(name, seed=2))
        guider.set_cfg(2.0)
        return guider

    makers = [(lambda name: guided(name, 4.0), (H3, LTX)), (dual_cfg, (LTX, LTX_25))]
    for make, names in [*makers, (dual_model, (LTX,))]:
        for name in names:
            given = inputs(name)
            assert max(gap(through_estimate(make(name), given), plain(make(name), given))) < 3e-6
    refused(lambda: switched(dual_model(LTX), model_low=model(LTX)), "one model", "would stay")


def case_sound_goes_on_exactly_through_a_switch_to_half_size():
    """With the video cut off from sound and text, and the sound's positions pinned."""
    for name in FAMILIES:
        given, guider = inputs(name), basic(name)
        with severed(name, guider):
            expected = plain(guider, given)
            for noise in ("inherited", "fresh"):
                ours = plain(switched(guider, noise_policy=noise), given)
                assert ours.unbind()[0].shape[-2:] < HIGH
                assert sound_gap(ours, expected) < EXACT, (name, noise)


def case_a_lock_holds_the_coarse_video_and_leaves_the_sound():
    """With other noise after the switch the low band is one; the sound is the plain run's."""
    from surf.surf_core.lowband import low_band

    for name in (H3, LTX):
        given, guider = inputs(name), basic(name)
        with severed(name, guider):
            expected = plain(guider, given)
            policies = ("inherited", "fresh")
            held, other = (
                plain(switched(guider, noise_policy=each, low_band_lock=1.0), given)
                for each in policies
            )
            loose = [plain(switched(guider, noise_policy=each), given) for each in policies]
        assert max(sound_gap(out, expected) for out in (held, other)) < EXACT, name
        scale = held.unbind()[0].abs().max()
        first, second = (
            (low_band(a.unbind()[0], 2) - low_band(b.unbind()[0], 2)).abs().max() / scale
            for a, b in ((held, other), loose)
        )
        assert first < 1e-4 < 1e-2 < second, (name, first, second)


def case_equal_signal_to_noise_leaves_the_sound_of_minimax_h3_on_its_own_schedule():
    """Of the text, whose noise level is the video's, the sound hears: so it is cut off as well."""
    for name in (H3, PRUNED):
        given, guider = inputs(name), basic(name)
        with severed(name, guider, from_text=True):
            expected = plain(guider, given)
            for changes in ({}, {"noise_policy": "fresh"}, {"low_scale": 0.75}):
                ours = plain(switched(guider, sigma_policy="snr_equal", **changes), given)
                assert sound_gap(ours, expected) < 2e-6, (name, changes)


def case_the_video_starts_lower_while_the_sound_stays_where_it_was():
    """The network's own noise levels, of video and sound, at every evaluation of both parts."""
    from comfy.ldm.minimax.model import time_shift_sigma

    seen = {}
    for policy in ("same", "snr_equal"):
        levels = seen.setdefault(policy, [])

        def watch(executor, x, timestep, *args, levels=levels, **kwargs):
            options = args[1] if len(args) > 1 else kwargs["transformer_options"]
            sigma = timestep.flatten()[0].float() / 1000
            video = options.get("minimax_h3_sigma_shift_video", 12.0)
            audio = options.get("minimax_h3_sigma_shift_audio", 3.0)
            levels.append((sigma.item(), time_shift_sigma(sigma, video, audio).item()))
            return executor(x, timestep, *args, **kwargs)

        import comfy.patcher_extension

        patcher = model(H3).clone()
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        patcher.add_wrapper_with_key(kind, "levels", watch)
        plain(switched(basic(H3, patcher), sigma_policy=policy), inputs(H3))
    (same, lower), sigmas = seen.values(), inputs(H3)[-1].tolist()
    assert [round(video, 5) for video, _ in same] == [round(sigma, 5) for sigma in sigmas[:-1]]
    ratio = (60 / 24) ** 0.5
    for index, ((video, audio), (less, heard)) in enumerate(zip(same, lower, strict=True)):
        expected = video if index < K else video / (video + ratio * (1 - video))
        assert abs(less - expected) < 1e-5, (index, less, expected)
        assert abs(heard - audio) < 1e-5, (index, heard, audio)


def case_sound_of_ltx_has_no_schedule_of_its_own_which_is_refused_before_sampling():
    ours = switched(basic(LTX), sigma_policy="snr_equal")
    refused(lambda: plain(ours, inputs(LTX)), "sigma_policy", "same", "LTXAV")


def case_samplers_with_a_history_begin_anew_and_those_that_draw_draw_anew():
    for name in (H3, LTX):
        for sampler, bound in HISTORY.items():
            given = inputs(name, sampler=sampler)
            far = gap(through_estimate(basic(name), given), plain(basic(name), given))
            assert max(far) < bound, (name, sampler, far)
        for sampler in DRAWING:
            given = inputs(name, sampler=sampler)
            far = gap(through_estimate(basic(name), given), plain(basic(name), given))
            assert 0.1 < min(far) < 3, (name, sampler, far)


def case_the_template_of_minimax_h3_gets_a_smaller_video_with_its_sound():
    """BasicGuider, res_multistep, 20, 8 and 6 evaluations, through SamplerCustomAdvanced."""
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    for name in (H3, PRUNED):
        for steps, k in ((20, 5), (8, 2), (6, 2)):
            noise, latent, sampler, sigmas = inputs(name, sampler="res_multistep", steps=steps)
            drawn = SimpleNamespace(seed=SEED, generate_noise=lambda _, noise=noise: noise)
            ours = switched(basic(name), switch_step=k)
            out, clean = SamplerCustomAdvanced.execute(
                drawn, ours, sampler, sigmas, {"samples": latent}
            ).args
            for video, audio in (out["samples"].unbind(), clean["samples"].unbind()):
                assert video.shape == (1, 24, 7, 4, 6)
                assert audio.shape == latent.unbind()[1].shape
                assert torch.isfinite(video).all()
            # The run ends in 0, so its last estimate is the result.
            assert max(gap(clean["samples"], out["samples"])) < EXACT


def case_odd_sizes_run_and_several_switches_do():
    for name, size in ((H3, (5, 7)), (PRUNED, (7, 9)), (LTX, (3, 5))):
        out = plain(switched(basic(name), low_scale=0.6), inputs(name, size))
        assert all(
            side <= most for side, most in zip(out.unbind()[0].shape[-2:], size, strict=True)
        )
    from surf.nodes.guiders import SurfReshiftLadder

    for name, policy in ((H3, "snr_equal"), (H3, "same"), (LTX, "same")):
        ladder = SurfReshiftLadder.execute(
            guider=basic(name), sizes="2: 0.75, 4: 0.5", sigma_policy=policy,
            noise_policy="inherited", handover="reuse",
        ).args[0]  # fmt: skip
        video, audio = plain(ladder, inputs(name, (8, 12))).unbind()
        assert video.shape[-2:] == (4, 6)
        assert torch.isfinite(audio).all()


def case_latents_of_any_length_run_where_the_sound_fits():
    """A still, clips that were cut in time, and lengths that the host's nodes round down."""
    import comfy.sample
    from comfy.nested_tensor import NestedTensor
    from surf.nodes.host.audio_length import pixel_frames

    cases = [(H3, frames, round(pixel_frames(frames) * 40 / 24)) for frames in (1, 3, 6, 11)]
    for name, frames, sounds in [*cases, (LTX, 1, 1), (LTX, 3, 20), (LTX, 3, 24)]:
        _, latent, sampler, sigmas = inputs(name)
        video, audio = latent.unbind()
        shapes = (*video.shape[:2], frames, *HIGH), list(audio.shape)
        shapes[1][-1 if name == H3 else 2] = sounds
        empty = NestedTensor([torch.zeros(shape) for shape in shapes])
        given = comfy.sample.prepare_noise(empty, SEED), empty, sampler, sigmas
        far = gap(through_estimate(basic(name), given), plain(basic(name), given))
        assert max(far) < EXACT, (name, frames, far)
        half = plain(switched(basic(name)), given).unbind()
        small = (4, 6) if name == H3 else (3, 5)
        assert [tuple(part.shape) for part in half] == [(*shapes[0][:3], *small), tuple(shapes[1])]


def case_a_still_of_minimax_h3_needs_no_sound_in_its_latent():
    """The host adds it to an empty latent of an image, as its template for stills does."""
    import comfy.sample
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    _, _, sampler, sigmas = inputs(H3)
    drawn = SimpleNamespace(
        seed=SEED, generate_noise=lambda given: comfy.sample.prepare_noise(given["samples"], SEED)
    )
    image = {"samples": torch.zeros(1, 4, 24, 40), "downscale_ratio_spacial": 8}
    out = SamplerCustomAdvanced.execute(drawn, switched(basic(H3)), sampler, sigmas, image).args[0]
    video, audio = out["samples"].unbind()
    assert (video.shape, audio.shape) == ((1, 24, 1, 6, 10), (1, 32, 2, 2))


def case_an_interrupt_ends_the_run_in_either_part_and_leaves_the_guider():
    import comfy.model_management as management

    for at in (1, K + 2):
        guider, given = basic(H3), inputs(H3)
        ours, before = switched(guider), dict(guider.original_conds)

        def stop(step, x0, x, total, at=at):
            assert x0.is_nested
            if step == at:
                raise management.InterruptProcessingException()

        try:
            plain(ours, given, callback=stop)
        except management.InterruptProcessingException:
            pass
        else:
            raise AssertionError("was swallowed")
        assert guider.original_conds == before
        assert guider.model_patcher is model(H3)
        assert max(gap(plain(guider, given), plain(basic(H3), given))) == 0


def case_progress_counts_all_evaluations_once():
    seen = []
    plain(switched(basic(H3)), inputs(H3), callback=lambda step, x0, x, total: seen.append(
        (step, total, tuple(x0.unbind()[0].shape[-2:]))))  # fmt: skip
    assert [step for step, *_ in seen] == list(range(STEPS))
    assert {total for _, total, _ in seen} == {STEPS}
    assert [size for *_, size in seen] == [HIGH] * K + [(4, 6)] * (STEPS - K)


def case_step_caches_of_the_host_are_off_where_an_estimate_crosses():
    from comfy_extras.nodes_easycache import EasyCacheNode

    for name in (H3, LTX):
        [cached] = EasyCacheNode.execute(model(name), 1e9, 0.0, 1.0, False).args
        given = inputs(name)
        ours = plain(switched(basic(name, cached), low_scale=0.5, switch_step=STEPS - 1), given)
        expected = plain(switched(basic(name), low_scale=0.5, switch_step=STEPS - 1), given)
        assert max(gap(ours, expected)) < EXACT, name


if __name__ == "__main__":
    inside.report(RESULTS, globals(), av_models.check_known)
