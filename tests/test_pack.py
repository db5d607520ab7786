"""What a user sees of the pack: nodes, their help pages, and the workflows that ship with it."""

import asyncio
import copy
import json
import re
from pathlib import Path

import pytest
from surf.nodes import SurfExtension
from surf.tests.frozen_nodes import INPUTS, OUTPUTS
from surf.tests.frozen_nodes import describe as describe_input

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
# The host's nodes that the workflows use: inputs (? optional), output types, widgets.
CORE = {
    "CLIPLoader": ("", "CLIP", "clip_name type device"),
    "CLIPTextEncode": ("clip", "CONDITIONING", "text"),
    "CreateVideo": ("images audio?", "VIDEO", "fps"),
    "DualCLIPLoader": ("", "CLIP", "clip_name1 clip_name2 type device"),
    "EmptyHunyuanLatentVideo": ("", "LATENT", "width height length batch_size"),
    "FluxGuidance": ("conditioning", "CONDITIONING", "guidance"),
    "ImageScale": ("image", "IMAGE", "upscale_method width height crop"),
    "MarkdownNote": ("", "", "text"),
    "SaveVideo": ("video", "", "filename_prefix format codec"),
    "UNETLoader": ("", "MODEL", "unet_name weight_dtype"),
    "VAEDecode": ("samples vae", "IMAGE", ""),
    "VAELoader": ("", "VAE", "vae_name"),
}
OF_THE_HOST = ("sampler_name", "scheduler", "sampler_low", "scheduler_low")
"""Inputs whose options the host knows."""
FOLDERS = {"diffusion_models", "text_encoders", "vae", "clip_vision", "loras"}


def list_nodes():
    return asyncio.run(SurfExtension().get_node_list())


NODES = {node.define_schema().node_id: node for node in list_nodes()}


def type_of(socket):
    """The host's name of an input's or output's type."""
    return socket.get_io_type() if hasattr(socket, "get_io_type") else socket.io_type


def describe(kind):
    """(input names, their required ones, output types, widget names) of a node of a workflow."""
    if kind in CORE:
        inputs, outputs, widgets = (part.split() for part in CORE[kind])
        required = [name for name in inputs if not name.endswith("?")]
        return [name.rstrip("?") for name in inputs], required, outputs, widgets
    schema = NODES[kind].define_schema()
    sockets = [i for i in schema.inputs if type_of(i) not in WIDGETS]
    widgets = []
    for item in schema.inputs:
        if type_of(item) in WIDGETS:
            widgets.append(item.id)
            if getattr(item, "control_after_generate", None):
                widgets.append("control_after_generate")
    required = [item.id for item in sockets if not item.optional]
    # A widget may be fed by a link, too.
    names = [item.id for item in schema.inputs]
    return names, required, [type_of(o) for o in schema.outputs], widgets


def node_faults(node):
    """What is wrong with one node of a workflow, by itself."""
    kind, where = node["type"], f"{node['id']} {node['type']}"
    if kind not in CORE and kind not in NODES:
        yield f"{where}: no such node"
        return
    inputs, required, outputs, widgets = describe(kind)
    named = {item["name"]: item for item in node["inputs"]}
    for name in named.keys() - set(inputs):
        yield f"{where}: no input {name}"
    for name in required:
        if named.get(name, {}).get("link") is None:
            yield f"{where}: input {name} is not connected"
    if [item["type"] for item in node["outputs"]] != outputs:
        yield f"{where}: outputs are not {outputs}"
    if len(node["widgets_values"]) != len(widgets):
        yield f"{where}: {len(node['widgets_values'])} widget values for {len(widgets)} widgets"
    elif kind in NODES:
        yield from value_faults(
            where, kind, dict(zip(widgets, node["widgets_values"], strict=True))
        )
    if kind == "SaveVideo" and node["widgets_values"] != ["video/ComfyUI", "auto", "auto"]:
        yield f"{where}: not the values that both old and new hosts read"
    yield from model_faults(where, node)


def value_faults(where, kind, values):
    """Widget values that the node would not accept, and policies that are not the default."""
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
        if item.id.endswith("_policy") and value != item.default:
            yield f"{where}: {item.id} is not the default, {item.default!r}"


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
    elif "cnr_id" in node["properties"]:
        yield f"{where}: cnr_id names a pack, which is not published yet"


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


def overlaps(graph):
    """Pairs of nodes drawn on top of each other, title bars included."""
    boxes = []
    for node in graph["nodes"]:
        (left, top), (width, height) = node["pos"], node["size"]
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


def test_node_ids_are_the_frozen_list():
    assert sorted(NODES) == sorted(INPUTS) == sorted(OUTPUTS)
    assert len(list_nodes()) == len(INPUTS)


