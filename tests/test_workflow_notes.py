"""What the note of each shipped workflow promises: its cost and its download, counted again.

The cost comes from the widgets of the graph through `surf_core.cost`, so that a changed widget
without a changed note is seen.
"""

import json
import re
from dataclasses import dataclass, replace

import pytest
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
from surf.tests.test_workflow_files import ROOT, WORKFLOWS, describe

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
UNKNOWN_SIZES = {
    "hunyuanvideo15_latent_upsampler_1080p.safetensors",
    "wan2.1-1.3b-control-lora-tile-v1.1_comfy.safetensors",
}
"""Files whose size neither ComfyUI's templates nor its Manager list."""
PLAIN, FIRST = "video/surf_plain", "01 Try SURF without downloads"
"""What the first workflow alone saves, for comparison."""
UNITS = {"PFLOPs": 1e15, "GFLOPs": 1e9}


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


def loads(graph):
    """Name -> address of every file that the loaders name."""
    models = [m for node in graph.nodes.values() for m in node["properties"].get("models", [])]
    return {model["name"]: model["url"] for model in models}


def read(path):
    return Graph(json.loads(path.read_text()))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_note_has_the_cost_of_the_graph(path):
    graph = read(path)
    note = graph.note()
    unit = re.search(r"^\| counted \| (\w+) \|$", note, re.MULTILINE)[1]
    found = dict(re.findall(r"^\| (.+) \| ([\d.]+) \|$", note, re.MULTILINE))
    assert found == {row: f"{flops / UNITS[unit]:.1f}" for row, flops in rows(graph).items()}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_note_lists_the_files_of_the_graph_and_their_sum(path):
    graph = read(path)
    note = graph.note()
    listed = re.findall(r"^- \[(\S+)\]\((\S+)\)(?: ([\d.]+) GB)? in `\w+`$", note, re.MULTILINE)
    assert {name: url for name, url, _ in listed} == loads(graph)
    if not listed:
        return
    total = float(re.search(r"^\*\*To download, ([\d.]+) GB in all", note, re.MULTILINE)[1])
    assert {name for name, _, size in listed if not size} <= UNKNOWN_SIZES
    assert total == pytest.approx(sum(float(size) for *_, size in listed if size), abs=0.06)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_note_begins_with_the_name_and_has_one_thing_to_try(path):
    note = read(path).note()
    assert note.startswith(f"## {path.stem}\n")
    assert note.count("**Try:**") == 1
    assert len(note.split()) <= 260


@pytest.mark.parametrize(
    "path", [path for path in WORKFLOWS if read(path).all("LoadImage")], ids=lambda path: path.stem
)
def test_note_says_where_the_picture_is_chosen(path):
    graph = read(path)
    title = graph.find("LoadImage")["title"].removesuffix(" (bypassed)")
    assert f"*{title}*" in graph.note()


