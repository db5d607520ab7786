"""The shipped workflows as files: their nodes, inputs, widgets, links, downloads and layout."""

import copy
import json
import re
from pathlib import Path

import pytest
from surf.tests.core_nodes import CORE
from surf.tests.test_pack import NODES, OF_THE_HOST, type_of

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
FOLDERS = {
    "checkpoints", "clip_vision", "diffusion_models", "latent_upscale_models", "loras",
    "text_encoders", "vae",
}  # fmt: skip
OTHER_POLICIES = {("SurfReshiftAnyGuider", "sigma_policy"): "same"}
"""(node, widget) -> what the workflows have in place of the default: the levels of video and sound
stay pairs that the model was trained at."""
WIDEST = 1700
COLLAPSED_TITLE = 20
"""Characters that the front end shows of it."""
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
VIEW = {"scale": 0.75, "left": 96, "top": 125}
"""Of a graph as it opens: right of the front end's bar at the left, below those at the top."""


def is_widget(item):
    """Tell an input that the node itself shows; some numbers come by a link alone."""
    return type_of(item) in WIDGETS and not getattr(item, "force_input", None)


def describe(kind):
    """(input names, their required ones, output types, widget names) of a node of a workflow."""
    if kind in CORE:
        inputs, outputs, widgets = (part.split() for part in CORE[kind])
        required = [name for name in inputs if not name.endswith("?")]
        return [name.rstrip("?") for name in inputs], required, outputs, widgets
    schema = NODES[kind].define_schema()
    sockets = [i for i in schema.inputs if not is_widget(i)]
    widgets = []
    for item in schema.inputs:
        if is_widget(item):
            widgets.append(item.id)
            if getattr(item, "control_after_generate", None):
                widgets.append("control_after_generate")
    required = [item.id for item in sockets if not item.optional]
    return [item.id for item in sockets], required, [type_of(o) for o in schema.outputs], widgets


def node_faults(node):
    """What is wrong with one node of a workflow, by itself."""
    kind, where = node["type"], f"{node['id']} {node['type']}"
    if kind not in CORE and kind not in NODES:
        yield f"{where}: no such node"
        return
    inputs, required, outputs, widgets = describe(kind)
    named = {item["name"]: item for item in node["inputs"]}
    # A widget may be fed by a link, too.
    if kind in NODES and node.get("title") == NODES[kind].define_schema().display_name:
        yield f"{where}: a title that is the English name hides the translated one"
    if node["flags"].get("collapsed") and len(node.get("title") or "") > COLLAPSED_TITLE:
        yield f"{where}: collapsed, its title is cut after {COLLAPSED_TITLE} characters"
    for name in named.keys() - set(inputs) - set(widgets):
        yield f"{where}: no input {name}"
    for name in required:
        if named.get(name, {}).get("link") is None:
            yield f"{where}: input {name} is not connected"
    previews = [named.get(name, {}).get("link") for name in ("latent", "image")]
    if kind == "SurfRefiner" and previews == [None, None]:
        yield f"{where}: neither latent nor image is connected"
    if [item["type"] for item in node["outputs"]] != outputs:
        yield f"{where}: outputs are not {outputs}"
    if len(node["widgets_values"]) != len(widgets):
        yield f"{where}: {len(node['widgets_values'])} widget values for {len(widgets)} widgets"
    elif node["type"] in NODES:
        yield from value_faults(
            where, kind, dict(zip(widgets, node["widgets_values"], strict=True))
        )
    if kind == "SaveVideo" and node["widgets_values"][1:] != ["auto", "auto"]:
        yield f"{where}: not the values that both old and new hosts read"
    yield from model_faults(where, node)


def value_faults(where, kind, values):
    """Widget values that the node would not accept, and policies that are not the usual ones."""
    for item in NODES[kind].define_schema().inputs:
        if item.id not in values or item.id in OF_THE_HOST:
            continue
        value = values[item.id]
        options = getattr(item, "options", None)
        if options and value not in options:
            yield f"{where}: {item.id} has no option {value!r}"
        low, high = getattr(item, "min", None), getattr(item, "max", None)
        if low is not None and not low <= value <= high:
            yield f"{where}: {item.id} {value} is outside {low} to {high}"
        if item.id.endswith("_policy"):
            usual = OTHER_POLICIES.get((kind, item.id), item.default)
            if value != usual:
                yield f"{where}: {item.id} is not {usual!r}"


