"""Values for the inputs of nodes: what fits a model, and what hardly does or does not.

Each is drawn from a `random.Random`. For tests/node_calls.py.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

import dataclasses

import torch
from surf.tests.frozen_nodes import HOST

NAN, INF = float("nan"), float("inf")
SIDES = (4, 6, 8, 12)
WHOLE = [-1, -64, 0, 1, 2**31, 2**63, 2**64, 10**9, 10**400, True, 1.5, 2.0, NAN, "4", None, [1]]
REAL = [-1.0, -1e-9, NAN, INF, -INF, 1e9, 1e300, 10**400, True, "0.5", None, [0.5], 1j]
WORDS = ["no option", "", " euler", "BY SCALE", None, 7, True, ["by scale"], {}, 1.5]
KINDS = [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
         torch.int64, torch.uint8, torch.bool, torch.complex64]  # fmt: skip
NOTHING = [None, "text", 3, [], {}, (), torch.zeros(2)]
SMALL = {
    "steps": (1, 2, 3), "switch_step": (0, 1, 2), "resolution": ("by scale", "by scale", "by size"),
    "low_resolution": ("by scale", "by scale", "by size"), "scale": (1.0, 0.5, 2.0, 1.5, 0.75),
    "low_scale": (0.5, 0.25, 0.75, 1.0), "width": (0, 16, 32, 48, 64, 72, 96, 128),
    "height": (0, 16, 32, 48, 64, 72, 96, 128), "low_width": (16, 32),
    "low_height": (16, 32), "tile": (0, 0, 0, 256), "piece": (0, 0, 128),
    "window": (0, 0, 2, 4), "made_width": (0, 64, 128), "made_height": (0, 64, 128),
    "steps_low": (0, 0, 2), "sizes": ("1: 0.5", "1: 0.75, 2: 0.5", "10: 0.75, 20: 0.5"),
    "filename_prefix": ("drafts/a", "b"), "attention": ("host", "sdpa"),
    "dilate": (0, 1), "upsample": ("latent", "pixel"),
}  # fmt: skip
"""What is quick; the declared ranges reach to hours of work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A MODEL with what fits it."""

    model: object
    channels: int = 16
    video: bool = True
    width: int = 8
    """Of its text."""
    options: tuple = ()
    """Tensors that its conditioning must hold: (name, *shape) without B."""
    vae: object = None
    plain: bool = True
    """Whether the host itself can sample with it."""
    areas: bool = True
    """Whether the host can run it on areas: HunyuanVideo cannot cut odd ones, VACE none."""
    shape: tuple = ()
    """(C, T, H, W) of its latents where its conditioning fixes them."""


def noise(draw, *shape):
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    return torch.randn(shape, generator=generator)


def good_latent(draw, family):
    frames = (draw.choice([1, 2, 3, 5]),) if family.video else ()
    shape = (draw.choice([1, 1, 2]), family.channels, *frames, draw.choice(SIDES))
    shape = (1, *family.shape) if family.shape else (*shape, draw.choice(SIDES))
    latent = {"samples": noise(draw, *shape)}
    if draw.random() < 0.3:
        latent["samples"].zero_()
    if draw.random() < 0.2:
        latent["noise_mask"] = torch.rand(1, *latent["samples"].shape[-2:])
    if draw.random() < 0.2:
        latent["batch_index"] = list(range(3, 3 + shape[0]))
    return latent


def odd_samples(draw, x):
    """Samples that no latent should have, or hardly any."""
    bad = x.clone()
    bad.view(-1)[draw.randrange(max(1, x.numel()))] = draw.choice([NAN, INF])
    channels = draw.choice([1, 3, 4, 12, 16, 48, 128])
    zero = list(x.shape)
    zero[draw.randrange(x.ndim)] = 0
    return draw.choice([
        x.to(draw.choice(KINDS)), x.to(draw.choice(KINDS)), bad, x[0], x[0, 0], x.sum(), x[None],
        x.new_zeros(zero), x[:1].expand(3, *x.shape[1:]), x.transpose(-1, -2),
        x[:, :1].repeat(1, channels, *[1] * (x.ndim - 2)), x[:, :, 0], x.unsqueeze(2),
        x[..., :1, :1], x[..., : draw.choice(SIDES) - 1], x * 1e20, None, x.tolist(), [x], "x",
    ])  # fmt: skip


def odd_mask(draw, shape):
    """Noise masks of other shapes, types and values."""
    batch, rows, columns = shape[0], shape[-2], shape[-1]
    size = draw.choice([
        (rows, columns), (1, rows, columns), (batch, rows, columns), (1, 1, rows, columns), (0,),
        (batch, 1, *shape[2:]), (7, 3, 5), (1, 1, 8 * rows, 8 * columns), (columns,), (1, 0, 4),
        (1, *shape[1:]), (2, 1, 1, rows, columns), (5, 1, rows, columns), (1, 1, 1),
    ])  # fmt: skip
    mask = noise(draw, *size).sigmoid()
    return draw.choice([
        mask, mask, mask.round(), mask > 0.5, mask.round().long(), mask.half(), mask.double(),
        mask * NAN, mask * 3 - 1, mask.to(torch.float8_e4m3fn), None, mask.tolist(), "mask", 1.0,
    ])  # fmt: skip


def odd_latent(draw, family):
    latent = good_latent(draw, family)
    shape, what = latent["samples"].shape, draw.randrange(7)
    if what < 2:
        latent["samples"] = odd_samples(draw, latent["samples"])
    elif what < 4:
        latent["noise_mask"] = odd_mask(draw, shape)
    elif what == 4:
        latent["batch_index"] = draw.choice([
            [0], [2, 5], [-1], ["a"], None, [0, 1, 2, 3], [10**9], [0.5], torch.arange(shape[0]),
            [0] * shape[0], [10**9] * shape[0], (1,) * shape[0], range(shape[0]), [], 3,
            [-1] * shape[0], ["a"] * shape[0], [None] * shape[0], [0.5] * shape[0],
            [True] * shape[0],
        ])  # fmt: skip
    elif what == 5:
        key = draw.choice(["downscale_ratio_spacial", "downscale_ratio_temporal", "surf_made_for"])
        latent[key] = draw.choice([0, 1, 8, 16, 32, -8, 7, None, "8", NAN, (64, 64), [], 10**9])
    else:
        return draw.choice([*NOTHING, {"samples": None}, {"other": shape}, [latent]])
    return latent


def good_conditioning(draw, family):
    options = {name: noise(draw, 1, *shape) for name, *shape in family.options}
    if draw.random() < 0.2 and family.areas:
        share = (1.0, 0.5, 0.5, 0.0, 0.25, 0.0) if family.video else (0.5, 0.5, 0.25, 0.0)
        options |= draw.choice([
            {"area": (4, 4, 0, 0), "strength": 1.0},
            {"area": ("percentage", *share), "strength": 0.5},
            {"mask": torch.ones(1, 32, 32), "mask_strength": 1.0, "set_area_to_bounds": False},
            {"start_percent": 0.2, "end_percent": 0.8},
        ])  # fmt: skip
    entry = [noise(draw, 1, draw.choice([1, 4, 8]), family.width), options]
    return [entry] * draw.choice([1, 1, 1, 2])


def odd_text(draw, text):
    return draw.choice([
        text[..., : max(1, text.shape[-1] // 2)], text.repeat(1, 1, 2), text * NAN, text[0],
        text[:, :0], text.repeat(3, 1, 1), text.half(), text.long(), text[0, 0], None, "text",
    ])  # fmt: skip


def odd_option(draw):
    """A key of a conditioning's options, with a value that hardly fits."""
    x = noise(draw, 1, draw.choice([4, 16, 48]), draw.choice([1, 3]), 4, 6)
    area = [(4, 4, 0, 0), (400, 400, 0, 0), (0, 0, 0, 0), (-4, 4, 0, 0), (4, 4, 90, 90), (4, 4),
            ("percentage", 0.5, 0.5, 0.25, 0.0), ("percentage", 2.0, NAN, -1.0, 0.0), "area", None,
            (1, 4, 4, 0, 0, 0), (0.5, 4, 0, 0)]  # fmt: skip
    mask = [torch.ones(1, 4, 6), torch.ones(4, 6) > 0, torch.ones(3, 8, 8), torch.zeros(1, 4, 6),
            torch.ones(6), torch.full((1, 4, 6), NAN), "mask", None]  # fmt: skip
    return draw.choice([
        ("area", draw.choice(area)), ("area", draw.choice(area)), ("mask", draw.choice(mask)),
        ("mask", draw.choice(mask)), ("strength", draw.choice([0.0, -1.0, NAN, None, "1"])),
        ("start_percent", draw.choice([-1.0, 0.5, 2.0, NAN, None])), ("concat_latent_image", x),
        ("end_percent", draw.choice([-1.0, 0.0, 0.5, None])), ("concat_mask", x[:, :1]),
        ("pooled_output", draw.choice([None, x, noise(draw, 1, 768)])), ("reference_latents", [x]),
        ("reference_latents", x), ("guidance", draw.choice([3.5, None, NAN, "3"])),
        ("concat_latent_image", draw.choice([x[0], x * NAN, None, x > 0])), ("control", None),
        ("condition", draw.choice([x, None, x * NAN, x[0]])), ("a key", object()), ("hooks", None),
    ])  # fmt: skip


