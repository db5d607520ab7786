"""What a shipped workflow costs, counted from the widgets of its graph through `surf_core.cost`."""

import json
from dataclasses import dataclass, replace

from surf.nodes.host.refine.timeline import Timeline
from surf.surf_core.checkpoint import read_config
from surf.surf_core.cost import (
    HUNYUAN_VIDEO_15,
    LTX_2,
    MINIMAX_H3,
    SEEDVR2_3B,
    TINY,
    WAN_1_3B,
    WAN_5B,
    WAN_14B,
    Evaluations,
    ModelShape,
    latent_frames,
    plan_flops,
    tokens,
)
from surf.surf_core.resample import target_size
from surf.surf_core.tiny.model import CLIP, PIXELS, REFINER
from surf.tests.nodes.test_time_chunks import model
from surf.tests.test_workflow_files import describe

SHAPES = {
    "wan2.1_t2v_1.3B": WAN_1_3B,
    "wan2.2_t2v": WAN_14B,
    "wan2.2_i2v": WAN_14B,
    "wan2.2_ti2v_5B": WAN_5B,
    "hunyuanvideo1.5": HUNYUAN_VIDEO_15,
    "minimax_h3": MINIMAX_H3,
    "ltx-2": LTX_2,
    "seedvr2_3b": SEEDVR2_3B,
}
"""Beginning of a file's name -> its model."""
EMBEDDED = {"model": TINY, "refiner": ModelShape.of(read_config(REFINER)[0], text_tokens=3)}
"""Output of Surf Tiny Models -> its model."""
MY_VIDEO = (81, (1080, 1920))
"""Frames and shape of the video that notes price where the user brings one."""
MY_LONG_FRAMES = 481
"""Of a long one: 20 seconds at 24 a second."""
IMAGE_TOKENS = 729
"""Tokens that the vision encoder adds to the text of HunyuanVideo 1.5."""


class Graph:
    """A workflow whose nodes are found by type and by link."""

    def __init__(self, graph):
        self.nodes = {node["id"]: node for node in graph["nodes"]}
        self.links = {link[0]: link for link in graph["links"]}

    def all(self, kind):
        return [node for node in self.nodes.values() if node["type"] == kind]

    def find(self, kind):
        (node,) = self.all(kind)
        return node

    def widgets(self, node):
        return dict(zip(describe(node["type"])[3], node["widgets_values"], strict=True))

    def source(self, node, name):
        """The node that feeds an input; None where it is not connected."""
        number = next((i["link"] for i in node["inputs"] if i["name"] == name), None)
        return None if number is None else self.nodes[self.links[number][1]]

    def start(self, sampler):
        """The node that makes what a sampler starts from, before it is repeated."""
        node = self.source(sampler, "latent_image")
        return self.source(node, "latent") if node["type"] == "SurfStartDrafts" else node

    def shape(self, node, name="model"):
        """The sizes of the model that feeds an input, through LoRAs and patches."""
        loaders = ("UNETLoader", "CheckpointLoaderSimple")
        file = "refiner" if node["type"] == "SurfRefiner" else "model"
        while (node := self.source(node, name))["type"] not in loaders:
            if node["type"] == "SurfTinyModels":
                return EMBEDDED[file]
            name = "model"
        (shape,) = [s for n, s in SHAPES.items() if node["widgets_values"][0].startswith(n)]
        seen = shape is HUNYUAN_VIDEO_15 and self.all("CLIPVisionEncode")
        return replace(shape, text_tokens=shape.text_tokens + IMAGE_TOKENS) if seen else shape

    def note(self):
        return self.find("MarkdownNote")["widgets_values"][0]


@dataclass(frozen=True)
class PricedClip:
    """A model on a video of some frames."""

    shape: ModelShape
    frames: int

    def run(self, steps, size, cfg, window=0):
        return Evaluations(
            shape=self.shape, steps=steps, frames=self.frames, height=size[0], width=size[1],
            window=window, guided=cfg != 1,
        )  # fmt: skip

    def restored(self, size, share):
        """SeedVR2's one step, on a share of the tokens of each latent frame."""
        kept = round(share * tokens(self.shape, 1, *size))
        counts = (kept,) * latent_frames(self.shape, self.frames) if share < 1 else None
        return replace(self.run(1, size, 1.0), kept=counts)

    def smaller(self, size, chosen, **more):
        patch = self.shape.cell_pixels * self.shape.patch[1]
        return target_size(size, multiple=patch, **chosen, **more)