def model_faults(where, node):
    """Download links: one for each file that a loader names, in a form the front end accepts.

    Refiners of our own have none: no trained one is published.
    """
    models = node["properties"].get("models", [])
    files = [v for v in node["widgets_values"] if str(v).endswith(".safetensors")]
    files = [] if node["type"] == "SurfRefinerLoader" else files
    if [model["name"] for model in models] != files:
        yield f"{where}: links to {[model['name'] for model in models]}, loads {files}"
    for model in models:
        url = model["url"]
        if not re.fullmatch(r"https://huggingface\.co/[\w./-]+", url):
            yield f"{where}: {url} is not a plain https://huggingface.co address"
        if not url.endswith("/" + model["name"]) or "/" in model["name"]:
            yield f"{where}: {url} does not end in {model['name']}"
        if model["directory"] not in FOLDERS:
            yield f"{where}: {model['directory']} is no folder of the host"
    if node["type"] in CORE and node["type"] != "MarkdownNote":
        if node["properties"].get("cnr_id") != "comfy-core":
            yield f"{where}: cnr_id is not comfy-core"
    elif node["type"] in NODES:
        known = {key: node["properties"].get(key) for key in ("cnr_id", "ver")}
        if known != {"cnr_id": "surf-video", "ver": VERSION}:
            yield f"{where}: not of surf-video {VERSION}, as pyproject.toml has it: {known}"