@pytest.mark.parametrize("node_id", INPUTS)
def test_inputs_and_outputs_are_frozen_in_their_order(node_id):
    schema = NODES[node_id].define_schema()
    assert [item.id for item in schema.inputs] == list(INPUTS[node_id])
    outputs = [(item.display_name, type_of(item)) for item in schema.outputs]
    assert outputs == list(OUTPUTS[node_id].items())


@pytest.mark.parametrize(
    ("node_id", "name"), [(node, name) for node, inputs in INPUTS.items() for name in inputs]
)
def test_type_default_range_and_options_of_an_input_are_frozen(node_id, name):
    [item] = [item for item in NODES[node_id].define_schema().inputs if item.id == name]
    frozen = INPUTS[node_id][name]
    assert describe_input(item, frozen) == frozen


def test_nodes_whose_gain_is_not_measured_are_experimental():
    schemas = [(node_id, node.define_schema()) for node_id, node in NODES.items()]
    experimental = {node_id for node_id, schema in schemas if schema.is_experimental}
    assert experimental == {"SurfColourMatch", "SurfCompile", "SurfReshiftLadder"}


@pytest.mark.parametrize("node_id", NODES)
def test_every_node_says_what_it_is(node_id):
    schema = NODES[node_id].define_schema()
    assert node_id.startswith("Surf")
    assert schema.category == "SURF"
    assert schema.display_name
    assert schema.description
    for socket in [*schema.inputs, *schema.outputs]:
        assert socket.tooltip, f"{socket.id or socket.display_name} has no tooltip"


@pytest.mark.parametrize("node_id", NODES)
def test_every_help_page_names_every_input_and_output(node_id):
    schema = NODES[node_id].define_schema()
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text()
    assert page.startswith(f"# {schema.display_name}\n")
    names = [item.id for item in schema.inputs] + [item.display_name for item in schema.outputs]
    assert [name for name in names if f"| `{name}` |" not in page] == []
    for item in schema.inputs:
        options = getattr(item, "options", None)
        if options and item.id not in OF_THE_HOST:
            assert all(f"`{option}`" in page for option in options), item.id


def test_every_help_page_has_its_node():
    pages = {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
    assert pages == set(NODES)


def test_the_workflows_are_there():
    assert {path.stem for path in WORKFLOWS} >= {
        "Wan 2.1 T2V 480p to 240p to 1080p",
        "HunyuanVideo T2V 480p to 240p to 1080p",
        "Wan 2.1 T2V 720p",
        "Wan 2.1 T2V to 1080p with a Surf refiner",
        "Try SURF without downloads",
    }
    assert not (ROOT / "workflows" / "index.json").exists()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_has_no_faults(path):
    assert list(faults(json.loads(path.read_text()))) == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_has_a_picture_of_the_same_name(path):
    picture = path.with_suffix(".jpg").read_bytes()
    assert picture[:3] == b"\xff\xd8\xff"
    assert len(picture) <= 200_000


def find(graph, kind):
    return next(node for node in graph["nodes"] if node["type"] == kind)


def rename_node(graph):
    find(graph, "SurfRefiner")["type"] = "SurfRefine"


def rename_input(graph):
    find(graph, "SurfRefiner")["inputs"][3]["name"] = "samples"


def drop_widget(graph):
    find(graph, "SurfReshiftKSampler")["widgets_values"].pop()


def swap_widgets(graph):
    find(graph, "SurfReshiftKSampler")["widgets_values"][11:13] = [0.5, "by scale"]


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


def move_onto_another(graph):
    find(graph, "SurfRefiner")["pos"] = list(find(graph, "VAELoader")["pos"])


def change_video_format(graph):
    find(graph, "SaveVideo")["widgets_values"][1] = "mp4"


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (rename_node, "no such node"),
        (rename_input, "no input samples"),
        (rename_input, "input latent is not connected"),
        (drop_widget, "22 widget values for 23 widgets"),
        (swap_widgets, "low_resolution has no option 0.5"),
        (leave_range, "sigma_start 1.5 is outside"),
        (cut_link, "not known at both ends"),
        (turn_link, "joins"),
        (lose_link, "does not exist"),
        (misname_model, "loads"),
        (plain_http, "not a plain https"),
        (strange_folder, "no folder of the host"),
        (move_onto_another, "overlap"),
        (change_video_format, "both old and new hosts"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_workflow_is_seen(break_it, expected):
    graph = json.loads(WORKFLOWS[0].read_text())
    before = copy.deepcopy(graph)
    break_it(graph)
    assert graph != before
    assert any(expected in said for said in faults(graph))
