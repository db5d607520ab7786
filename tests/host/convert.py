"""Turn a workflow of the user interface into the form that the host's /prompt takes.

For flat graphs: no subgraphs, no reroutes, no primitives. What a widget is and in which order they
come is read from the host's own /object_info.
"""

NOTES = {"MarkdownNote", "Note"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NESTED = "COMFY_DYNAMICCOMBO_V3"


def to_api(graph, object_info):
    """Convert one graph.

    Args:
        graph: a workflow, format 0.4.
        object_info: the host's answer to /object_info.

    Returns:
        {node id as text: {"class_type": ..., "inputs": {...}}}

    Raises:
        ValueError: a node that the host does not have, or widget values left over.
    """
    links = {link[0]: link for link in graph["links"]}
    nodes = [n for n in graph["nodes"] if n["type"] not in NOTES and n["mode"] == 0]
    run, prompt = {node["id"] for node in nodes}, {}
    for node in nodes:
        if node["type"] not in object_info:
            raise ValueError(f"the host has no node {node['type']}; load its pack first.")
        declared = object_info[node["type"]]["input"]
        inputs = widget_inputs(declared, list(node["widgets_values"]), node["type"])
        for item in node["inputs"]:
            _, source, slot, *_ = links.get(item["link"], (None, None, None))
            if source in run:
                inputs[item["name"]] = [str(source), slot]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def is_widget(type_):
    """Tell a type that has a widget; of several types, "FLOAT,INT", all have."""
    return type_ == NESTED or WIDGETS.issuperset(type_.split(","))


def widget_inputs(declared, values, kind):
    """Give each widget its value, by position."""
    inputs = {}
    fields = list(declared.get("required", {}).items()) + list(declared.get("optional", {}).items())
    while fields:
        name, (type_, *options) = fields.pop(0)
        options = options[0] if options else {}
        shown = isinstance(type_, list) or is_widget(type_)
        if not values or not shown or options.get("forceInput"):
            continue
        inputs[name] = values.pop(0)
        extras = ("control_after_generate", "image_upload", "video_upload")
        if any(options.get(each) for each in extras):
            values.pop(0)
        if type_ == NESTED:
            chosen = next(o for o in options["options"] if o["key"] == inputs[name])
            nested = chosen["inputs"].get("required", {})
            fields = [(f"{name}.{inner}", spec) for inner, spec in nested.items()] + fields
    if values:
        raise ValueError(f"{kind}: {len(values)} widget values too many: {values}")
    return inputs