def text_of(size):
    return f"{size[1]} x {size[0]}"


def guided_preview(graph, node):
    """What `preview` returns, of a guider with the switch round BasicGuider."""
    own, basic = graph.widgets(node), graph.source(node, "guider")
    [run] = graph.all("SamplerCustomAdvanced")
    made = graph.widgets(graph.start(run))
    steps = graph.widgets(graph.source(run, "sigmas"))["steps"]
    size, clip = (made["height"], made["width"]), PricedClip(graph.shape(basic), made["length"])
    names = ("resolution", "scale", "width", "height")
    low = clip.smaller(size, {name: own[f"low_{name}"] for name in names})
    first = own["switch_step"]
    rest = own["steps_low"] or steps - first
    legs = [clip.run(first, size, 1.0), clip.run(rest, low, 1.0)]
    row = f"preview: {first} steps at {text_of(size)}, {rest} at {text_of(low)}"
    return row, legs, clip, low, {"steps": steps, "cfg": 1.0}


def first_stage(graph):
    """What `preview` returns, of LTX-2: one size, doubled by its latent upsampler afterwards."""
    [run] = graph.all("SamplerCustomAdvanced")
    made = graph.widgets(graph.find("EmptyLTXVLatentVideo"))
    guider = graph.source(run, "guider")
    assert {v for name, v in graph.widgets(guider).items() if name.endswith("cfg")} == {1.0}
    steps = graph.widgets(graph.source(run, "sigmas"))["sigmas"].count(",")
    size, clip = (made["height"], made["width"]), PricedClip(graph.shape(guider), made["length"])
    assert graph.widgets(graph.find("LTXVEmptyLatentAudio"))["frames_number"] == made["length"]
    row, doubled = f"preview: {steps} steps at {text_of(size)}", (2 * size[0], 2 * size[1])
    return row, [clip.run(steps, size, 1.0)], clip, doubled, {"steps": steps, "cfg": 1.0}


def preview(graph):
    """Row, evaluations and size of what Surf Reshift KSampler, or a guider with a switch, runs."""
    if graph.all("LTXVLatentUpsampler"):
        return first_stage(graph)
    for node in graph.all("SurfReshiftAnyGuider"):
        return guided_preview(graph, node)
    node = graph.find("SurfReshiftKSampler")
    own = graph.widgets(node)
    made = graph.widgets(graph.start(node))
    size = (made.get("height", PIXELS), made.get("width", PIXELS))
    clip = PricedClip(graph.shape(node), made.get("length", CLIP))
    for other in ("model_low", "model_low_noise"):
        if graph.source(node, other):
            assert graph.shape(node, other) == clip.shape
    names = ("resolution", "scale", "width", "height")
    low = clip.smaller(size, {name: own[f"low_{name}"] for name in names})
    first, cfg = own["switch_step"], own["cfg"]
    rest = own["steps_low"] or own["steps"] - first
    assert own["cfg_low_noise"] == 0
    legs = [clip.run(first, size, cfg), clip.run(rest, low, own["cfg_low"])]
    row = f"preview: {first} steps at {text_of(size)}, {rest} at {text_of(low)}"
    return row, legs, clip, low, own


