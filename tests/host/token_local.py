"""Make a network of the host compute every token by itself, so that tiles cannot change it.

Self-attention hands on each token's own value. What is left, norms, MLPs and cross-attention to the
prompt, sees no neighbour: a model of tiles then gives what it gives in one piece, but for rounding,
if each tile gets its own part of the video and of all that lies beside it.
"""

import torch


def token_local(model, has_sound=False):
    """Clone a MODEL whose tokens see themselves and the prompt alone.

    Args:
        has_sound: sound does not see the video either, which it would hand on from tile to tile.
    """

    def own(func, q, k, v, heads, *args, **kwargs):
        fewer = q.shape[-2] < k.shape[-2]
        if q.shape[-2] != k.shape[-2] and not (fewer and has_sound):
            return func(q, k, v, heads, *args, **kwargs)
        if not kwargs.get("skip_reshape"):
            v = v.unflatten(-1, (-1, q.shape[-1] // heads)).transpose(1, 2)
        v = v.repeat_interleave(heads // v.shape[1], 1)
        v = torch.zeros_like(v[..., : q.shape[-2], :]) if fewer else v
        return v if kwargs.get("skip_output_reshape") else v.transpose(1, 2).flatten(2)

    clone = model.clone()
    options = clone.model_options.get("transformer_options", {})
    options = {**options, "optimized_attention_override": own}
    clone.model_options = {**clone.model_options, "transformer_options": options}
    return clone
