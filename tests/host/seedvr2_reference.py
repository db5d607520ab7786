"""A tiny SeedVR2 of the host, and its attention written out with the skipped keys masked.

For the scripts beside it: importing it enters the host. The host finds a SeedVR2 file by blocks of
the real width and number alone, so tiny random networks come from the host's own classes: its
model config, its BaseModel, its patcher.

Dims: T latent frames, h, w tokens of a frame, N all tokens, K kept ones, L text tokens.
"""

from contextlib import contextmanager
from unittest.mock import patch

import checkpoints
import inside
import torch
from inside import noise

RESULTS = inside.enter()

import comfy.model_patcher  # noqa: E402
import comfy.supported_models  # noqa: E402
import surf.nodes.host.skip.seedvr2 as ours  # noqa: E402
from surf.nodes.seedvr2 import SurfSeedVR2Skip  # noqa: E402
from surf.surf_core.skip import Mask, weight  # noqa: E402

import nodes  # noqa: E402

try:
    import comfy.ldm.seedvr.model as seedvr
    from comfy_extras.nodes_seedvr import SeedVR2Conditioning
except ImportError:
    seedvr = None

CPU = torch.device("cpu")
GRID = (5, 20, 30)
"""Tokens: five frames make three windows in time, 20 x 30 tokens two by two in space."""
START = noise(1, 16, 5, 40, 60, seed=3)
SIZES = {
    "vid_dim": 48, "heads": 2, "head_dim": 16, "num_layers": 4, "mm_layers": 2, "rope_dim": 12,
    "norm_eps": 1e-5,
}  # fmt: skip
KINDS = {
    "3b": {"mlp_type": "swiglu", "rope_type": "mmrope3d", "vid_out_norm": True},
    "7b": {"mlp_type": "swiglu", "rope_type": "rope3d"},
    "7b separate": {"mlp_type": "normal", "rope_type": "rope3d", "mm_layers": 4},
}
TOLERANCE = 2e-5
SETTINGS = {"choose": "keep ratio", "keep": 0.5, "tau": 3.0, "dilate": 0, "seam": 0}
ALL = torch.ones(GRID, dtype=torch.bool)


def filled(network):
    """Random weights; the rotary frequencies are no weights, and the texts are of unit size."""
    state = checkpoints.randomise(network, 0)
    for name, value in network.state_dict().items():
        if name.endswith("freqs"):
            state[name] = value
        elif name.endswith("_conditioning"):
            state[name] = noise(*value.shape, seed=len(name))
        elif ".ada." in name:
            state[name] = 1 + state[name]
    network.load_state_dict(state)
    return network.requires_grad_(False)


def model(kind="3b"):
    """A tiny MODEL; the host tells a 7B from its width, so that is what it is told."""
    config = comfy.supported_models.SeedVR2({"image_model": "seedvr2", **SIZES, **KINDS[kind]})
    config.set_inference_dtype(torch.float32, None)
    width = SIZES["vid_dim"] if kind.startswith("7b") else -1
    with patch.object(seedvr, "SEEDVR2_7B_VID_DIM", width):
        base = config.get_model({}, device=CPU)
    assert base.diffusion_model._7b_version == kind.startswith("7b")
    filled(base.diffusion_model)
    return comfy.model_patcher.ModelPatcher(base, CPU, CPU)


def conditioned(model, start=START):
    """positive, negative as the host's own node makes them."""
    return SeedVR2Conditioning.execute(model, {"samples": start}).result


def drawn(seed=0, share=0.4):
    """A random mask that leaves windows of both phases empty."""
    tokens = noise(*GRID, seed=seed) > torch.tensor(share).logit() * -0.6
    tokens[:, :17, :25] = False
    return Mask(tokens=tokens, scores=tokens.float(), source="test", tau=1.0)


@contextmanager
def given(mask):
    """The mask that the node would otherwise find itself."""
    with patch.object(ours, "predict_mask", lambda *args, **kwargs: mask):
        yield


def skip(model, conditioning=None, mask=None, **changes):
    """What the node makes of a MODEL: clone, keep ratio, report."""
    positive = conditioning or conditioned(model)[0]
    if mask is None:
        return SurfSeedVR2Skip.execute(model, positive, **SETTINGS | changes).result
    with given(mask):
        return SurfSeedVR2Skip.execute(model, positive, **SETTINGS | changes).result


