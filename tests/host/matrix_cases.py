"""Every family of models with everything that a preview or a refinement goes with.

    cd $COMFYUI_PATH && python tests/host/matrix_cases.py RESULTS.json [0 write]

Run by test_inside.py, all cases at once. A case is a family: it tries every column of the table and
compares what came of it with matrix.json, which tests/test_matrix.py holds the page for users to.
With `write` the file gets what came of it.
"""

import functools
import json
import sys
from pathlib import Path
from unittest import mock

import av_models  # noqa: F401 for runners.py
import av_refining  # noqa: F401 for runners.py
import av_runs  # noqa: F401 for runners.py
import inprocess  # noqa: F401 for families.py
import inside
import torch
from token_local import token_local

WRITE = "write" in sys.argv
RESULTS = inside.enter()

import comfy_api.torch_helpers as compile_helpers  # noqa: E402
from comfy_extras import nodes_context_windows, nodes_easycache  # noqa: E402
from surf.nodes.compile import SurfCompile  # noqa: E402
from surf.nodes.host.models import patch_side  # noqa: E402
from surf.nodes.host.skip.skip_mask import SkipMask  # noqa: E402
from surf.surf_core.resample import resize  # noqa: E402
from surf.surf_core.skip import Mask  # noqa: E402

families, runners = inside.load("families"), inside.load("runners")
HIGH, LOW, WIDE, STEPS = runners.HIGH, runners.LOW, runners.WIDE, runners.STEPS
finite, gap = runners.finite, runners.gap
TABLE = Path(__file__).with_name("matrix.json")
CLOSE = 1e-5
BESIDE_EDGES = 0.02
"""Convolutions of a camera's adapter reach over the edges of a tile."""
RIGHT, REFUSED, NOT_IN_HOST = "yes", "refused", "not in ComfyUI"
NOT_TRIED = {
    (name, "context windows"): "one frame: nothing to cut" for name in ("Flux", "Qwen-Image")
}
"""Cells that have no answer, and why."""
HISTORY = "res_multistep", "dpmpp_2m", "uni_pc"


class HostRefusal(Exception):
    """The host's own sampler refuses, without a node of ours."""


def preview(run):
    """A switch to the same size is the plain run; one to half of it is the host's chain."""
    assert gap(run.kept(), run.stock()) < CLOSE
    at_half(run, "euler")


def at_half(run, sampler):
    out, expected = finite(run.switched(sampler=sampler)), run.chain(sampler)
    if expected is not None:
        assert gap(out, expected) < CLOSE, sampler
    finite(out, run.parts(run.draft(LOW)))
    return out


def history(run):
    for sampler in HISTORY:
        at_half(run, sampler)


def drawing(run):
    at_half(run, "euler_ancestral")


def refiner(run):
    """At its size it is the host's sampler; at twice the size of a preview, a video of that."""
    latent = run.draft(HIGH)
    assert gap(run.refined(latent), run.sampled(latent)) < CLOSE
    for conds in (HIGH, LOW):
        finite(run.refined(run.draft(LOW), conds=conds, scale=2.0), run.parts(latent))


def windows(run):
    """One window over all frames is full attention; two windows are not."""
    latent = run.draft(HIGH)
    plain = run.refined(latent)
    assert gap(run.refined(latent, window=max(2, run.frames())), plain) < CLOSE
    assert gap(run.refined(latent, window=2), plain) > 1e-4


def tiles(run):
    """One tile is the whole picture bit for bit; two blend, each with its part of all there is."""
    latent = run.draft(WIDE)
    plain = run.refined(latent, conds=WIDE)
    for one, other in zip(run.refined(latent, conds=WIDE, tile=1024), plain, strict=True):
        assert torch.equal(one, other)
    tiled = run.refined(latent, conds=WIDE, tile=256)
    changed = (plain[0] - run.parts(latent)[0]).std()
    # What tiles lose is attention across their edges: little of what the refinement does.
    assert 1e-3 < (tiled[0] - plain[0]).std() / changed < 0.2
    local = token_local(run.experts()[1], run.has_sound)
    one, two = (run.refined(latent, local, conds=WIDE, tile=tile) for tile in (0, 256))
    assert gap(two, one) < (BESIDE_EDGES if run.sees_neighbours() else CLOSE)