def enlarged(graph, clip, low):
    """Row, evaluations and target of what enlarges the preview."""
    if node := next(iter(graph.all("SurfRefiner")), None):
        own = graph.widgets(node)
        names = ("resolution", "scale", "width", "height")
        clip = replace(clip, shape=graph.shape(node))
        size = clip.smaller(low, {name: own[name] for name in names}, exact=True)
        legs = [clip.run(own["steps"], size, own["cfg"], own["window"])]
        return f"refiner: {own['steps']} steps at {text_of(size)}", legs, size
    if node := next(iter(graph.all("SurfSeedVR2Skip")), None):
        size, share = large_size(graph, low), graph.widgets(node)["keep"]
        legs = [replace(clip, shape=graph.shape(node)).restored(size, share)]
        return f"SeedVR2: 1 step at {text_of(size)}, {SHARES[share]}", legs, size
    own = graph.widgets(graph.find("HunyuanVideo15LatentUpscaleWithModel"))
    size = (own["height"] // 16 * 16, own["width"] // 16 * 16)
    steps = graph.widgets(graph.find("BasicScheduler"))["steps"]
    assert {graph.widgets(guider)["cfg"] for guider in graph.all("CFGGuider")} == {1.0}
    clip = replace(clip, shape=graph.shape(graph.all("CFGGuider")[0]))
    legs = [clip.run(steps, size, 1.0)]
    return f"super-resolution: {steps} steps at {text_of(size)}", legs, size


SHARES = {0.5: "half of the tokens", 1: "all tokens"}


def large_size(graph, size):
    """What ImageScale makes of a video's size: the shape stays, the height is its widget."""
    own = graph.widgets(graph.find("ImageScale"))
    assert own["width"] == 0
    sampler = graph.widgets(graph.find("KSampler"))
    assert (sampler["steps"], sampler["cfg"], sampler["denoise"]) == (1, 1.0, 1.0)
    return own["height"], round(size[1] * own["height"] / size[0])


def my_video(graph):
    """The costs where the user brings a video: of a share of its tokens, and of all."""
    frames, size = MY_VIDEO
    node = graph.find("SurfSeedVR2Skip")
    clip, size = PricedClip(graph.shape(node), frames), large_size(graph, size)
    shares = graph.widgets(node)["keep"], 1
    return {
        f"{frames} frames to {text_of(size)}, {SHARES[share]}": clip.restored(size, share).flops
        for share in shares
    }


def my_frames(graph):
    """The costs where Surf Refiner takes the frames of the user's video."""
    node, (frames, size) = graph.find("SurfRefiner"), MY_VIDEO
    clip, own = PricedClip(graph.shape(node), frames), graph.widgets(node)
    size = clip.smaller(size, {"resolution": own["resolution"]}, exact=True)
    whole = clip.run(own["steps"], size, own["cfg"], own["window"])
    legs, said = [whole], f"{frames} frames"
    if own["chunk_frames"]:
        time = Timeline(model("WAN21"), latent_frames(clip.shape, MY_LONG_FRAMES), own["window"])
        parts = time.chunks(time.frames, time.by_hand(own["chunk_frames"]))
        legs = [replace(whole, frames=time.pixels(part.length)) for part in parts]
        said = f"{MY_LONG_FRAMES} frames in {len(parts)} chunks"
    name = f"refiner: {own['steps']} steps at {text_of(size)}, {said}"
    table = {name: legs, "the same, without windows": [replace(leg, window=0) for leg in legs]}
    return {row: plan_flops(run) for row, run in table.items()}


def controls(clip, legs, own):
    """The costs of what the toy's preview is read against."""
    large, small = ((leg.height, leg.width) for leg in legs[:2])
    runs = {
        "plain run": (own["steps"], large),
        "as much as the preview": (16, large),
        "half the size": (own["steps"], small),
    }
    return {
        f"{name}: {steps} steps at {text_of(size)}": clip.run(steps, size, own["cfg"]).flops
        for name, (steps, size) in runs.items()
    }


def rows(graph):
    """The table of costs that the note must have: row -> operations."""
    if graph.all("LoadVideo"):
        return my_video(graph) if graph.all("SurfSeedVR2Skip") else my_frames(graph)
    first, legs, clip, low, own = preview(graph)
    second, more, target = enlarged(graph, clip, low)
    for node in graph.all("SurfStartDrafts"):
        count = graph.widgets(node)["count"]
        first, legs = f"{count} drafts, each {first.removeprefix('preview: ')}", legs * count
    table = {first: legs, second: more, "both": legs + more}
    if second.startswith(("refiner", "SeedVR2")):
        plain, name = [clip.run(own["steps"], target, own["cfg"])], text_of(target)
    else:
        plain = [clip.run(own["steps"], (legs[0].height, legs[0].width), own["cfg"]), *more]
        name = f"{text_of((legs[0].height, legs[0].width))}, and super-resolution"
    if graph.all("LTXVLatentUpsampler"):
        table["both, without windows"] = legs + [replace(leg, window=0) for leg in more]
    if clip.shape is TINY:
        return {row: plan_flops(run) for row, run in table.items()} | controls(clip, legs, own)
    table[f"plain run: {own['steps']} steps at {name}"] = plain
    return {row: plan_flops(run) for row, run in table.items()}


def read(path):
    return Graph(json.loads(path.read_text()))
