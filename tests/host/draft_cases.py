"""Drafts of one seed: their noise, their masks, and what is made of the chosen one.

    python tests/host/draft_cases.py RESULTS.json

Run with the host's folder as the working directory and its Python; see test_inside.py.
"""

import resource
import sys
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))

import av_models  # noqa: E402
import inside  # noqa: E402
from av_runs import H3, LTX, STEPS, basic, inputs, switched  # noqa: E402
from av_runs import model as av_model  # noqa: E402
from inprocess import Host, prompts, random, refused, same  # noqa: E402

RESULTS = inside.enter()

import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from surf.surf_core.training.live_bytes import LiveBytes  # noqa: E402

HOST = Host()
SEED, COUNT = 11, 3
BLANK = {"samples": torch.zeros(1, 16, 3, 8, 12)}
REFINE = {
    "resolution": "by scale", "scale": 2.0, "width": 64, "height": 64, "upsample": "latent",
    "sigma_start": 0.7, "steps": 2, "cfg": 1.0, "window": 0, "low_band_lock": 0.0,
    "colour_match": False,
}  # fmt: skip


def started(latent=None, how="one by one", count=COUNT):
    node = HOST.nodes["SurfStartDrafts"]
    return node.execute(latent=latent or BLANK, count=count, how=how).args[0]


def sampled(latent, seed=SEED, **changes):
    return HOST.ours(HOST.model(), latent, *prompts(), seed=seed, **changes)[0]


def chosen(drafts, index, **more):
    node = HOST.nodes["SurfDrafts"]
    return node.execute(drafts=drafts, index=[index], fps=[16.0], **more).args[0]


def again(draft, start=None):
    return HOST.nodes["SurfFinishDraft"].execute(draft=draft, start=start or BLANK).args


def noise_of(sample):
    """What the host draws for the first run of a function."""
    drawn, draw = [], comfy.sample.prepare_noise

    def note(*args):
        drawn.append(draw(*args))
        return drawn[-1]

    with mock.patch.object(comfy.sample, "prepare_noise", note):
        sample()
    return drawn[0]


def plain(latent, seed=SEED):
    """Run the host's own KSampler."""
    return HOST.stock.KSampler().sample(
        HOST.model(), seed, 2, 1.0, "euler", "simple", *prompts(), latent
    )[0]


def refined(latent):
    node = HOST.nodes["SurfRefiner"]
    return node.execute(
        model=HOST.model(), positive=prompts()[0], negative=prompts()[1], latent=latent, seed=3,
        **REFINE,
    ).args[0]  # fmt: skip


def case_the_noise_of_a_draft_is_that_of_an_item_of_the_hosts_batch():
    whole = {"samples": torch.zeros(COUNT, *BLANK["samples"].shape[1:])}
    expected = comfy.sample.prepare_noise(whole["samples"], SEED)
    batch = started(how="as a batch")
    same(noise_of(lambda: sampled(batch[0])), expected)
    ones = [noise_of(lambda one=one: sampled(one)) for one in started()]
    same(torch.cat(ones), expected)
    for place, one in enumerate(started()):
        [own] = HOST.stock.LatentFromBatch().frombatch(whole, place, 1)
        assert one["batch_index"] == own["batch_index"] == [place]


def case_drafts_one_by_one_are_those_of_a_batch():
    batch = sampled(started(how="as a batch")[0])
    ones = [sampled(one) for one in started()]
    for index in range(1, COUNT + 1):
        many, alone = chosen([batch], index), chosen(ones, index)
        assert many["batch_index"] == alone["batch_index"] == [index - 1]
        assert many["surf_draft"] == alone["surf_draft"]
        # A batch and an item alone are multiplied in another order.
        same(many, alone, 2e-5)


def peak(sample):
    """Bytes alive at once while drafts are sampled, beside the model's weights."""
    with LiveBytes(HOST.model().model.diffusion_model) as live:
        made = sample()
    return live.peak, made


def case_drafts_one_by_one_take_the_memory_of_one():
    latent = {"samples": torch.zeros(1, 16, 3, 16, 24)}
    sampled(latent)
    alone, _ = peak(lambda: sampled(latent))
    ones = started(latent, count=4)
    one_by_one, made = peak(lambda: [sampled(one) for one in ones])
    kept = sum(each["samples"].nbytes for each in made)
    [batch] = started(latent, "as a batch", 4)
    together, _ = peak(lambda: sampled(batch))
    assert one_by_one <= alone + kept, (one_by_one, alone, kept)
    assert together > 3 * alone, (together, alone)


def case_the_chosen_draft_is_the_one_that_was_sampled():
    ones = [sampled(one) for one in started()]
    for index, one in enumerate(ones, 1):
        draft = chosen(ones, index)
        start, seed = again(draft)
        same(draft, one)
        same(start, BLANK)
        assert seed == SEED
        assert start["batch_index"] == one["batch_index"] == [index - 1]


