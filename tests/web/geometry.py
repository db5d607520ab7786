"""Where the front end puts nodes, titles and wires, in pixels of the graph; what is wrong there.

Nodes 2.0 gives nodes sizes of its own, so that boxes are read from the page, not from the file.
"""

from itertools import combinations

MEASURE = """
    const frames = async (count) => {
        for (let i = 0; i < count; i += 1) await new Promise(requestAnimationFrame);
    };
    const {ds, canvas} = app.canvas, {nodes, groups} = app.graph;
    const opened = {scale: ds.scale, offset: [...ds.offset]};
    // All of it in view: wires outside of it get no path.
    const all = [...nodes.map((node) => [...node.getBounding()]),
        ...groups.map((group) => [...group._bounding])];
    const least = (axis) => Math.min(...all.map((box) => box[axis]));
    const most = (axis) => Math.max(...all.map((box) => box[axis] + box[axis + 2]));
    const fits = [[0, canvas.clientWidth], [1, canvas.clientHeight]].map(
        ([axis, pixels]) => pixels / (most(axis) - least(axis)));
    ds.scale = Math.min(...fits) * 0.9;
    ds.offset[0] = 20 - least(0); ds.offset[1] = 20 - least(1);
    app.canvas.setDirty(true, true);
    await frames(3);
    app.canvas.draw(true, true);
    const page = canvas.getBoundingClientRect();
    const ofGraph = (box) => [
        (box.left - page.left) / ds.scale - ds.offset[0],
        (box.top - page.top) / ds.scale - ds.offset[1],
        box.width / ds.scale, box.height / ds.scale];
    // What hangs below a node, such as the bar of an error, is part of it.
    const whole = (shown) => {
        const parts = [shown, ...shown.children]
            .filter((part) => getComputedStyle(part).opacity > 0)
            .map((part) => part.getBoundingClientRect());
        const {left, top, width} = parts[0];
        return {left, top, width, height: Math.max(...parts.map((part) => part.bottom)) - top};
    };
    const boxes = Object.fromEntries(nodes.map((node) => {
        const shown = document.querySelector(`.lg-node[data-node-id="${node.id}"]`);
        const box = shown ? ofGraph(whole(shown)) : [...node.getBounding()];
        return [`${node.id} ${node.type}`, box];
    }));
    const framed = groups.map((group) => [group.title, [...group._bounding]]);
    const ctx = document.createElement("canvas").getContext("2d");
    ctx.lineCap = "round";
    const links = [...(app.graph.links.values?.() ?? Object.values(app.graph.links))];
    const isCrossed = (group) => {
        const [x, y] = group._bounding, size = group.font_size ?? 24, tall = size * 1.4;
        ctx.font = `${size}px Inter, Arial, sans-serif`;
        const width = ctx.measureText(group.title).width + size / 2;
        const touches = (link, stroke, firstDown, apart) => {
            ctx.lineWidth = stroke;
            for (let along = 0; along < width + apart; along += apart)
                for (let down = firstDown; down < tall; down += apart)
                    if (ctx.isPointInStroke(link.path, x + Math.min(along, width), y + down))
                        return true;
            return false;
        };
        // A stroke as wide as the title is tall finds the few links that come near it.
        return links.filter((link) => touches(link, tall * 2, tall / 2, tall))
            .some((link) => touches(link, 6, 0, 4));
    };
    const undrawn = links.filter((link) => !link.path).length;
    const crossed = undrawn ? [] : groups.filter(isCrossed).map((group) => group.title);
    ds.scale = opened.scale; ds.offset[0] = opened.offset[0]; ds.offset[1] = opened.offset[1];
    app.canvas.setDirty(true, true);
    return {opened, boxes, framed, crossed, undrawn};
"""
"""What a graph looks like: the view it opened with, boxes with title, footer and error, groups with
their titles, and which of these titles a wire crosses."""
SHOW_PREVIEWS = """
    const sampler = /^(SurfReshiftKSampler|SurfRefiner|SamplerCustomAdvanced|KSampler)$/;
    const picture = document.createElement("canvas");
    picture.width = 640; picture.height = 360;
    const blob = await new Promise((done) => picture.toBlob(done));
    const api = window.comfyAPI?.api?.api ?? app.api;
    for (const {id} of app.graph.nodes.filter((node) => sampler.test(node.type) && !node.mode)) {
        const of = {nodeId: `${id}`, displayNodeId: `${id}`, parentNodeId: `${id}`};
        const detail = {blob, ...of, realNodeId: `${id}`, promptId: "1", jobId: "1"};
        api.dispatchEvent(new CustomEvent("b_preview_with_metadata", {detail}));
    }
    await new Promise((done) => setTimeout(done, 400));
    return null;
"""
"""Send a live preview to every sampler, as a host does while it works."""
WINDOWS = ((1366, 768), (1600, 1000), (1920, 1080))
SIDEBAR, TOP, BOTTOM = 50, 90, 40
"""Pixels that the front end keeps at the left, at the top (in ComfyUI 0.8.0) and at the bottom."""
NODES2_ROUNDING = 1.5
TITLE = 33
"""Height of a group's title, of the font size that ours have."""
FIT_MARGIN = 10
"""What the template browser leaves free at each side of a graph, in pixels of the graph."""


def overlaps(boxes):
    """Pairs of nodes on top of each other."""
    for (a, one), (b, other) in combinations(boxes.items(), 2):
        shared = [
            min(one[i] + one[i + 2], other[i] + other[i + 2]) - max(one[i], other[i])
            for i in (0, 1)
        ]
        if min(shared) > NODES2_ROUNDING:
            yield f"{a} and {b} share {shared[0]:.0f} x {shared[1]:.0f}"


def strays(boxes, framed):
    """Nodes that are not wholly in one group below its title; a note is to be in none."""
    for name, box in boxes.items():
        shared = {
            title: [min(box[i] + box[i + 2], group[i] + group[i + 2]) - max(box[i], group[i])
                    for i in (0, 1)]
            for title, group in framed
        }  # fmt: skip
        within = {title for title, sides in shared.items() if min(sides) > NODES2_ROUNDING}
        if name.endswith("MarkdownNote"):
            yield from (f"{name} covers {title}" for title in within)
            continue
        if len(within) != 1:
            yield f"{name} is in {len(within)} groups"
            continue
        [(title, group)] = [item for item in framed if item[0] in within]
        cut = [box[2] - shared[title][0], box[3] - shared[title][1], group[1] + TITLE - box[1]]
        if max(cut) > NODES2_ROUNDING:
            yield f"{name} leaves {title}, or covers its title, by {max(cut):.0f}"


def hidden(box, opened, window):
    """Whether a box is partly outside of a window, or under its bars, as a graph opens."""
    left, top, width, height = box
    x, y = ((place + opened["offset"][i]) * opened["scale"] for i, place in enumerate((left, top)))
    right, bottom = x + width * opened["scale"], y + height * opened["scale"]
    return x < SIDEBAR or y < TOP or right > window[0] or bottom > window[1] - BOTTOM


def width(boxes):
    return max(box[0] + box[2] for box in boxes.values()) - min(box[0] for box in boxes.values())


def fitted_zoom(boxes, window):
    """The zoom at which the template browser opens a graph: three quarters of the window."""
    tall = max(box[1] + box[3] for box in boxes.values()) - min(box[1] for box in boxes.values())
    sizes = width(boxes) + 2 * FIT_MARGIN, tall + 2 * FIT_MARGIN
    return 0.75 * min(pixels / size for pixels, size in zip(window, sizes, strict=True))