def link_faults(graph):
    """Links that only one of their two ends knows."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    known = {link[0] for link in graph["links"]}
    if len(known) != len(graph["links"]) or len(nodes) != len(graph["nodes"]):
        yield "an id is used twice"
    if graph["last_link_id"] < max(known) or graph["last_node_id"] < max(nodes):
        yield "last_node_id or last_link_id is too small"
    for number, source, out, target, slot, kind in graph["links"]:
        try:
            start, end = nodes[source]["outputs"][out], nodes[target]["inputs"][slot]
        except (KeyError, IndexError):
            yield f"link {number} hangs in the air"
            continue
        if number not in start["links"] or end["link"] != number:
            yield f"link {number} is not known at both ends"
        if {start["type"], end["type"]} != {kind}:
            yield f"link {number} joins {start['type']} to {end['type']} as {kind}"
    for node in graph["nodes"]:
        ends = [item["link"] for item in node["inputs"] if item["link"] is not None]
        ends += [number for item in node["outputs"] for number in item["links"]]
        for number in set(ends) - known:
            yield f"{node['id']} {node['type']}: link {number} does not exist"


def too_wide(graph):
    """A graph that no screen shows at a size at which its text can be read."""
    left = min(node["pos"][0] for node in graph["nodes"])
    right = max(node["pos"][0] + node["size"][0] for node in graph["nodes"])
    if right - left > WIDEST:
        yield f"{right - left} pixels wide, more than {WIDEST}"


def overlaps(graph):
    """Pairs of nodes drawn on top of each other, title bars (all of a collapsed one) included."""
    boxes = []
    for node in graph["nodes"]:
        (left, top), (width, height) = node["pos"], node["size"]
        height = 0 if node["flags"].get("collapsed") else height
        boxes.append((node["id"], left, top - 30, left + width, top + height))
    for i, (a, left, top, right, bottom) in enumerate(boxes):
        for b, left_b, top_b, right_b, bottom_b in boxes[i + 1 :]:
            if left < right_b and left_b < right and top < bottom_b and top_b < bottom:
                yield f"nodes {a} and {b} overlap"


def faults(graph):
    """Everything wrong with a workflow."""
    if graph["version"] != 0.4 or "definitions" in graph:
        yield "not a flat graph of format 0.4"
    for node in graph["nodes"]:
        yield from node_faults(node)
    yield from link_faults(graph)
    yield from overlaps(graph)
    yield from too_wide(graph)
    yield from hidden(graph)


def hidden(graph):
    """A view that has the beginning of the graph under the bars of the front end."""
    left = min(node["pos"][0] for node in graph["nodes"])
    top = min(group["bounding"][1] for group in graph["groups"])
    view = graph["extra"]["ds"]
    if view != {"scale": VIEW["scale"], "offset": [VIEW["left"] - left, VIEW["top"] - top]}:
        yield f"opens at {view}, so that its beginning is hidden"


def test_the_workflows_are_there():
    assert {path.stem for path in WORKFLOWS} == {
        "01 Try SURF without downloads",
        "02 Wan 2.1 1.3B T2V to 720p",
        "03 Wan 2.2 5B to 1080p",
        "04 Wan 2.2 A14B I2V to 720p",
        "05 Wan 2.2 A14B I2V to 720p with 4-step LoRAs",
        "06 Wan 2.2 A14B I2V to 720p, base model drafts, LoRA finishes",
        "07 Wan 2.2 A14B I2V to 1080p",
        "08 Wan 2.2 A14B I2V to 1080p, refined in 4 steps",
        "09 Wan 2.2 A14B T2V to 1080p",
        "10 MiniMax H3 I2V to 1080p",
        "11 MiniMax H3 I2V to 1080p with 8-step LoRA",
        "12 MiniMax H3 T2V to 1080p",
        "13 LTX-2.3 I2V to 1080p",
        "14 LTX-2.5 I2V to 1080p",
        "15 LTX-2.5 I2V to 4K",
        "16 HunyuanVideo 1.5 T2V to 1080p",
        "17 HunyuanVideo 1.5 I2V to 1080p",
        "18 4 drafts of Wan 2.2 A14B T2V to 1080p",
        "19 4 drafts of MiniMax H3 T2V to 1080p",
        "20 Refine my video to 1080p with Wan 2.2 and 4-step LoRA",
        "21 Refine my video to 4K with Wan 2.2 and 4-step LoRA",
        "22 Refine my long video to 1080p with Wan 2.2 and 4-step LoRA",
        "23 Refine my video with SeedVR2",
        "24 Wan 2.2 A14B I2V to 1080p with SeedVR2",
        "25 Refine my video to 1080p with Wan 2.1 tile control LoRA",
        "26 Wan 2.2 A14B I2V to 1080p, refined with tile control LoRA",
    }
    assert not (ROOT / "workflows" / "index.json").exists()


def test_the_first_workflow_alone_needs_no_download():
    """Hosts list files in any order; by name, numbers give the one to read. None is left out."""
    assert [path.stem[:3] for path in WORKFLOWS] == [
        f"{i:02} " for i in range(1, len(WORKFLOWS) + 1)
    ]
    graphs = [json.loads(path.read_text()) for path in WORKFLOWS]
    downloads = [any(node["properties"].get("models") for node in g["nodes"]) for g in graphs]
    assert downloads == [False] + [True] * (len(WORKFLOWS) - 1)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_has_no_faults(path):
    assert list(faults(json.loads(path.read_text()))) == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_has_a_picture_of_the_same_name(path):
    picture = path.with_suffix(".jpg").read_bytes()
    assert picture[:3] == b"\xff\xd8\xff"
    assert len(picture) <= 60_000
    others = [other.with_suffix(".jpg") for other in WORKFLOWS if other != path]
    assert all(other.read_bytes() != picture for other in others)


def find(graph, kind):
    return next(node for node in graph["nodes"] if node["type"] == kind)


def rename_node(graph):
    find(graph, "SurfRefiner")["type"] = "SurfRefine"


def rename_input(graph):
    find(graph, "SurfRefiner")["inputs"][0]["name"] = "samples"


def drop_widget(graph):
    find(graph, "SurfReshiftKSampler")["widgets_values"].pop()


def swap_widgets(graph):
    find(graph, "SurfReshiftKSampler")["widgets_values"][10:12] = [0.5, "by scale"]


def leave_range(graph):
    find(graph, "SurfRefiner")["widgets_values"][7] = 1.5


def cut_link(graph):
    find(graph, "SurfRefiner")["inputs"][0]["link"] = None


def turn_link(graph):
    graph["links"][0][5] = "LATENT"


def lose_link(graph):
    graph["links"].pop()


def misname_model(graph):
    find(graph, "UNETLoader")["properties"]["models"][0]["name"] = "other.safetensors"


def plain_http(graph):
    model = find(graph, "UNETLoader")["properties"]["models"][0]
    model["url"] = model["url"].replace("https", "http")


def strange_folder(graph):
    find(graph, "VAELoader")["properties"]["models"][0]["directory"] = "vaes"


def spread_out(graph):
    find(graph, "SurfRefiner")["pos"][0] += 900


def move_onto_another(graph):
    find(graph, "SurfRefiner")["pos"] = list(find(graph, "VAELoader")["pos"])


def change_video_format(graph):
    find(graph, "SaveVideo")["widgets_values"][1] = "mp4"


def age_a_node(graph):
    find(graph, "SurfRefiner")["properties"]["ver"] = "0.0.9"


def cut_title(graph):
    find(graph, "VAELoader").update(title="Load the VAE of previews", flags={"collapsed": True})


def look_elsewhere(graph):
    graph["extra"]["ds"]["offset"] = [20, 100]


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (rename_node, "no such node"),
        (rename_input, "no input samples"),
        (rename_input, "input model is not connected"),
        (drop_widget, "25 widget values for 26 widgets"),
        (swap_widgets, "low_resolution has no option 0.5"),
        (leave_range, "sigma_start 1.5 is outside"),
        (cut_link, "not known at both ends"),
        (turn_link, "joins"),
        (lose_link, "does not exist"),
        (misname_model, "loads"),
        (plain_http, "not a plain https"),
        (strange_folder, "no folder of the host"),
        (move_onto_another, "overlap"),
        (spread_out, "pixels wide, more than 1700"),
        (change_video_format, "both old and new hosts"),
        (age_a_node, "not of surf-video"),
        (cut_title, "its title is cut"),
        (look_elsewhere, "its beginning is hidden"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_workflow_is_seen(break_it, expected):
    graph = json.loads((ROOT / "workflows" / "02 Wan 2.1 1.3B T2V to 720p.json").read_text())
    before = copy.deepcopy(graph)
    break_it(graph)
    assert graph != before
    assert any(expected in said for said in faults(graph))
