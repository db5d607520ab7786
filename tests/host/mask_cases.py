"""Surf Skip Mask and what Surf Refiner makes of it, inside a real host: run by test_inside.py.

    cd $COMFYUI_PATH && python tests/host/mask_cases.py RESULTS.json

Every function `case_*` asserts. Nothing here depends on how well the models draw.
"""

import functools
import tempfile
from dataclasses import replace

import checkpoints
import inside
import torch
from inprocess import refused
from inside import noise

RESULTS = inside.enter()

import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
import latent_preview  # noqa: E402
from PIL import Image  # noqa: E402
from surf.nodes.host.skip.report import rough  # noqa: E402
from surf.nodes.host.skip.shapes import shape_of  # noqa: E402
from surf.nodes.preview import SurfReshiftKSampler  # noqa: E402
from surf.nodes.refine import SurfRefiner  # noqa: E402
from surf.nodes.skip import SurfSkipMask  # noqa: E402
from surf.nodes.tiny import SurfTinyModels, SurfTinyPrompt  # noqa: E402
from surf.surf_core import cost  # noqa: E402
from surf.surf_core.skip import choose, packing, pixel_detail, weight  # noqa: E402

import nodes  # noqa: E402

PREVIEW = {
    "seed": 5, "steps": 6, "switch_step": 2, "cfg": 4.0, "cfg_low": 3.0, "shift": 3.0,
    "shift_low": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
    "low_resolution": "by scale", "low_scale": 0.5, "low_width": 64, "low_height": 64,
    "sigma_policy": "snr_equal", "noise_policy": "inherited", "handover": "reuse",
}  # fmt: skip
SIZE = {"resolution": "by scale", "scale": 4.0, "width": 256, "height": 256, "upsample": "pixel"}
CHOICE = {"predictor": "detail", "choose": "keep ratio", "keep": 0.5, "tau": 3.0, "dilate": 0}
REFINE = {
    "seed": 7, "sigma_start": 0.2, "steps": 2, "cfg": 4.0, "window": 0, "low_band_lock": 0.0,
    "colour_match": False,
}  # fmt: skip
WAN_SIZE = SIZE | {"scale": 2.0, "upsample": "latent"}
WAN_PREVIEW = {"samples": noise(1, 16, 5, 4, 6)}
folder_paths.set_temp_directory(tempfile.mkdtemp())


@functools.cache
def tiny():
    """What the node gives: model, refiner, VAE, latent."""
    return SurfTinyModels.execute().result


@functools.cache
def preview():
    model, _, _, latent = tiny()
    return SurfReshiftKSampler.execute(model, *prompts(), latent, **PREVIEW).result[0]


def prompts():
    texts = ("red ball moving right in the northwest, on sand", "")
    return [SurfTinyPrompt.execute(text).result[0] for text in texts]


@functools.cache
def chosen():
    """What Surf Skip Mask gives for the preview."""
    _, refiner, vae, _ = tiny()
    return SurfSkipMask.execute(refiner, preview(), vae=vae, **CHOICE, **SIZE)


def wan(name="tiny_wan_t2v"):
    return comfy.sd.load_diffusion_model_state_dict(checkpoints.diffusion_model(name))


def words(seed):
    return [[noise(1, 8, 4096, seed=seed), {}]]


def wan_mask(model, **changes):
    widgets = CHOICE | WAN_SIZE | changes
    return SurfSkipMask.execute(model, WAN_PREVIEW, **widgets).result


def skipped_cells(made, cells):
    """Where the start must be: [T, H, W] of bool, of a latent or of pixels `cells` times it."""
    kept = weight(made.mask.tokens, (1, 2, 2))[:, : made.size[0], : made.size[1]] > 0
    return ~kept.repeat_interleave(cells, 1).repeat_interleave(cells, 2)


def case_the_tiny_graph_refines_what_the_mask_keeps_and_nothing_else():
    _, refiner, vae, _ = tiny()
    made, ratio, _, _ = chosen().result
    assert 0.5 <= ratio < 0.75, ratio
    out, width, height, *_ = SurfRefiner.execute(
        refiner, *prompts(), preview(), vae=vae, mask=made, **SIZE, **REFINE
    ).result
    assert (width, height) == (256, 256)
    where = skipped_cells(made, 1).expand_as(made.upsampled)
    got = out["samples"]
    assert torch.equal(got[where], made.upsampled.to(got)[where])
    assert not torch.equal(got[~where], made.upsampled.to(got)[~where])
    shown = nodes.VAEDecode().decode(vae, out)[0]
    large = nodes.VAEDecode().decode(vae, {"samples": made.upsampled})[0]
    assert shown.shape == (13, 256, 256, 3)
    # A VAE mixes cells with their neighbours, so that pixels of skipped ones change a little.
    skipped = skipped_cells(made, 8)
    frames = [0, *(frame for frame in (1, 2, 3) for _ in range(4))]
    change = (shown - large).abs().mean(-1)
    assert change[skipped[frames]].mean() < 0.5 * change[~skipped[frames]].mean()