def odd_conditioning(draw, family):
    conditioning, what = good_conditioning(draw, family), draw.randrange(4)
    if what == 0:
        return draw.choice([*NOTHING, [[]], [None], [[conditioning[0][0]]], tuple(conditioning)])
    text, options = conditioning[0]
    if what == 1:
        text = odd_text(draw, text)
    else:
        more = dict(odd_option(draw) for _ in range(draw.choice([1, 1, 2])))
        more = more if family.areas else {key: x for key, x in more.items() if key != "area"}
        options = {**options, **more}
    return [[text, options], *conditioning[1:]]


def good_image(draw):
    sides = draw.choice([16, 24, 32]), draw.choice([16, 32, 40])
    return noise(draw, draw.choice([1, 5, 9]), *sides, 3).sigmoid()


def odd_image(draw):
    x = good_image(draw)
    return draw.choice([
        torch.cat([x, x[..., :1]], -1), x[..., :1], x[..., :2], x[0], x[..., 0], x[None], x[:0],
        x[:, :0], x * 255, (x * 255).byte(), x.half(), x.double(), x.bfloat16(), x * NAN, x - 0.5,
        x.movedim(-1, 1), x[:, :1, :1], x > 0.5, x.to(torch.float8_e4m3fn), x.tolist(),
        x[:1].expand(7, -1, -1, -1), *NOTHING,
    ])  # fmt: skip


