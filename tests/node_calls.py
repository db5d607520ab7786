"""Generated calls of every node, by seed: values within and outside of what a schema declares.

A call ends in a result or in a ValueError that begins with the node's name, once, and says what to
do. It leaves its inputs as they are and takes seconds of the CPU at most. Who runs the calls brings
the models: the fake host's or a real host's.
"""

import dataclasses
import random
import re
import signal
import time
import traceback
from contextlib import contextmanager

import torch
from surf.tests.frozen_nodes import INPUTS
from surf.tests.node_values import (
    NAN,
    NOTHING,
    good_conditioning,
    good_image,
    good_latent,
    odd_conditioning,
    odd_image,
    odd_latent,
    within,
    without,
)

SECONDS = 10.0
"""Of the CPU, for one call; the usual is below one."""
EXPERTS = ("model_low_noise", "expert_boundary", "cfg_low_noise")
LONGEST = 2000
"""Characters of a message."""
OF_THE_HOST = ("SeedVR2 expected an even text-conditioning batch",)
"""The host's own refusals, which say enough: SeedVR2 takes its two texts from nodes of its own."""
ADVICE = re.compile(r"[;,:] .+\.$", re.DOTALL)
NODES = [node for node in INPUTS for _ in range(1 if node.startswith("SurfTiny") else 6)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallInputs:
    """What calls are made of and with."""

    nodes: dict
    """Node id -> class."""
    families: list
    masks: list
    """Values of the mask's socket."""
    options: dict
    """Names that the host adds to lists: {input: [...]}."""
    sampler: object
    """Name -> what a guider's `sample` takes."""
    guider: object
    """The host's class of guiders."""

    def use(self, node, result, given, draw):
        """Sample with the guider or the model that a node returned, with what fits its model."""
        model = given.get("model") or getattr(given.get("guider"), "model_patcher", None)
        family = next((x for x in self.families if x.model is model), None)
        if node in ("SurfReshiftGuider", "SurfReshiftAnyGuider", "SurfReshiftLadder"):
            latent = socket(draw, "LATENT", family, self, odd=draw.random() < 0.3)
            self.sample(result.args[0], latent, draw)
        elif node in ("SurfWindowedAttention", "SurfSeedVR2Skip") and family.plain:
            guider = self.guider(result.args[0])
            guider.set_conds(*(good_conditioning(draw, family) for _ in range(2)))
            self.sample(guider, good_latent(draw, family), draw, plain=True)

    def sample(self, guider, latent, draw, *, plain=False):
        """Call a guider as SamplerCustomAdvanced does; it takes tensors alone."""
        x = latent.get("samples") if isinstance(latent, dict) else None
        if not isinstance(x, torch.Tensor):
            return
        mask = None if plain else latent.get("noise_mask")
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        drawn = drawn * 0 if draw.random() < 0.2 else drawn
        sigmas = torch.linspace(draw.choice([1.0, 0.9]), 0, draw.choice([2, 3]))
        if not plain and draw.random() < 0.3:
            sigmas = draw.choice([sigmas[:0], sigmas[:1], sigmas.flip(0), sigmas * NAN, sigmas * 9,
                                  sigmas[None], sigmas[:2], sigmas.double(), -sigmas])  # fmt: skip
        seed = 1 if plain else draw.choice([0, 1, 2**64 - 1, -1, 2**64, None])
        sampler = self.sampler(draw.choice(["euler", "euler_ancestral", "uni_pc"]))
        before = kept((x, drawn, mask, sigmas))
        guider.sample(drawn, x, sampler, sigmas, denoise_mask=mask, seed=seed)
        changed = changes(before, kept((x, drawn, mask, sigmas)), "sample")
        assert plain or not changed, changed


def socket(draw, kind, family, world, *, odd):
    """What a link brings."""
    makers = {"LATENT": (good_latent, odd_latent),
              "CONDITIONING": (good_conditioning, odd_conditioning)}  # fmt: skip
    if kind in makers:
        return makers[kind][odd](draw, family)
    if kind == "IMAGE":
        return odd_image(draw) if odd else good_image(draw)
    others = draw.choice(world.families)
    if kind == "MODEL":
        return draw.choice([others.model, others.model, *NOTHING, others.vae]) if odd else (
            family.model)  # fmt: skip
    if kind == "GUIDER":
        made = world.guider(family.model)
        made.set_conds(*(good_conditioning(draw, family) for _ in range(2)))
        return draw.choice([*NOTHING, family.model]) if odd else made
    if kind == "CLIP_VISION_OUTPUT":
        return None
    if kind == "VAE":
        return draw.choice([others.vae, others.vae, *NOTHING, others.model]) if odd else family.vae
    return draw.choice([*world.masks, *NOTHING[odd < 1 :]]) if odd else draw.choice(world.masks)


def generate(seed, world):
    """Return a call: (node id, {input: value}, names of the odd ones)."""
    draw = random.Random(seed)
    node, family = NODES[seed % len(NODES)], draw.choice(world.families)
    inputs, given = INPUTS[node], {}
    named = [name for name in inputs if draw.random() < 0.7 or not inputs[name].get("optional")]
    odd = set(draw.sample(named, min(len(named), draw.choice([0, 0, 1, 1, 2, 4]))))
    for name in named:
        said = inputs[name]
        kind, optional = said["type"], said.get("optional")
        if kind in ("INT", "FLOAT", "COMBO", "BOOLEAN", "STRING"):
            value = without(draw, kind) if name in odd else within(draw, name, said)
        else:
            value = socket(draw, kind, family, world, odd=name in odd)
        given[name] = None if optional and draw.random() < 0.05 else value
        if name in world.options and name not in odd:
            given[name] = draw.choice(world.options[name])
    if draw.random() < 0.9:
        settle(draw, node, given, odd)
    return node, given, sorted(odd)


def settle(draw, node, given, odd):
    """Make values agree that are drawn one by one, so that most calls get as far as a model."""
    fitting = {}
    if "switch_step" in given and isinstance(given.get("steps"), int):
        fitting["switch_step"] = draw.randint(0, max(1, min(3, given["steps"])))
    if isinstance(given.get("image"), torch.Tensor):
        fitting["reference"] = given["image"].float() * 0.5 + 0.2
    if given.get("vae") is None:
        fitting["upsample"] = "latent"
    if "piece" in given:
        fitting |= {"width": 0, "height": 0}
    given |= {name: value for name, value in fitting.items() if name in given.keys() - odd}
    if not odd & {"made_width", "made_height"} and draw.random() < 0.8:
        given.pop("made_width", None)
        given.pop("made_height", None)
    if draw.random() < 0.8:
        for name in {"positive_low", "middle_low", "negative_low"} - odd:
            given.pop(name, None)
    if "expert_boundary" in INPUTS[node] and not odd & set(EXPERTS):
        pair = draw.random() < 0.5 and given.get("model_low_noise") is not None
        numbers = {"expert_boundary": 0.9, "cfg_low_noise": 1.0} if pair else {}
        for name in ("model_low",) if pair else EXPERTS:
            given.pop(name, None)
        given |= numbers
    if "mask" in given and "mask" not in odd and given["mask"] is not None:
        if draw.random() < 0.5:
            given.pop("mask")
        elif "latent" not in odd:
            given["latent"] = {"samples": given["mask"].samples.clone()}
            given |= {name: x for name, x in (("resolution", "by scale"), ("scale", 2.0))
                      if name not in odd}  # fmt: skip


def kept(x, depth=7):
    """Copy what a call could change: tensors, containers, and a model's options and patches."""
    if isinstance(x, torch.Tensor):
        return x.detach().clone()
    if depth and isinstance(x, dict):
        return {key: kept(value, depth - 1) for key, value in x.items()}
    if depth and isinstance(x, list | tuple):
        return [type(x), *(kept(value, depth - 1) for value in x)]
    if hasattr(x, "model_options"):
        names = ("model_options", "object_patches", "wrappers", "attachments", "patches",
                 "callbacks", "hook_patches", "injections", "additional_models")  # fmt: skip
        return {name: kept(getattr(x, name, None), depth - 1) for name in names}
    if dataclasses.is_dataclass(x):
        return {f.name: kept(getattr(x, f.name), depth - 1) for f in dataclasses.fields(x)}
    return repr(x) if isinstance(x, int | float | complex | str | type(None)) else id(x)


def changes(before, after, path):
    """List the places at which two copies differ."""
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        alike = (before.dtype, before.shape) == (after.dtype, after.shape)
        flat = [x.reshape(-1).contiguous().view(torch.uint8) for x in (before, after)]
        return [] if alike and torch.equal(*flat) else [path]
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        pairs = [(before[key], after[key], f"{path}.{key}") for key in before]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(before, after, strict=True))]
    else:
        return [] if type(before) is type(after) and before == after else [path]
    return [place for pair in pairs for place in changes(*pair)]