def case_the_mask_is_the_cores():
    made = chosen().result[0]
    frames = tiny()[2].decode(preview()["samples"]).movedim(-1, 1)
    scores = pixel_detail(frames, (256, 256), 4.0, cell=(4, 8))
    expected = choose(scores, keep=0.5, source="pixel detail")
    assert made.mask.source == expected.source
    assert torch.equal(made.mask.tokens, expected.tokens)


def case_the_refiner_makes_the_enlarged_preview_itself_when_it_did_not_come_along():
    _, refiner, vae, _ = tiny()
    made = chosen().result[0]
    again = {"samples": preview()["samples"].clone()}
    outs = [
        SurfRefiner.execute(
            refiner, *prompts(), latent, vae=vae, mask=made, seam=seam, **SIZE, **REFINE
        ).result[0]["samples"]
        for latent, seam in ((preview(), 0), (again, 0), (preview(), 2))
    ]
    assert torch.equal(outs[0], outs[1])
    where = skipped_cells(made, 1).expand_as(made.upsampled)
    assert torch.equal(outs[2][where], outs[0][where])
    assert not torch.equal(outs[2], outs[0])


def case_the_picture_is_in_the_node_and_moves():
    image, said = chosen().result[2], chosen().ui.as_dict()
    assert image.shape == (13, 64, 64, 3)
    assert tuple(said["animated"]) == (True,)
    [entry] = said["images"]
    assert entry["type"] == "temp"
    with Image.open(f"{folder_paths.get_temp_directory()}/{entry['filename']}") as file:
        assert (file.format, file.size, file.n_frames) == ("WEBP", (64, 64), 13)


def case_the_report_prices_the_tiny_refiner():
    made, _, _, report = chosen().result
    shape = replace(cost.TINY, layers=shape_of(tiny()[1]).layers)
    window = tiny()[1].model.diffusion_model.config.window
    assert shape_of(tiny()[1]).dim == cost.TINY.dim
    assert shape_of(tiny()[1]).text_tokens == shape_of(tiny()[0]).text_tokens == 3
    full, less = (
        cost.forward_flops(shape, 13, 256, 256, window, kept)
        for kept in (None, packing(made.mask.tokens).counts)
    )
    assert f"{less / 1e9:.3g} GFLOPs instead of {full / 1e9:.3g} GFLOPs" in report, report


def case_wan_refines_what_the_mask_keeps_without_a_vae():
    model = wan()
    made, _, image, report = wan_mask(model)
    assert image.shape == (5, 32, 48, 3)
    assert "windows of 4" in report
    assert "full attention" in report
    sizes = WAN_SIZE | REFINE | {"window": 2, "sigma_start": 0.6}
    out = SurfRefiner.execute(model, words(1), words(2), WAN_PREVIEW, mask=made, **sizes).result[0]
    where = skipped_cells(made, 1).expand_as(made.upsampled)
    got = out["samples"]
    assert torch.equal(got[where], made.upsampled.to(got)[where])
    assert not torch.equal(got[~where], made.upsampled.to(got)[~where])


def case_sizes_that_wan_pads_are_masked_in_whole_tokens():
    model = wan()
    odd = {"resolution": "by size", "height": 56, "width": 72}
    made = wan_mask(model, **odd)[0]
    assert (made.size, made.mask.grid) == ((7, 9), (5, 4, 5))
    sizes = WAN_SIZE | odd | REFINE | {"sigma_start": 0.6}
    out = SurfRefiner.execute(model, words(1), words(2), WAN_PREVIEW, mask=made, **sizes).result[0]
    where = skipped_cells(made, 1).expand_as(made.upsampled)
    assert torch.equal(out["samples"][where], made.upsampled.to(out["samples"])[where])


