"""Conditioning that is placed by the size it was made for, inside a real host, in its process.

    cd $COMFYUI_PATH && python tests/host/made_for_cases.py RESULTS.json

Run by test_inside.py, all cases at once. Every function `case_*` asserts.
"""

import checkpoints
import inside
import torch
from inprocess import blank, prompts, refused
from inside import noise

RESULTS = inside.enter()

import comfy.sd  # noqa: E402
from inprocess import Host  # noqa: E402
from surf.nodes.refine import SurfRefiner  # noqa: E402

import nodes  # noqa: E402

HOST = Host()
SETTINGS = {
    "seed": 3, "resolution": "by scale", "scale": 3.0, "width": 64, "height": 64,
    "upsample": "latent", "sigma_start": 0.65, "steps": 1, "cfg": 4.5, "window": 0,
    "low_band_lock": 0.0, "colour_match": False,
}  # fmt: skip


def recording(model):
    """A clone, and the places at which it is called: rows, columns and what lies beside them."""
    seen, clone = [], model.clone()

    def run(apply_model, args):
        beside = {name: tuple(x.shape) for name, x in args["c"].items() if torch.is_tensor(x)}
        seen.append((tuple(args["input"].shape[-2:]), beside))
        return apply_model(args["input"], args["timestep"], **args["c"])

    clone.set_model_unet_function_wrapper(run)
    return clone, seen


def refine(model, latent, conds, **changes):
    return SurfRefiner.execute(model, *conds, latent, **(SETTINGS | changes)).result[0]


def sizes(seen):
    return {size for size, _ in seen}


def right_half(cond):
    """Confine a prompt for 16 x 24 cells to the right half, by the host's node."""
    return nodes.ConditioningSetArea().append(cond, 96, 128, 96, 0, 1.0)[0]


def check_area(model, latent):
    """After the switch and in the refiner the prompt is that of the right half."""
    model, seen = recording(model)
    pos, neg = prompts(pooled_output=noise(1, 2048))
    preview, _ = HOST.ours(model, latent, right_half(pos), neg)
    assert sizes(seen) == {(16, 24), (16, 12), (8, 12), (8, 6)}, sizes(seen)
    seen.clear()
    refine(model, preview, (right_half(pos), neg))
    assert sizes(seen) == {(24, 36), (24, 18)}, sizes(seen)
    seen.clear()
    bare = {"samples": preview["samples"]}
    refused(lambda: refine(model, bare, (right_half(pos), neg)), "Surf Refiner", "made_width")
    assert not seen
    refine(model, bare, (right_half(pos), neg), made_width=192, made_height=128)
    assert sizes(seen) == {(24, 36), (24, 18)}, sizes(seen)


def case_an_area_of_a_video_lies_where_it_was_made():
    check_area(HOST.model(), blank())


def case_an_area_of_an_image_lies_where_it_was_made():
    model = comfy.sd.load_diffusion_model_state_dict(checkpoints.sd3())
    check_area(model, {"samples": torch.zeros(1, 16, 16, 24)})


def case_images_and_videos_are_told_apart_and_windows_need_a_video():
    image, video = comfy.sd.load_diffusion_model_state_dict(checkpoints.sd3()), HOST.model()
    conds = prompts(pooled_output=noise(1, 2048))
    still, moving = noise(1, 16, 8, 12), noise(1, 16, 3, 8, 12)
    refused(lambda: refine(image, {"samples": moving}, conds), "Surf Refiner", "an image latent")
    refused(lambda: refine(video, {"samples": still}, conds), "Surf Refiner", "a video latent")
    refused(lambda: HOST.ours(image, {"samples": moving}, *conds), "Surf Reshift KSampler", "SD3")
    refused(lambda: HOST.ours(video, {"samples": still}, *conds), "Surf Reshift KSampler", "WAN21")
    refused(lambda: refine(image, {"samples": still}, conds, window=4), "MMDIT", "set window to 0")
    assert refine(image, {"samples": still}, conds)["samples"].shape == (1, 16, 24, 36)
    HOST.ours(video, {"samples": torch.zeros(1, 16, 16, 24)}, *conds)


def case_the_key_goes_through_the_hosts_nodes_and_a_crop_is_seen():
    model, conds = HOST.model(), prompts()
    pos = right_half(conds[0])
    preview, _ = HOST.ours(model, blank(), *conds)
    item = nodes.LatentFromBatch().frombatch(preview, 0, 1)[0]
    refine(model, item, (pos, conds[1]))
    flat = {**preview, "samples": preview["samples"]}
    cropped = nodes.LatentCrop().crop(flat, 32, 64, 0, 0)[0]
    refused(lambda: refine(model, cropped, (pos, conds[1])), "Surf Refiner", "made_width")


def case_poses_of_scail_stay_at_half_of_the_grid():
    import comfy.ldm.wan.model as wan

    if not hasattr(wan, "SCAILWanModel"):
        return
    masks = {
        "driving_mask_28ch": torch.rand(1, 3, 28, 8, 12),
        "ref_mask_28ch": torch.rand(1, 4, 28, 16, 24), "ref_mask_flag": True,
    }  # fmt: skip
    for kind, more in (("SCAILWanModel", {}), ("SCAIL2WanModel", masks)):
        state = checkpoints.scail(kind)
        model, seen = recording(comfy.sd.load_diffusion_model_state_dict(state))
        options = {
            "pose_video_latent": noise(1, 16, 3, 8, 12), **more,
            "reference_latents": [noise(1, 16, 1, 16, 24)],
        }  # fmt: skip
        conds = prompts(**options)
        for scale, half, low in ((0.5, (4, 6), (8, 12)), (0.75, (6, 9), (12, 18))):
            preview, _ = HOST.ours(model, blank(), *conds, low_scale=scale)
            check_poses(seen, {(16, 24): (8, 12), low: half}, bool(more))
        bare = {"samples": preview["samples"][..., :8, :12]}
        for times, target in ((2.0, (16, 24)), (3.0, (24, 36))):
            refine(model, bare, conds, scale=times)
            check_poses(seen, {target: tuple(side // 2 for side in target)}, bool(more))


def case_speaker_masks_of_another_grid_are_refused():
    """InfiniteTalk's masks have a value for each token of a frame of the first latent."""
    try:
        from comfy.ldm.wan.model_multitalk import MultiTalkGetAttnMapPatch
    except ImportError:
        return
    model, seen = recording(HOST.model())
    masks = torch.ones(2, 8 * 12, dtype=torch.bool)
    model.set_model_patch(MultiTalkGetAttnMapPatch(masks), "attn1_patch")
    preview, _ = HOST.ours(HOST.model(), blank(), *prompts())
    refused(
        lambda: refine(model, preview, prompts()), "Surf Refiner", "MultiTalkGetAttnMapPatch",
        "16 x 24 latent cells", "24 x 36",
    )  # fmt: skip
    refused(
        lambda: HOST.ours(model, blank(), *prompts()), "Surf Reshift KSampler", "8 x 12; make it"
    )
    assert not seen
    refine(model, preview, prompts(), scale=2.0, cfg=1.0)
    assert sizes(seen) == {(16, 24)}


def check_poses(seen, halves, masked):
    """Each call had its poses at half of its cells, and SCAIL-2's masks with them."""
    assert sizes(seen) == set(halves), sizes(seen)
    for size, beside in seen:
        assert beside["pose_latents"][-2:] == halves[size], beside
        assert beside["reference_latent"][-2:] == size, beside
        if masked:
            assert beside["sam_latents"][-2:] == halves[size], beside
            assert beside["ref_mask_latents"][-2:] == size, beside
    seen.clear()


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
