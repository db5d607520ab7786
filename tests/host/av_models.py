"""Tiny random MiniMax H3 and LTX-2.x checkpoints, and latents and prompts that fit them.

Built from the host's own classes and loaded by `comfy.sd.load_diffusion_model` from a file, as a
user's are. They hold video and audio; hosts before 0.33 have no MiniMax H3. Inside the host, and
imported before `inside.enter`, which takes this folder off the path:

    import av_models
    model = av_models.load("tiny_minimax_h3", folder)
    latent = av_models.latent("tiny_minimax_h3", frames=22, rows=6, columns=10)
    positive = av_models.prompt("tiny_minimax_h3", seed=1)

Dims: T latent frames, A audio latents, H, W latent cells, L text tokens.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import checkpoints
import torch
from inside import HostLacks

TEXT = 48
"""Width of a text token before either model."""
H3 = {
    "hidden_size": 64, "num_layers": 2, "token_refiner_num_layers": 1, "num_attention_heads": 2,
    "attention_head_dim": 32, "ffn_hidden_size": 96, "text_dim": TEXT, "timestep_input_dim": 32,
    "time_embed_hidden_size": 64, "time_embed_dim": 32, "rope_inv_freq_len": 4,
}  # fmt: skip
CURVES = {"time_embed_dim": 8, "adaln_curve_grid": 17}
"""The form in which MiniMax H3 is published "pruned": a table in place of the time embedder."""
LTX = {
    "num_attention_heads": 2, "attention_head_dim": 32, "cross_attention_dim": 64,
    "audio_num_attention_heads": 2, "audio_attention_head_dim": 16,
    "audio_cross_attention_dim": 32, "caption_channels": TEXT, "num_layers": 2,
    "connector_num_layers": 1, "connector_num_attention_heads": 2,
    "connector_attention_head_dim": 32, "audio_connector_num_attention_heads": 2,
    "audio_connector_attention_head_dim": 16, "connector_apply_gated_attention": True,
    "apply_gated_attention": True, "caption_proj_before_connector": True,
    "cross_attention_adaln": True, "rope_type": "split", "use_middle_indices_grid": True,
    "causal_temporal_positioning": True, "av_ca_timestep_scale_multiplier": 1000.0,
    "frequencies_precision": "float64",
}  # fmt: skip
LTX_25 = LTX | {
    "ff_bias": False, "caption_projection_first_linear": False,
    "use_keyframes_abs_pos_embedding": True,
}  # fmt: skip
KINDS = {
    "tiny_minimax_h3": H3, "tiny_minimax_h3_pruned": H3 | CURVES, "tiny_ltx23": LTX,
    "tiny_ltx25": LTX_25,
}  # fmt: skip
"""Name -> arguments of the host's class."""
IMAGE_TAGS = "minimax_token_tags"


def check_known():
    """Let a case count as not run on a host without these models."""
    if importlib.util.find_spec("comfy.ldm.minimax") is None:
        raise HostLacks("MiniMax H3 and LTX-2.3: use 0.33 or later")


def is_h3(name):
    return "minimax" in name


def network(name):
    """Build the host's network of one of KINDS, in fp32, with weights."""
    check_known()
    import comfy.ops

    made = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32, "device": "cpu"}
    if is_h3(name):
        from comfy.ldm.minimax.model import MiniMaxH3Model as Network
    else:
        from comfy.ldm.lightricks.av_model import LTXAVModel as Network
    module = Network(**KINDS[name], **made)
    module.load_state_dict(weights(name, module))
    return module


def weights(name, module):
    """Draw weights of a sane size, and fill the tables that hold no noise."""
    state = checkpoints.randomise(module, 400 + list(KINDS).index(name))
    for key, value in state.items():
        if key == "rope.inv_freq":
            state[key] = 10000.0 ** -(torch.arange(len(value)) / len(value))
        elif key.endswith("adaln_t_table"):
            grid = torch.linspace(0, 1, len(value))[:, None]
            state[key] = torch.cos(3 * grid * torch.arange(1, value.shape[1] + 1))
        elif "scale_shift_table" in key:
            state[key] = 0.1 * value
    return state


def write(name, folder):
    """Write a checkpoint into a folder; the file has the name of its kind.

    Returns:
        Its path. LTX-2.x says its sizes in the file's metadata, MiniMax H3 in its shapes.
    """
    from safetensors.torch import save_file

    path = Path(folder) / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {} if is_h3(name) else {"config": json.dumps({"transformer": KINDS[name]})}
    state = {key: value.contiguous() for key, value in network(name).state_dict().items()}
    save_file(state, path, metadata=said)
    return path


def load(name, folder):
    """Write a checkpoint and load it as the host's own loader node does: a MODEL."""
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(write(name, folder)))