def case_shapes_of_the_hosts_models_are_read_or_not_known():
    for name in ("tiny_wan_t2v", "tiny_wan_i2v"):
        shape = shape_of(wan(name))
        assert (shape.dim, shape.layers, shape.ffn_dim) == (128, 2, 256)
        assert (shape.text_tokens, shape.patch) == (512, (1, 2, 2))
    assert shape_of(wan("tiny_wan_vace")).layers == 3
    shape = shape_of(wan("tiny_hunyuan"))
    assert (shape.dim, shape.layers, shape.ffn_dim, shape.joint_text) == (128, 2, 512, True)
    assert shape_of(wan("tiny_wan_ref")) is None
    report = wan_mask(wan("tiny_wan_ref"))[3]
    assert "cost: not known for a WanModel" in report, report
    report = wan_mask(wan("tiny_hunyuan"))[3]
    assert "saved" in report, report


def case_without_a_vae_colours_are_those_of_a_running_job():
    model = wan()
    latent_format = model.model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(
        latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    )
    samples = noise(1, 16, 1, 4, 6) * 0.1
    shown = previewer.decode_latent_to_preview(model.model.process_latent_in(samples))
    expected = torch.tensor(list(shown.getdata())).reshape(4, 6, 3) / 255
    got = rough(model, samples)
    assert got.shape == (1, 3, 32, 48)
    torch.testing.assert_close(got[0, :, ::8, ::8].movedim(0, -1), expected, rtol=0, atol=0.01)


def case_an_image_is_encoded_by_the_hosts_vae_and_refined_from():
    model, vae = wan(), comfy.sd.VAE(sd=checkpoints.wan_vae())
    image = torch.rand(17, 64, 96, 3, generator=torch.Generator().manual_seed(3))
    before = image.clone()
    sizes = WAN_SIZE | {"upsample": "pixel"}
    widgets = CHOICE | {"predictor": "detail"} | sizes
    out = SurfSkipMask.execute(model, WAN_PREVIEW, vae=vae, image=image, **widgets).result
    made = out[0]
    assert torch.equal(image, before)
    torch.testing.assert_close(made.upsampled.to(image), vae.encode(image.clone()).to(image))
    assert out[2].shape == (17, 32, 48, 3)
    run = SurfRefiner.execute(
        model, words(1), words(2), WAN_PREVIEW, vae=vae, mask=made, **sizes, **REFINE
    ).result[0]["samples"]
    where = skipped_cells(made, 1).expand_as(made.upsampled)
    assert torch.equal(run[where], made.upsampled.to(run)[where])
    refused(
        lambda: SurfSkipMask.execute(model, WAN_PREVIEW, vae=vae, image=image[:5], **widgets),
        "Surf Skip Mask: ", "17 frames", "got 5",
    )  # fmt: skip


def case_the_network_on_pixels_chooses_for_the_models_of_the_host():
    _, refiner, vae, _ = tiny()
    widgets = CHOICE | SIZE | {"predictor": "footage"}
    made, ratio, _, text = SurfSkipMask.execute(refiner, preview(), vae=vae, **widgets).result
    assert 0.5 <= ratio < 0.75, ratio
    assert "network on pixels" in text, text
    assert made.mask.scores.isfinite().all()
    assert not torch.equal(made.mask.scores, chosen().result[0].mask.scores)
    refused(lambda: wan_mask(wan(), predictor="footage"), "Surf Skip Mask: ", "footage", "VAE")


def case_what_does_not_fit_is_refused_by_name():
    model = wan()
    refused(lambda: wan_mask(model, predictor="tiny"), "Surf Skip Mask: ", "'tiny', which is not")
    refused(
        lambda: wan_mask(model, choose="tau", tau=250.0), "Surf Skip Mask: ", "250.0", "keep ratio"
    )
    made = wan_mask(model, scale=1.5)[0]
    refused(
        lambda: SurfRefiner.execute(
            model, words(1), words(2), WAN_PREVIEW, mask=made, **WAN_SIZE, **REFINE
        ),
        "Surf Refiner: ", "another resolution",
    )  # fmt: skip


def case_the_schema_is_read_by_the_host():
    """As the host does it for its list of nodes."""
    info = SurfSkipMask.GET_NODE_INFO_V1()
    assert info["output"] == ["SURF_MASK", "FLOAT", "IMAGE", "STRING"]
    assert info["output_node"]
    inputs = {**info["input"]["required"], **info["input"]["optional"]}
    assert inputs["predictor"][1]["options"][:2] == ["detail", "footage"]
    refiner = SurfRefiner.GET_NODE_INFO_V1()["input"]["optional"]
    names = list(refiner)
    at = names.index("mask")
    assert names[at : at + 4] == ["mask", "seam", "made_width", "made_height"]
    assert refiner["mask"][0] == "SURF_MASK"


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