def mask(run):
    """All kept is no mask, bit for bit; what is skipped is the enlarged preview, bit for bit."""
    latent, side = run.draft(LOW), patch_side(run.model)
    video = run.parts(latent)[0]
    size = tuple(run.parts(run.draft(HIGH))[0].shape[-2:])
    grid = video.shape[2] if video.ndim == 5 else 1, *(-(-cells // side) for cells in size)

    def refined(keep):
        choice = Mask(tokens=keep, scores=keep.float(), source="test", tau=0.5)
        made = SkipMask(mask=choice, size=size, upsampled=None, upsample="latent", samples=video)
        return run.refined(latent, scale=2.0, mask=made)[0]

    everything = torch.ones(grid, dtype=torch.bool)
    assert torch.equal(refined(everything), run.refined(latent, scale=2.0)[0])
    half = everything.clone()
    half[..., : grid[2] // 2] = False
    out, start = refined(half), resize(video, size, "bilinear")
    kept = half.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, : size[0], : size[1]]
    where = kept.expand_as(out)
    assert torch.equal(out[~where], start[~where])
    assert not torch.equal(out[where], start[where])


def lora(run):
    """A LoRA before our nodes is its weights merged, on both sides of a switch."""
    clone, weight, change = run.lora()
    plain, got = run.switched(), run.switched(clone)
    assert gap(got, plain) > 1e-4
    assert gap(run.switched(), plain) == 0
    before = weight.clone()
    weight.add_(change)
    try:
        assert gap(got, run.switched()) < 1e-3
    finally:
        weight.copy_(before)


def fp8(run):
    """Weights of eight bits stay so, and the result is near that of the whole ones."""
    model = run.fp8()
    kinds = {getattr(w, "_qdata", w).dtype for w in model.model.parameters()}
    assert torch.float8_e4m3fn in kinds, kinds
    for got, plain in (
        (run.switched(model), run.switched()),
        (run.refined(run.draft(LOW), model), run.refined(run.draft(LOW), run.model)),
    ):
        finite(got, plain)
        assert 0 < (got[0] - plain[0]).std() / plain[0].std() < 0.3


def counting(sizes):
    """What puts a count of the calls of a network on a clone: rows and columns of the video."""

    def count(executor, x, *args, **kwargs):
        sizes.append(tuple((x[0] if isinstance(x, list | tuple) else x).shape[-2:]))
        return executor(x, *args, **kwargs)

    def on(model):
        clone = model.clone()
        clone.add_wrapper_with_key("diffusion_model", "test", count)
        return clone

    return on


def calls(run, change=lambda model: model, **settings):
    """Calls of the network before and after a switch, both experts together."""
    sizes = []
    on = counting(sizes)
    finite(run.switched(**run.both(lambda model: on(change(model))), **settings))
    return [sizes.count(size) for size in dict.fromkeys(sizes)]


def step_caches(run):
    """Off before the switch, whose estimate counts; after it, they begin anew and answer steps."""
    plain = calls(run, steps=8, k=3)
    for kind in ("EasyCacheNode", "LazyCacheNode"):
        node = getattr(nodes_easycache, kind)

        def cached(model, node=node):
            return node.execute(model, 3.0, 0.0, 1.0, False).result[0]

        saved = calls(run, cached, steps=8, k=3)
        assert saved[0] == plain[0], (kind, plain, saved)
        assert 0 < saved[1] < plain[1], (kind, plain, saved)


def context_windows(run):
    """The host's windows of two latent frames run on both sides; one of all frames is the model."""
    settings = {"context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1}
    settings |= {"closed_loop": False, "fuse_method": "pyramid", "freenoise": False, "dim": 2}

    def cut(model, length=2):
        node = nodes_context_windows.ContextWindowsManualNode
        return node.execute(model, context_length=length, **settings).result[0]

    try:
        run.stock(cut(run.model))
    except NotImplementedError as error:
        raise HostRefusal(str(error)) from error
    whole, plain = functools.partial(cut, length=run.frames()), run.switched()
    before, after = calls(run), calls(run, cut)
    assert all(more > few for more, few in zip(after, before, strict=True)), (before, after)
    assert gap(run.switched(**run.both(cut)), plain) > 1e-6
    assert gap(run.switched(**run.both(whole)), plain) < CLOSE


def compiled(run):
    """Compiled blocks give what the others give."""
    inductor = compile_helpers.set_torch_compile_wrapper

    def eager(clone, **options):
        return inductor(clone, **options | {"backend": "eager"})

    with mock.patch.object(compile_helpers, "set_torch_compile_wrapper", eager):
        fast = SurfCompile.execute(run.model).args[0]
    torch._dynamo.reset()
    graphs, latent = torch._dynamo.utils.counters["stats"]["unique_graphs"], run.draft(LOW)
    plain = run.refined(latent, run.model, conds=LOW)
    assert gap(run.refined(latent, fast, conds=LOW), plain) < 1e-3
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs


COLUMNS = {
    "preview": preview, "history samplers": history, "ancestral samplers": drawing,
    "refiner": refiner, "windows": windows, "tiles": tiles, "mask": mask, "LoRA": lora,
    "fp8": fp8, "EasyCache, LazyCache": step_caches, "context windows": context_windows,
    "Surf Compile": compiled,
}  # fmt: skip
"""Column -> what must hold in it."""
ADVICE = {
    "windows": "set window to 0", "mask": "disconnect the mask",
    "tiles": "choose a size that fits in one piece",
}  # fmt: skip
"""Column -> what its refusal says to do; no other refusal counts as one."""


def outcome(column, run):
    """Try a cell: it holds, or our nodes refuse it by name, or the host does without them."""
    try:
        COLUMNS[column](run)
    except ValueError as error:
        ours = str(error).startswith("Surf ")
        if not ours or column not in ADVICE or ADVICE[column] not in str(error):
            raise
        return REFUSED
    except HostRefusal:
        return NOT_IN_HOST
    return RIGHT


def check(name):
    run = (
        runners.SoundRunner(SOUND[name]) if name in SOUND
        else runners.Runner(families.FAMILIES[name])
    )  # fmt: skip
    found = {c: NOT_TRIED.get((name, c)) or outcome(c, run) for c in COLUMNS}
    table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    if WRITE:
        table[name] = found
        TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    assert found == table.get(name), (found, table.get(name))


SOUND = {
    "MiniMax H3": "tiny_minimax_h3_pruned", "LTX-2.3": "tiny_ltx23", "LTX-2.5": "tiny_ltx25",
}  # fmt: skip
"""Family -> its tiny checkpoint of video and sound."""


def case_wan_21_from_text_goes_with_what_the_page_says():
    check("Wan 2.1 T2V")


def case_wan_21_from_a_picture_goes_with_what_the_page_says():
    check("Wan 2.1 I2V")


def case_a_pair_of_wan_22_from_text_goes_with_what_the_page_says():
    check("Wan 2.2 A14B T2V")


def case_a_pair_of_wan_22_from_pictures_goes_with_what_the_page_says():
    check("Wan 2.2 A14B I2V")


def case_wan_22_5b_goes_with_what_the_page_says():
    check("Wan 2.2 5B")


def case_vace_goes_with_what_the_page_says():
    check("VACE")


def case_fun_control_goes_with_what_the_page_says():
    check("Fun Control")


def case_fun_control_22_goes_with_what_the_page_says():
    check("Fun Control 2.2")


def case_fun_camera_goes_with_what_the_page_says():
    check("Fun Camera")


def case_animate_goes_with_what_the_page_says():
    check("Animate")


def case_scail_goes_with_what_the_page_says():
    check("SCAIL")


def case_scail_2_goes_with_what_the_page_says():
    check("SCAIL-2")


def case_s2v_goes_with_what_the_page_says():
    check("S2V")


def case_phantom_goes_with_what_the_page_says():
    check("Phantom")


def case_hunyuan_video_goes_with_what_the_page_says():
    check("HunyuanVideo")


def case_hunyuan_video_from_a_picture_goes_with_what_the_page_says():
    check("HunyuanVideo I2V")


def case_hunyuan_video_15_goes_with_what_the_page_says():
    check("HunyuanVideo 1.5")


def case_minimax_h3_goes_with_what_the_page_says():
    check("MiniMax H3")


def case_ltx_23_goes_with_what_the_page_says():
    check("LTX-2.3")


def case_ltx_25_goes_with_what_the_page_says():
    check("LTX-2.5")


def case_flux_goes_with_what_the_page_says():
    check("Flux")


def case_qwen_image_goes_with_what_the_page_says():
    check("Qwen-Image")


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