@pytest.mark.parametrize(
    "path", [path for path in WORKFLOWS if not read(path).all("LoadVideo")], ids=lambda p: p.stem
)
def test_the_group_that_the_note_mutes_leaves_a_graph_that_saves_the_preview(path):
    graph, raw = read(path), json.loads(path.read_text())
    number = re.search(r"mute group (\d) \(right-click its title", graph.note())[1]
    [group] = [each for each in raw["groups"] if each["title"].startswith(f"{number} ")]
    x, y, width, height = group["bounding"]
    muted = {
        node["id"] for node in raw["nodes"]
        if x <= node["pos"][0] < x + width and y <= node["pos"][1] < y + height
    }  # fmt: skip
    kinds = [graph.nodes[each]["type"] for each in muted]
    refiners = {"SurfRefiner", "HunyuanVideo15LatentUpscaleWithModel", "SurfSeedVR2Skip"}
    assert refiners & set(kinds)
    left = [link for link in raw["links"] if link[3] not in muted]
    assert not [link for link in left if link[1] in muted]
    saved = [
        node["widgets_values"][0] for node in graph.all("SaveVideo") if node["id"] not in muted
    ]
    assert [name for name in saved if name != PLAIN] == ["video/surf_preview"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_videos_are_told_apart_by_their_names(path):
    graph = read(path)
    names = [node["widgets_values"][0] for node in graph.all("SaveVideo")]
    if graph.all("LoadVideo") and graph.all("SurfSeedVR2Skip"):
        assert names == ["video/surf_refined"]
        return
    target = re.search(r"\d+p|4K", path.stem)
    expected = [f"video/surf_{target[0].lower()}" if target else "video/surf_256p"]
    expected += ["video/surf_preview"] + [PLAIN] * (path.stem == FIRST)
    assert sorted(names) == sorted(expected)


def test_the_toy_is_compared_by_the_figures_of_its_page():
    [page] = (ROOT / "benchmarks" / "results").glob("*-tiny-signature.md")
    said, text = read(WORKFLOWS[0]).note(), page.read_text(encoding="utf-8")
    names = {
        "40 steps": "the plain run has {} % right",
        "16 steps": "16 steps {} %",
        "k = 10, inherited, snr_equal": "the preview {} %",
        "half resolution, 40 steps": "half the size {} %",
    }
    for name, words in names.items():
        [row] = re.findall(rf"^\| {re.escape(name)} \| [\d.]+ \|.*\| (\S+) \+- \S+ \|$", text, re.M)
        assert words.format(row) in said


@pytest.mark.parametrize(
    "path", [path for path in WORKFLOWS if "I2V" in path.stem], ids=lambda path: path.stem
)
def test_the_picture_is_encoded_for_the_sizes_that_run(path):
    graph = read(path)
    for node in graph.all("SurfReshiftAnyGuider"):
        own = graph.find("MiniMaxH3ImageToVideo")
        first = graph.source(own, "first_frame")
        assert first is graph.source(node, "first_frame") is graph.find("LoadImage")
        assert graph.source(own, "vae") is graph.source(node, "vae")
        return
    if placed := graph.all("LTXVImgToVideoInplace"):
        pictures = [graph.source(node, "image") for node in placed]
        pictures.append(graph.source(graph.find("SurfRefiner"), "start_image"))
        assert [graph.source(node, "image") for node in pictures] == 3 * graph.all("LoadImage")
        return
    made = graph.widgets(graph.find("SurfImageToVideo"))
    sampler = graph.widgets(graph.find("SurfReshiftKSampler"))
    names = ("resolution", "scale", "width", "height")
    assert [made[f"low_{name}"] for name in names] == [sampler[f"low_{name}"] for name in names]
    for refiner in map(graph.widgets, graph.all("SurfRefiner")):
        assert made["target_resolution"] == refiner["resolution"]


def test_a_changed_widget_is_seen_in_the_cost():
    graph = read(next(path for path in WORKFLOWS if "5B" in path.stem))
    before = rows(graph)
    graph.find("SurfReshiftKSampler")["widgets_values"][3] += 1
    after = rows(graph)
    assert list(before) != list(after)
    assert list(before.values())[0] < list(after.values())[0]


def test_a_plan_is_set_as_the_nodes_that_it_prices():
    planned = [read(path) for path in WORKFLOWS if read(path).all("SurfPlan")]
    assert planned
    for graph in planned:
        plan, sampler = graph.find("SurfPlan"), graph.find("SurfReshiftKSampler")
        said, set_there = (graph.widgets(node) for node in (plan, sampler))
        shared = said.keys() & set_there.keys()
        assert {"steps", "switch_step", "cfg", "cfg_low", "low_scale"} <= shared
        assert all(said[name] == set_there[name] for name in shared)
        refiner = graph.find("SurfRefiner")
        own = graph.widgets(refiner)
        assert (said["refine_steps"], said["refine_cfg"]) == (own["steps"], own["cfg"])
        for name in ("resolution", "scale", "window", "tile", "chunk_frames"):
            assert said[name] == own[name], name
        assert graph.source(sampler, "model") is plan
        assert graph.source(plan, "latent") is graph.source(sampler, "latent_image")
        assert graph.source(plan, "refiner") is graph.source(refiner, "model")