def within(draw, name, said):
    """A value as declared; small where it decides on the work."""
    kind = said["type"]
    if kind == "COMBO":
        options = [option for option in said["options"] if option is not HOST]
        return draw.choice(SMALL.get(name) or options or ["euler"])
    if kind == "BOOLEAN":
        return draw.random() < 0.5
    if kind == "STRING":
        words = [said["default"], "", "blue ball", "red cube, on sand"]
        return draw.choice(SMALL.get(name, words))
    fitting = [x for x in SMALL.get(name, ()) if said["min"] <= x <= said["max"]]
    if fitting:
        return draw.choice(fitting)
    edge = draw.choice([said["min"], said["max"], said.get("default"), None])
    if edge is not None:
        return edge
    return draw.randint(0, said["max"]) if kind == "INT" else draw.uniform(0, said["max"])


def without(draw, kind):
    """A value that a schema does not declare, or hardly."""
    table = {"INT": WHOLE, "FLOAT": REAL, "COMBO": WORDS, "BOOLEAN": [None, 1, 0, "yes", 2.5, []],
             "STRING": ["purple dog", None, 5, "x" * 10**5, "a, b, c, d", "\0\n", ["red ball"],
                        ",,,", b"red ball"]}  # fmt: skip
    return draw.choice(table[kind])
