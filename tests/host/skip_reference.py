"""Host networks on the tokens of a mask, beside the same on all tokens with the others masked out.

For the scripts beside it: importing it enters the host. The reference is the same network on all
tokens, whose self-attention has a mask that leaves the skipped ones out.
"""

import checkpoints
import inside
import torch
from inside import noise
from torch.nn import functional as F

RESULTS = inside.enter()

import comfy.ldm.hunyuan_video.model as hunyuan  # noqa: E402, F401
import comfy.ldm.wan.model as wan  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
from surf.nodes.host.attention.windows import OVERRIDE, with_windows  # noqa: E402
from surf.nodes.host.skip.cell_weights import cell_weights  # noqa: E402
from surf.nodes.host.skip.wrapper import with_mask  # noqa: E402
from surf.surf_core.skip import Mask  # noqa: E402
from surf.surf_core.window import segments  # noqa: E402

FRESH = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32, "device": "cpu"}
CPU, FLOAT32 = torch.device("cpu"), 2e-5
TIME = torch.tensor([500.0])
VIDEO, TEXT = noise(1, 16, 5, 6, 8), noise(1, 7, 32)
GRID = (5, 3, 4)


def network(kind=wan.WanModel, layers=3, **sizes):
    sizes = {**checkpoints.WAN, "num_layers": layers, "text_dim": 32, **sizes}
    module = kind(**sizes, **FRESH)
    module.load_state_dict(checkpoints.randomise(module, 0))
    return module.requires_grad_(False)


def patcher(module):
    """A MODEL around a bare network, for checks that call it without a sampler."""
    holder = torch.nn.Module()
    holder.diffusion_model = module
    holder.process_latent_in = lambda latent: latent
    return comfy.model_patcher.ModelPatcher(holder, CPU, CPU)


def some(grid=GRID, share=0.4, seed=3, empty=()):
    """A mask that keeps about a share of the tokens; all but those of some frames."""
    scores = torch.rand(grid, generator=torch.Generator().manual_seed(seed))
    scores[list(empty)] = 0
    return Mask(tokens=scores > 1 - share, scores=scores, source="test", tau=1.0)


def skipped(model, mask, video=VIDEO):
    upsampled = torch.zeros_like(video[:, :16])
    weights = cell_weights(mask, model, upsampled, 0)
    return model if weights is None else with_mask(model, upsampled, weights)


def call(model, *args, **kwargs):
    options = {**model.model_options.get("transformer_options", {}), "wrappers": model.wrappers}
    return model.model.diffusion_model(*args, transformer_options=options, **kwargs)


def seen_by(keep, window, before=0, after=0):
    """What each token attends to, in an even and in an odd block: [L, L] each.

    Tokens before and after the video attend to all that are kept, and all attend to them.
    """
    frames, frame = len(keep), keep[0].numel()
    length = before + frames * frame + after
    kept = torch.ones(length, dtype=torch.bool)
    kept[before : before + frames * frame] = keep.flatten()
    allowed = []
    for shifted in (False, True):
        home = torch.full((length,), -1)
        for number, (start, stop) in enumerate(segments(frames, window, shifted)):
            home[before + start * frame : before + stop * frame] = number
        allowed.append(((home[:, None] == home) | (home[:, None] < 0) | (home < 0)) & kept)
    return allowed


def overridden(model, override):
    clone = model.clone()
    clone.model_options["transformer_options"][OVERRIDE] = override
    return clone


def dense(model, keep, window, before=0, after=0):
    """A clone that runs all tokens, and whose blocks attend to kept ones of their window only."""
    allowed, last = seen_by(keep, window, before, after), {"block": None}

    def override(func, q, k, v, heads, mask=None, **kwargs):
        block = kwargs["transformer_options"]["block_index"]
        # A block attends to itself first, then to the text.
        first, last["block"] = block != last["block"], block
        if not first:
            return func(q, k, v, heads, mask=mask, **kwargs)
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed[block % 2])
        return out.transpose(1, 2).flatten(-2)

    return overridden(model, override)


def cells(keep, size):
    return keep.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, : size[0], : size[1]]


def agree(model, mask, *args, window=0, before=0, after=0, **kwargs):
    """The network on kept tokens equals the dense one with the others masked out."""
    clone = skipped(with_windows(model, window), mask, args[0])
    got = call(clone, *args, **kwargs)
    expected = call(dense(model, mask.tokens, window, before, after), *args, **kwargs)
    where = cells(mask.tokens, got.shape[-2:]).expand_as(got)
    assert got.isfinite().all()
    torch.testing.assert_close(got[where], expected[where], rtol=0, atol=FLOAT32)
    plain = call(with_windows(model, window), *args, **kwargs)
    assert (plain - expected)[where].abs().max() > 1e-3, "the mask makes no difference"
    return got