def call(model, x, context=None, start=START, branches=None):
    """The velocity of the network alone."""
    options = dict(model.model_options.get("transformer_options", {}))
    if branches:
        options["cond_or_uncond"] = branches
    condition = torch.cat([start, torch.ones_like(start[:, :1])], dim=1)
    network = model.model.diffusion_model
    if context is None:
        context = network.positive_conditioning[None].repeat(len(x), 1, 1)
        options["cond_or_uncond"] = [0]
    return network(
        x, torch.full((len(x),), 700.0), context, condition=condition, transformer_options=options
    )


def attend_with_masked_keys(attention, keep):
    """The host's attention as it is defined: all tokens ask, those skipped cannot be looked at.

    Text is the mean of what it sees in the windows that keep a token. Of several samples, the
    host's 3B lets all look at the queries and keys of the first one's text.
    """

    def rotated(q, k, text_q, text_k, shape):
        if attention.version_7b:
            return *attention.rope(q, k, shape, seedvr.Cache(disable=True)), text_q, text_k
        texts = torch.tensor([[len(text_q)]])
        return attention.rope(q, k, shape, text_q, text_k, texts, seedvr.Cache(disable=True))

    def forward(vid, txt, vid_shape, txt_shape, cache):
        packed = attention.proj_qkv(vid, txt)
        vid, txt = (x.unflatten(1, (3, attention.heads, -1)).unbind(1) for x in packed)
        q, text_q = attention.norm_q(vid[0], txt[0])
        k, text_k = attention.norm_k(vid[1], txt[1])
        out, texts = torch.zeros_like(vid[2]), []
        for sample, (size, length) in enumerate(
            zip(vid_shape.tolist(), txt_shape[:, 0].tolist(), strict=True)
        ):
            number = torch.arange(keep.numel()).view(size) + sample * keep.numel()
            said = slice(sample * length, (sample + 1) * length)
            turned = said if attention.version_7b else slice(0, length)
            seen = []
            for cut in attention.window_op(size, attention.window):
                here, kept = number[cut].flatten(), keep[cut].flatten()
                if not kept.any():
                    continue
                parts = (q[here], k[here], text_q[turned].clone(), text_k[turned].clone())
                a, b, c, d = rotated(*parts, torch.tensor([number[cut].shape]))
                values = torch.cat([vid[2][here], txt[2][said]])
                scores = torch.einsum("ihd,jhd->hij", torch.cat([a, c]), torch.cat([b, d]))
                visible = torch.cat([kept, torch.ones(length, dtype=torch.bool)])
                scores = (scores * attention.head_dim**-0.5).masked_fill(~visible, -torch.inf)
                found = torch.einsum("hij,jhd->ihd", scores.softmax(-1), values)
                out[here] = found[: len(here)]
                seen.append(found[len(here) :])
            texts.append(torch.stack(seen).mean(dim=0))
        return attention.proj_out(out.flatten(1), torch.cat(texts).flatten(1))

    return forward


@contextmanager
def masked_keys(model, keep):
    """All blocks of a model with the attention above."""
    blocks = model.model.diffusion_model.blocks
    for block in blocks:
        block.attn.forward = attend_with_masked_keys(block.attn, keep)
    try:
        yield model
    finally:
        for block in blocks:
            del block.attn.forward


def cells(mask):
    """[T, H, W] bool: the latent cells that are refined."""
    return weight(mask.tokens, (1, 2, 2)) > 0


def phases(network, keep=None):
    """Windows of every block, those that keep a token where a mask is given."""
    for block in network.blocks:
        cuts = block.attn.window_op(GRID, block.attn.window)
        yield [cut for cut in cuts if keep is None or keep[cut].any()]


def ksampler(model, latent=START, conditioning=None, cfg=1.0, steps=2, **options):
    positive, negative = conditioning or conditioned(model, latent)
    return nodes.common_ksampler(
        model, 3, steps, cfg, "euler", "simple", positive, negative, {"samples": latent, **options}
    )[0]["samples"]


def refusal(run):
    try:
        run()
    except ValueError as error:
        return str(error)
    return ""


def report(cases, anywhere=()):
    """As `inside.report`; on a host without SeedVR2 only the cases that hold anywhere are run."""

    def nothing():
        pass

    held = {
        name: case if seedvr is not None or name in anywhere else nothing
        for name, case in cases.items()
        if name.startswith("case_")
    }
    inside.report(RESULTS, held)
