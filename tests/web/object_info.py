"""What a host would tell the front end of its nodes: ours from their schemas, the core's by name.

The core's nodes are those of the workflows: the names of their inputs come from the table of
`core_nodes`, types and defaults from the workflows themselves. None of their texts is in
it.
"""

import json
from unittest.mock import patch

from comfy_api.latest import io
from surf.tests.core_nodes import CORE
from surf.tests.test_pack import NODES, SearchableSchema, type_of
from surf.tests.test_workflow_files import WORKFLOWS, describe

FREE_TEXT = {"filename_prefix", "prompt", "sigmas", "text"}
"""Widgets of the core's nodes that hold any text; all other texts are options."""
OF_THE_FRONT_END = {"MarkdownNote"}
OF_THE_FIRST_GRAPH = {
    "EmptyLatentImage": {},
    "EmptySD3LatentImage": {},
    "ModelSamplingAuraFlow": {},
    "SaveImage": {"filename_prefix": ["STRING", {"default": ""}]},
}
"""Nodes of the graph that the front end begins with, which no workflow of ours has: node ->
the widgets that the front end itself looks for."""
UPLOADS = {"image": "image_upload", "file": "video_upload"}
"""Widget that names a file -> what gives it a button to upload one."""
OF_THE_HOST = {
    "sampler_name": ["euler", "uni_pc"],
    "scheduler": ["simple", "normal"],
    "sampler_low": ["same", "euler", "uni_pc"],
    "scheduler_low": ["same", "simple", "normal"],
}
"""Options of ours that the host fills in."""


def core_inputs():
    """{node: {input: (type, values)}} of the core's nodes, as the workflows have them."""
    found = {}
    for path in WORKFLOWS:
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            if node["type"] not in CORE or node["type"] in OF_THE_FRONT_END:
                continue
            inputs = found.setdefault(node["type"], {})
            for item in node["inputs"]:
                inputs.setdefault(item["name"], (item["type"], []))
            for name, value in zip(describe(node["type"])[3], node["widgets_values"], strict=True):
                inputs.setdefault(name, (None, []))[1].append(value)
    return found


def widget(name, values):
    """An input of the core's that is a widget, with the values of the workflows."""
    value = values[0]
    if isinstance(value, bool):
        return ["BOOLEAN", {"default": value}]
    if isinstance(value, str) and name in FREE_TEXT:
        return ["STRING", {"default": value, "multiline": name in ("prompt", "text")}]
    if isinstance(value, str):
        # A new host has none of the models, so that loaders show their errors.
        here = {value for value in values if not value.endswith(".safetensors")}
        return ["COMBO", {"options": sorted(here)}]
    limits = {"min": -(2**53), "max": 2**53}
    if any(isinstance(value, float) for value in values):
        return ["FLOAT", {"default": value, "step": 0.01, **limits}]
    return ["INT", {"default": value, **limits}]


def core_entry(kind, seen):
    """The entry of one node of the core's."""
    sockets, required, outputs, widgets = describe(kind)
    inputs = {"required": {}, "optional": {}}
    for name in sockets:
        where = "required" if name in required else "optional"
        # A number that has no widget comes by link alone.
        options = {"forceInput": True} if seen[name][0] in ("INT", "FLOAT") else {}
        inputs[where][name] = [seen[name][0], options]
    for name in widgets:
        if name not in ("control_after_generate", "upload"):
            inputs["required"][name] = widget(name, seen[name][1])
    if "control_after_generate" in widgets:
        seed = widgets[widgets.index("control_after_generate") - 1]
        inputs["required"][seed][1]["control_after_generate"] = True
    if "upload" in widgets:
        file = widgets[widgets.index("upload") - 1]
        inputs["required"][file][1][UPLOADS[file]] = True
    return entry(kind, kind, "core", inputs, outputs, outputs, output_node=kind == "SaveVideo")


def entry(kind, title, category, inputs, outputs, names, **more):
    return {
        "input": inputs,
        "input_order": {where: list(items) for where, items in inputs.items()},
        "output": outputs,
        "output_name": names,
        "output_is_list": [False] * len(outputs),
        "name": kind,
        "display_name": title,
        "description": "",
        "category": category,
        "python_module": "nodes",
        "output_node": False,
        **more,
    }


def our_input(item):
    """An input of ours, as the host's schema writes it down."""
    kind = type_of(item)
    said = {
        name: getattr(item, name)
        for name in ("tooltip", "default", "min", "max", "step", "round", "advanced")
        if getattr(item, name, None) is not None
    }
    said |= getattr(item, "extra_dict", None) or {}
    if kind == "COMBO":
        said["options"] = list(OF_THE_HOST.get(item.id) or item.options)
    if getattr(item, "control_after_generate", None):
        said["control_after_generate"] = True
    if getattr(item, "force_input", None):
        said["forceInput"] = True
    return [kind, said]


def our_entry(kind):
    """The entry of one node of ours, as a host writes it that knows words to search for."""
    with patch.object(io, "Schema", SearchableSchema):
        schema = NODES[kind].define_schema()
    inputs = {"required": {}, "optional": {}}
    for item in schema.inputs:
        inputs["optional" if item.optional else "required"][item.id] = our_input(item)
    return entry(
        kind,
        schema.display_name,
        schema.category,
        inputs,
        [type_of(output) for output in schema.outputs],
        [output.display_name for output in schema.outputs],
        description=schema.description,
        output_tooltips=[output.tooltip for output in schema.outputs],
        python_module="custom_nodes.surf",
        search_aliases=schema.search_aliases,
    )


def object_info():
    """{node: entry} of every node of ours and of the core's that the workflows use."""
    core = {kind: core_entry(kind, seen) for kind, seen in core_inputs().items()}
    for kind, widgets in OF_THE_FIRST_GRAPH.items():
        core[kind] = entry(kind, kind, "core", {"required": widgets}, [], [])
    return core | {kind: our_entry(kind) for kind in NODES}