def latent(name, frames=22, rows=6, columns=10, seed=None):
    """Make a LATENT of video and audio.

    Args:
        frames: pixel frames: 17 k + 5 for MiniMax H3, 8 k + 1 for LTX-2.x.
        rows, columns: latent cells of the video.
        seed: of its contents; None: zeros, as the host's empty latents are.

    Returns:
        {"samples": NestedTensor}: video [1, 24, T, H, W] and audio [1, 32, 2, A], or
        [1, 128, T, H, W] and [1, 8, A, 16].
    """
    from comfy.nested_tensor import NestedTensor

    if is_h3(name):
        assert frames % 17 == 5
        shapes = (1, 24, frames // 17 * 5 + 2, rows, columns), (1, 32, 2, round(frames / 24 * 40))
    else:
        assert frames % 8 == 1
        shapes = (1, 128, frames // 8 + 1, rows, columns), (1, 8, frames, 16)
    if seed is None:
        return {"samples": NestedTensor([torch.zeros(shape) for shape in shapes])}
    generator = torch.Generator().manual_seed(seed)
    return {"samples": NestedTensor([torch.randn(s, generator=generator) for s in shapes])}


def prompt(name, seed=1, tokens=7, **options):
    """Make a CONDITIONING as the text encoder does: [[[1, L, D], options]]."""
    text = torch.randn(1, tokens, TEXT, generator=torch.Generator().manual_seed(seed))
    if is_h3(name):
        return [[text, {IMAGE_TAGS: torch.ones(tokens, dtype=torch.long), **options}]]
    if "caption_projection_first_linear" in KINDS[name]:
        # The text encoder of 2.5 projects to both widths, side by side.
        sides = LTX["cross_attention_dim"] + LTX["audio_cross_attention_dim"]
        text = torch.randn(1, tokens, sides, generator=torch.Generator().manual_seed(seed))
    return [[text, {"frame_rate": 25.0, "unprocessed_ltxav_embeds": True, **options}]]


def keyframe(index, rows=6, columns=10, frames=1, sound=0, seed=3):
    """Make one entry of MiniMax H3's `minimax_keyframes`: a picture, a clip or sound.

    Args:
        index: pixel frame that it stands at.
        frames: latent frames; 0 for sound alone.
        sound: audio latents.
    """
    generator = torch.Generator().manual_seed(seed)
    made = {"resolved_frame_index": index}
    if frames:
        made["latent"] = torch.randn(1, 24, frames, rows, columns, generator=generator)
    if sound:
        made["audio_latent"] = torch.randn(1, 32, 2, sound, generator=generator)
    return made


def lora(rank=4):
    """The state dict of a LoRA on the self-attention of the tiny MiniMax H3."""
    generator, width = torch.Generator().manual_seed(450), H3["hidden_size"]
    wide = 3 * H3["num_attention_heads"] * H3["attention_head_dim"]
    state = {}
    for layer in range(H3["num_layers"]):
        name = f"diffusion_model.blocks.{layer}.attn.qkv_proj"
        state[f"{name}.lora_down.weight"] = torch.randn(rank, width, generator=generator) * 0.1
        state[f"{name}.lora_up.weight"] = torch.randn(wide, rank, generator=generator) * 0.1
        state[f"{name}.alpha"] = torch.tensor(float(rank))
    return state


def vaes():
    """The state dicts of thin autoencoders of MiniMax H3: {name: state}."""
    import comfy.ops
    from stand_ins import small_minimax_vaes

    with small_minimax_vaes() as (video, audio):
        made = {
            "tiny_minimax_video_vae": video.MiniMaxH3VideoVAE(
                operations=comfy.ops.disable_weight_init
            ),
            "tiny_minimax_audio_vae": audio.MiniMaxH3AudioVAE(),
        }
    states = {name: drawn(module, 460 + n) for n, (name, module) in enumerate(made.items())}
    sound = states["tiny_minimax_audio_vae"]
    sound["latents_mean"] = torch.zeros_like(sound["latents_mean"])
    sound["latents_std"] = torch.ones_like(sound["latents_std"])
    for key in [key for key in sound if key.endswith("zero_k_bias")]:
        sound[key] = torch.zeros_like(sound[key])
    return states


def drawn(module, seed):
    """Draw the parameters of a module; its tables and filters stay."""
    parameters = SimpleNamespace(state_dict=lambda: dict(module.named_parameters()))
    return module.state_dict() | checkpoints.randomise(parameters, seed)


def write_all(models):
    """Write what the workflows need, below a folder laid out like the host's `models`."""
    from safetensors.torch import save_file

    write("tiny_minimax_h3_pruned", models / "diffusion_models")
    made = {models / "loras" / "tiny_minimax_lora.safetensors": lora()}
    for name, state in vaes().items():
        made[models / "vae" / f"{name}.safetensors"] = state
    for path, state in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in state.items()}, path)


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    checkpoints.start_host(Path.cwd())
    if importlib.util.find_spec("comfy.ldm.minimax") is not None:
        write_all(target)