class Endless(BaseException):
    """A call that had its seconds."""


@contextmanager
def limited(seconds):
    """Stop Python code after so many seconds of this process's CPU time."""

    def stop(*_):
        raise Endless(f"more than {seconds} s of the CPU")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def said_wrong(error, name):
    """What is wrong with how a call was refused, or ""."""
    text = str(error)
    if type(error) is not ValueError:
        place = traceback.extract_tb(error.__traceback__)[-4:]
        way = " < ".join(f"{f.filename[-40:]}:{f.lineno}" for f in reversed(place))
        return f"{type(error).__name__}: {text[:200]} [{way}]"
    if not text.startswith(f"{name}: ") or text.count(f"{name}: ") > 1:
        return f"named wrongly: {text[:300]}"
    if len(text) > LONGEST:
        return f"{len(text)} characters: {text[:300]}"
    if any(part in text for part in OF_THE_HOST):
        return ""
    return "" if ADVICE.search(text) else f"without advice: {text[-300:]}"


def check(seed, world):
    """Make one call: ("done" or "refused", what is wrong, "" where nothing is)."""
    node, given, odd = generate(seed, world)
    before, began = kept(given), time.process_time()
    outcome, wrong = "done", ""
    try:
        with limited(SECONDS):
            result = world.nodes[node].execute(**given)
            world.use(node, result, given, random.Random(seed))
    except (Exception, Endless) as error:  # noqa: BLE001 every kind is what is looked for
        outcome = "refused"
        wrong = said_wrong(error, world.nodes[node].define_schema().display_name)
    spent = time.process_time() - began
    if not wrong and spent > SECONDS:
        wrong = f"{spent:.1f} s of the CPU"
    changed = changes(before, kept(given), "inputs")
    if not wrong and changed:
        wrong = f"changed {changed[:5]}"
    return outcome, wrong and f"seed {seed}, {node}, odd {odd}: {wrong}"


def check_all(seeds, world):
    """Make the calls.

    Returns:
        How many ended how.

    Raises:
        AssertionError: with a line for each call that went wrong; its seed repeats it.
    """
    ends, wrong = {"done": 0, "refused": 0}, []
    for seed in seeds:
        outcome, text = check(seed, world)
        ends[outcome] += 1
        wrong += [text] if text else []
    lines = "\n".join(line[:900] for line in wrong)
    assert not wrong, f"{len(wrong)} of {sum(ends.values())} calls went wrong:\n{lines}"
    return ends