def case_refining_the_chosen_draft_is_refining_it_alone():
    """Alone: the draft that its seed and number make where no other is made."""
    ones = [sampled(one) for one in started()]
    expected = refined(sampled({**BLANK, "batch_index": [1]}))
    same(refined(chosen(ones, 2)), expected)
    draws = [noise_of(lambda one=one: refined(one)) for one in ones]
    large = torch.zeros(COUNT, *draws[0].shape[1:])
    same(torch.cat(draws), comfy.sample.prepare_noise(large, 3))


def case_finishing_in_full_starts_from_the_noise_of_the_draft():
    ones = [sampled(one) for one in started()]
    batch = {"samples": torch.zeros(COUNT, *BLANK["samples"].shape[1:])}
    start, seed = again(chosen(ones, 3), batch)
    own = noise_of(lambda: sampled({**BLANK, "batch_index": [2]}))
    same(noise_of(lambda: plain(start, seed)), own)
    same(plain(start, seed), plain({**BLANK, "batch_index": [2]}))


def case_samplers_that_draw_noise_make_a_draft_as_it_is_alone():
    for name in ("euler_ancestral", "dpmpp_2m_sde"):
        ones = [sampled(one, sampler_name=name) for one in started()]
        same(ones[1], sampled({**BLANK, "batch_index": [1]}, sampler_name=name))


def case_a_draft_has_its_own_noise_mask():
    mask = torch.zeros(COUNT, 1, 3, 8, 12)
    for place in range(COUNT):
        mask[place, ..., 4 * place : 4 * place + 4] = 1
    whole = {"samples": random(COUNT, 16, 3, 8, 12), "noise_mask": mask}
    batch = sampled(started(whole, "as a batch", 1)[0])
    ones = [sampled(one) for one in started(whole, count=1)]
    assert [tuple(one["noise_mask"].shape) for one in ones] == [(1, 1, 3, 4, 6)] * COUNT
    for index in range(1, COUNT + 1):
        many, alone = chosen([batch], index), chosen(ones, index)
        same(many["noise_mask"], alone["noise_mask"])
        same(many, alone, 2e-5)


def case_latents_of_another_kind_are_refused_where_they_would_be_used():
    draft = sampled(started(count=1)[0])
    model = HOST.model("tiny_hunyuan")
    conds = [[[random(1, 8, 64), {"pooled_output": random(1, 768)}]]] * 2
    refiner = HOST.nodes["SurfRefiner"]
    given = {"model": model, "positive": conds[0], "negative": conds[1], "seed": 3, **REFINE}
    refused(lambda: refiner.execute(latent=draft, **given), "HunyuanVideo", "Wan21")
    refiner.execute(latent={"samples": draft["samples"]}, **given)


def case_a_draft_is_not_finished_by_a_model_of_other_latents():
    """Refused before anything is sampled: by the node, or by the sampler that gets its latent."""
    draft, finish = sampled(started(count=1)[0]), HOST.nodes["SurfFinishDraft"].execute
    start, _ = again(draft)
    for name, kind in (("tiny_wan22_5b", "Wan22"), ("tiny_hunyuan", "HunyuanVideo")):
        model = HOST.model(name)
        refused(
            lambda m=model: finish(draft=draft, start=BLANK, model=m),
            "Surf Finish Draft: draft", f"of the kind {kind}", "got a draft of the kind Wan21, of",
        )  # fmt: skip
        refused(lambda m=model: HOST.ours(m, start, *prompts(), seed=SEED), kind, "Wan21; connect")
    low_noise = HOST.model("tiny_wan_low_noise")
    finish(draft=draft, start=BLANK, model=low_noise)
    HOST.ours(low_noise, start, *prompts(), seed=SEED)


def case_a_draft_is_not_finished_by_a_model_of_video_and_sound_nor_the_reverse():
    av_models.check_known()
    draft, finish = sampled(started(count=1)[0]), HOST.nodes["SurfFinishDraft"].execute
    for name in (H3, LTX):
        given, model = {"samples": inputs(name)[1]}, av_model(name)
        refused(
            lambda m=model: finish(draft=draft, start=BLANK, model=m),
            "Surf Finish Draft: draft", "got a draft of the kind Wan21",
        )  # fmt: skip
        # Without the model, the start tells.
        refused(lambda g=given: again(draft, g), "expected a start of the draft's model", "16")
        unsaid = {**given, "surf_draft": {"seed": SEED}}
        said = chosen([unsaid], 1, model=[model])
        finish(draft=said, start=given, model=model)
        for made, words in ((said, "expected latents of the kind Wan21"), (unsaid, "draft")):
            refused(
                lambda d=made: finish(draft=d, start=BLANK, model=HOST.model()),
                "Surf Finish Draft: draft", words,
            )  # fmt: skip


