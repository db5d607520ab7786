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
    const boxes = Object.fromEntries(nodes.map((node) => {
        const shown = document.querySelector(`.lg-node[data-node-id="${node.id}"]`);
        const box = shown ? ofGraph(shown.getBoundingClientRect()) : [...node.getBounding()];
        return [`${node.id} ${node.type}`, box];
    }));
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
    return {opened, boxes, crossed, undrawn};
"""
"""What a graph looks like: the view it opened with, boxes with title and footer, crossed titles."""
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
SIDEBAR, BARS = 50, 40
"""Pixels that the front end keeps at the left and at the top."""
NODES2_ROUNDING = 1.5
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


def hidden(box, opened, window):
    """Whether a box is partly outside of a window, or under its bars, as a graph opens."""
    left, top, width, height = box
    x, y = ((place + opened["offset"][i]) * opened["scale"] for i, place in enumerate((left, top)))
    right, bottom = x + width * opened["scale"], y + height * opened["scale"]
    return x < SIDEBAR or y < 0 or right > window[0] or bottom > window[1] - BARS


def width(boxes):
    return max(box[0] + box[2] for box in boxes.values()) - min(box[0] for box in boxes.values())


def fitted_zoom(boxes, window):
    """The zoom at which the template browser opens a graph: three quarters of the window."""
    tall = max(box[1] + box[3] for box in boxes.values()) - min(box[1] for box in boxes.values())
    sizes = width(boxes) + 2 * FIT_MARGIN, tall + 2 * FIT_MARGIN
    return 0.75 * min(pixels / size for pixels, size in zip(window, sizes, strict=True))
