"""A node pack for the host tests, in place of encoders of many gigabytes: random conditioning.

Copied to custom_nodes; the host reads NODE_CLASS_MAPPINGS.
"""

import contextlib
import functools
from unittest import mock

import comfy.clip_vision
import torch

import nodes


class RandomConditioning:
    """Emits what a text encoder would, of the width that the model asks for."""

    CATEGORY = "testing"
    FUNCTION = "make"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        number = ("INT", {"default": 0, "min": 0, "max": 65536})
        return {"required": {"seed": number, "width": number, "pooled_width": number}}

    def make(self, seed, width, pooled_width):
        generator = torch.Generator().manual_seed(seed)
        extra = {}
        if pooled_width:
            extra["pooled_output"] = torch.randn(1, pooled_width, generator=generator)
        return ([[torch.randn(1, 8, width, generator=generator), extra]],)


class RandomLtxConditioning:
    """Emits what the text encoder of LTX-2.x would, of the width that the model asks for."""

    CATEGORY = "testing"
    FUNCTION = "make"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        number = ("INT", {"default": 0, "min": 0, "max": 65536})
        return {"required": {"seed": number, "width": number}}

    def make(self, seed, width):
        text = torch.randn(1, 7, width, generator=torch.Generator().manual_seed(seed))
        return ([[text, {"unprocessed_ltxav_embeds": True}]],)


class RandomT5Conditioning:
    """Emits what the text encoder of LTX-Video would: it says which tokens are text."""

    CATEGORY = "testing"
    FUNCTION = "make"
    RETURN_TYPES = ("CONDITIONING",)
    INPUT_TYPES = RandomLtxConditioning.INPUT_TYPES

    def make(self, seed, width):
        text = torch.randn(1, 8, width, generator=torch.Generator().manual_seed(seed))
        return ([[text, {"attention_mask": torch.ones(1, 8, dtype=torch.long)}]],)


class RandomClipVision:
    """Emits what the vision encoder of HunyuanVideo 1.5 would, of four tokens."""

    CATEGORY = "testing"
    FUNCTION = "make"
    RETURN_TYPES = ("CLIP_VISION_OUTPUT",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"image": ("IMAGE",), "width": ("INT", {"min": 1, "max": 65536})}}

    def make(self, image, width):
        out = comfy.clip_vision.Output()
        generator = torch.Generator().manual_seed(len(image))
        out.last_hidden_state = torch.randn(1, 4, width, generator=generator)
        return (out,)


class LightVAELoader(nodes.VAELoader):
    """Loads a tiny autoencoder of 32 or 48 channels, and lets it encode in ComfyUI 0.8.0, too.

    That version only decodes with them: it refuses pictures, and would unshuffle time for rows.
    """

    CATEGORY = "testing"

    def load_vae(self, vae_name):
        (vae,) = super().load_vae(vae_name)
        try:
            vae.process_input(torch.zeros(1, 3, 1, 16, 16))
        except NotImplementedError:
            network = vae.first_stage_model
            encode, patch = network.encode, network.patch_size
            signed = vae.latent_channels == 32
            vae.process_input = lambda image: image * 2 - 1 if signed else image

            def unshuffled(x):
                x = torch.nn.functional.pixel_unshuffle(x.movedim(2, 1), patch).movedim(1, 2)
                network.patch_size = 1
                out = encode(x)
                network.patch_size = patch
                return out

            network.encode = unshuffled
        return (vae,)


class RandomMiniMaxClip:
    """Emits a text encoder for MiniMax H3's own node: random, 48 wide, whatever it is told."""

    CATEGORY = "testing"
    FUNCTION = "make"
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def make(self):
        return (self,)

    def tokenize(self, prompt, **_):
        return prompt

    def encode_from_tokens_scheduled(self, tokens):
        generator = torch.Generator().manual_seed(len(tokens))
        return [[torch.randn(1, 7, 48, generator=generator), {}]]


@contextlib.contextmanager
def small_minimax_vaes():
    """Let the host build MiniMax H3's autoencoders thin: their files do not say how wide."""
    import comfy.ldm.minimax.audio_vae as audio
    import comfy.ldm.minimax.vae as video

    thin = (
        (video, "ViT3DDecoder", {"num_layers": 1, "heads": 1, "dim_head": 64}),
        (video, "MiniMaxH3VideoVAE", {"ch": 32, "num_res_blocks": 1}),
        (audio, "MiniMaxH3AudioVAE", {"encoder_dim": 4, "latent_dim": 64, "decoder_dim": 256}),
    )
    with contextlib.ExitStack() as stack:
        for module, name, sizes in thin:
            made = functools.partial(getattr(module, name), **sizes)
            stack.enter_context(mock.patch.object(module, name, made))
        yield video, audio


class SmallMiniMaxVAELoader(nodes.VAELoader):
    """Loads a thin autoencoder of MiniMax H3, of video or of sound."""

    CATEGORY = "testing"

    def load_vae(self, vae_name):
        with small_minimax_vaes():
            return super().load_vae(vae_name)


class SmallSeedVR2Loader(nodes.UNETLoader):
    """Loads a thin SeedVR2 3B, whose file does not say how wide it is."""

    CATEGORY = "testing"

    def load_unet(self, unet_name, weight_dtype):
        import comfy.ldm.seedvr.model as seedvr

        kind, thin = seedvr.NaDiT, {"vid_dim": 48, "heads": 2, "head_dim": 16, "rope_dim": 12}
        with mock.patch.object(seedvr, "NaDiT", lambda **sizes: kind(**sizes | thin)):
            return super().load_unet(unet_name, weight_dtype)


class SmallSeedVR2VAELoader(nodes.VAELoader):
    """Loads a thin VAE of SeedVR2."""

    CATEGORY = "testing"

    def load_vae(self, vae_name):
        import comfy.ldm.seedvr.vae as vae

        with mock.patch.object(vae, "BYTEDANCE_BLOCK_OUT_CHANNELS", (32, 32, 32, 32)):
            return super().load_vae(vae_name)


NODE_CLASS_MAPPINGS = {
    "LightVAELoader": LightVAELoader,
    "RandomClipVision": RandomClipVision,
    "RandomConditioning": RandomConditioning,
    "RandomLtxConditioning": RandomLtxConditioning,
    "RandomMiniMaxClip": RandomMiniMaxClip,
    "RandomT5Conditioning": RandomT5Conditioning,
    "SmallMiniMaxVAELoader": SmallMiniMaxVAELoader,
    "SmallSeedVR2Loader": SmallSeedVR2Loader,
    "SmallSeedVR2VAELoader": SmallSeedVR2VAELoader,
}