def case_the_host_colours_drafts_without_a_vae():
    from surf.nodes.host.drafts.pictures import latent_format, previewed

    draft = sampled(started(count=1)[0])
    kind = HOST.model().get_model_object("latent_format")
    expected = HOST.preview.Latent2RGBPreviewer(
        kind.latent_rgb_factors, kind.latent_rgb_factors_bias, kind.latent_rgb_factors_reshape
    )
    for model in (None, HOST.model()):
        frames = previewed(draft, latent_format(draft, model))
        assert tuple(frames.shape) == (3, 4, 6, 3)
        for place, frame in enumerate(frames):
            clean = HOST.model().model.process_latent_in(draft["samples"])[:, :, place : place + 1]
            image = expected.decode_latent_to_preview(clean)
            data = torch.tensor(list(image.convert("RGB").tobytes())).reshape(4, 6, 3)
            assert torch.equal((frame * 255).round().long(), data)


def case_video_with_sound_is_drafted_one_by_one():
    """As any sampler of the host runs it: RandomNoise draws by the number of the item."""
    av_models.check_known()
    for name in (H3, LTX):
        _, samples, sampler, sigmas = inputs(name)
        drafts = []
        for one in started({"samples": samples}):
            draw = HOST.custom.Noise_RandomNoise(SEED)
            node = HOST.custom.SamplerCustomAdvanced
            guider = switched(basic(name))
            drafts.append(node.execute(draw, guider, sampler, sigmas[: STEPS + 1], one).result[0])
        draft = chosen(drafts, 2, seed=[SEED])
        start, seed = again(draft, {"samples": samples})
        alone = {"samples": samples, "batch_index": [1]}
        expected = comfy.sample.prepare_noise(samples, SEED, [1]).unbind()
        drawn = comfy.sample.prepare_noise(start["samples"], seed, start["batch_index"]).unbind()
        guider = switched(basic(name))
        repeated = HOST.custom.SamplerCustomAdvanced.execute(
            HOST.custom.Noise_RandomNoise(seed), guider, sampler, sigmas, alone
        ).result[0]
        for a, b, c, d in zip(
            draft["samples"].unbind(), repeated["samples"].unbind(), drawn, expected, strict=True
        ):
            same(a, b)
            same(c, d)
        assert draft["batch_index"] == [1]
        assert draft["surf_draft"] == {"seed": SEED}
        gaps = [(x["samples"].unbind()[0] - draft["samples"].unbind()[0]).std() for x in drafts]
        assert gaps[1] == 0 < min(gaps[0], gaps[2])
        refused(lambda s=samples: started({"samples": s}, "as a batch"), "one by one")


def case_a_draft_with_sound_comes_back_from_its_file_to_the_bit():
    """With the host's nested latents and masks, which its own Save Latent cannot save."""
    av_models.check_known()
    folder_paths.set_output_directory(tempfile.mkdtemp())
    nested = sys.modules["comfy.nested_tensor"].NestedTensor
    for name in (H3, LTX):
        video, sound = inputs(name)[1].unbind()
        keep = [torch.rand_like(video[:, :1]), torch.rand_like(sound[:, :1])]
        latents = nested([random(*video.shape, seed=5).half(), random(*sound.shape, seed=6)])
        draft = {"samples": latents, "noise_mask": nested(keep), "batch_index": [3]}
        HOST.nodes["SurfSaveDraft"].execute(draft=draft, filename_prefix=f"sound/{name}")
        file = f"sound/{name}_00001_.draft.safetensors [output]"
        found = HOST.nodes["SurfLoadDraft"].execute(file=file).args[0]
        assert found["batch_index"] == [3]
        for key in ("samples", "noise_mask"):
            assert type(found[key]) is nested
            for one, other in zip(found[key].unbind(), draft[key].unbind(), strict=True):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)


def case_a_full_disk_is_said_with_what_to_do_and_leaves_no_file():
    """Under the system's own limit of a file's size: the host's and safetensors' writing fails."""
    output, temp = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    folder_paths.set_output_directory(str(output))
    folder_paths.set_temp_directory(str(temp))
    draft = {"samples": random(1, 16, 5, 32, 32, seed=5)}
    save, show = HOST.nodes["SurfSaveDraft"], partial(chosen, model=[HOST.model()])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
    try:
        full = "File too large", "make room"
        refused(lambda: save.execute(draft=draft, filename_prefix="a"), *full, str(output))
        refused(lambda: show([draft], 1), *full, str(temp), "--temp-directory")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(output.iterdir()) == list(temp.iterdir()) == []


if __name__ == "__main__":
    inside.report(RESULTS, globals())
