"""Graphs for the host tests in API form: the shipped ones made tiny, and others written here."""

TINY = {
    "wan2.1_t2v_1.3B_fp16": "tiny_wan_t2v",
    "wan_2.1_vae": "tiny_wan_vae",
    "wan2.2_t2v_high_noise_14B_fp8_scaled": "tiny_wan_high_noise",
    "wan2.2_t2v_low_noise_14B_fp8_scaled": "tiny_wan_low_noise",
    "wan2.2_i2v_high_noise_14B_fp8_scaled": "tiny_wan22_i2v",
    "wan2.2_i2v_low_noise_14B_fp8_scaled": "tiny_wan22_i2v_low_noise",
    "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise": "tiny_wan_lora_high_noise",
    "wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise": "tiny_wan_lora_low_noise",
    "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise": "tiny_wan_lora_low_noise",
    "wan2.1-1.3b-control-lora-tile-v1.1_comfy": "tiny_wan_control_lora",
    "wan2.2_ti2v_5B_fp16": "tiny_wan22_5b",
    "wan2.2_vae": "tiny_wan22_vae",
    "hunyuanvideo1.5_720p_t2v_fp16": "tiny_hunyuan15",
    "hunyuanvideo1.5_720p_i2v_fp16": "tiny_hunyuan15",
    "hunyuanvideo1.5_1080p_sr_distilled_fp16": "tiny_hunyuan15_sr",
    "hunyuanvideo15_latent_upsampler_1080p": "tiny_hunyuan15_upsampler",
    "hunyuanvideo15_vae_fp16": "tiny_hunyuan15_vae",
    "minimax_h3_fl2va_pruned_int8_convrot": "tiny_minimax_h3_pruned",
    "minimax_h3_fl2v_turbo_8step_v1.0_comfyui_bf16": "tiny_minimax_lora",
    "minimax_h3_video_vae_fp16": "tiny_minimax_video_vae",
    "minimax_h3_audio_vae_fp32": "tiny_minimax_audio_vae",
    "ltx-2.3-22b-dev-fp8": "tiny_ltx23",
    "ltx_2.3_22b_distilled_1.1_lora_dynamic_fro09_avg_rank_111_bf16": "tiny_ltx_lora",
    "ltx-2.3-spatial-upscaler-x2-1.1": "tiny_ltx_upsampler",
    "ltx-2.5-22b-distilled-transformer-comfy-int8-convrot": "tiny_ltx25",
    "ltx-2.5-video-vae-bf16": "tiny_ltx_video_vae",
    "ltx-2.5-audio-vae-bf16": "tiny_ltx_audio_vae",
    "ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0": "tiny_ltx_upsampler",
    "seedvr2_3b_int8_convrot": "tiny_seedvr2_3b",
    "seedvr2_ema_vae_fp16": "tiny_seedvr2_vae",
}
"""Names of files, without .safetensors."""
LIGHT_VAES = {"tiny_wan22_vae.safetensors", "tiny_hunyuan15_vae.safetensors"}
FILE_NAMES = ("ckpt_name", "unet_name", "vae_name", "lora_name", "model_name")
TEXT_LOADERS = ("CLIPLoader", "DualCLIPLoader", "CLIPVisionLoader", "LTXAVTextEncoderLoader")
WIDTH, HEIGHT, FRAMES = 96, 64, 9
TEXT = {"wan": {"width": 4096, "pooled_width": 0}, "hunyuan": {"width": 64, "pooled_width": 768}}
GUIDED = ("model", "model_low", "positive", "negative", "switch_step", "cfg", "cfg_low", "handover")
# Widgets that decide how long a graph runs, by node.
SIZE = {"width": WIDTH, "height": HEIGHT, "length": FRAMES}
SMALL = {
    "EmptyHunyuanLatentVideo": SIZE,
    "EmptyHunyuanVideo15Latent": SIZE,
    "SurfImageToVideo": SIZE | {"target_resolution": "by scale", "target_scale": 4.0},
    "Wan22ImageToVideoLatent": SIZE | {"width": 2 * WIDTH, "height": 2 * HEIGHT},
    "SurfReshiftKSampler": {"steps": 4, "switch_step": 2},
    "SurfRefiner": {"resolution": "by scale", "scale": 4.0, "steps": 2, "window": 2},
    "HunyuanVideo15LatentUpscaleWithModel": {"width": 2 * WIDTH, "height": 2 * HEIGHT},
    "MiniMaxH3ImageToVideo": {"width": 128, "height": 64, "length": 22},
    "SurfReshiftAnyGuider": {"switch_step": 2},
    "EmptyLTXVLatentVideo": SIZE | {"length": 17},
    "LTXVEmptyLatentAudio": {"frames_number": 17},
}


FIRST_SIZE = [kind for kind, inputs in SMALL.items() if "length" in inputs]
"""Nodes that say how large the first steps are."""


def shrink(prompt):
    """Put tiny checkpoints and sizes in place of real ones, test nodes for the encoders."""
    family = "hunyuan" if any("hunyuan" in str(n["inputs"]) for n in prompt.values()) else "wan"
    small = {}
    for number, node in prompt.items():
        kind, inputs = node["class_type"], dict(node["inputs"])
        if kind == "CLIPLoader" and inputs["type"] == "minimax":
            kind, inputs = "RandomMiniMaxClip", {}
        if kind in TEXT_LOADERS:
            continue
        if kind == "CLIPTextEncode" and "ltx-2" in str(prompt):
            # The text encoder of 2.5 gives the widths of video and audio, side by side.
            width = 96 if "ltx-2.5" in str(prompt) else 48
            kind, inputs = "RandomLtxConditioning", {"seed": int(number), "width": width}
        if kind == "CLIPTextEncode":
            kind, inputs = "RandomConditioning", {"seed": int(number), **TEXT[family]}
        if kind == "CLIPVisionEncode":
            kind, inputs = "RandomClipVision", {"image": inputs["image"], "width": 1152}
        for name in FILE_NAMES:
            if name in inputs:
                inputs[name] = TINY[inputs[name].removesuffix(".safetensors")] + ".safetensors"
        if inputs.get("vae_name") in LIGHT_VAES:
            kind = "LightVAELoader"
        if inputs.get("vae_name", "").startswith("tiny_minimax"):
            kind = "SmallMiniMaxVAELoader"
        if "tiny_seedvr2" in str(inputs.get("unet_name")) + str(inputs.get("vae_name")):
            kind = {"UNETLoader": "SmallSeedVR2Loader", "VAELoader": "SmallSeedVR2VAELoader"}[kind]
        if kind == "ImageScale" and inputs["width"] == 0:
            # Keeps the picture's shape: twice the first size, in place of 1080p.
            inputs["height"] = 2 * HEIGHT
        small[number] = {"class_type": kind, "inputs": inputs | SMALL.get(kind, {})}
        if kind == "SurfRefiner" and "ltx-2" in str(prompt):
            # Their own upsampler has doubled the preview before.
            small[number]["inputs"]["scale"] = 2.0 if inputs["resolution"] == "2160p" else 1.0
    return small


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def start(model):
    """Loaders and conditioning of a Wan graph."""
    return {
        "model": node("UNETLoader", unet_name=f"{model}.safetensors", weight_dtype="default"),
        "vae": node("VAELoader", vae_name="tiny_wan_vae.safetensors"),
        "positive": node("RandomConditioning", seed=1, **TEXT["wan"]),
        "negative": node("RandomConditioning", seed=2, **TEXT["wan"]),
        "image": node("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=FRAMES, color=0x336699),
    }


def finish(graph, source, trim=None, **more):
    """Preview, refine and save; `source` is the node that gives both prompts and the latent."""
    prompts = {"positive": [source, 0], "negative": [source, 1]}
    latent = [source, 2]
    if source == "empty":
        prompts, latent = {"positive": ["positive", 0], "negative": ["negative", 0]}, [source, 0]
    graph["preview"] = node(
        "SurfReshiftKSampler",
        model=["model", 0],
        **prompts,
        latent_image=latent,
        seed=2**64 - 1,
        steps=4,
        switch_step=2,
        cfg=3.0,
        cfg_low=2.0,
        shift=3.0,
        shift_low=3.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
        low_resolution="by scale",
        low_scale=0.5,
        low_width=16,
        low_height=16,
        sigma_policy="same",
        noise_policy="inherited",
        handover="evaluate",
        **more,
    )
    graph["refined"] = node(
        "SurfRefiner",
        model=more.get("model_low", ["model", 0]),
        **prompts,
        latent=["preview", 0],
        seed=7,
        resolution="by size",
        scale=2.0,
        width=WIDTH,
        height=HEIGHT,
        upsample="pixel",
        sigma_start=0.6,
        steps=2,
        cfg=2.0,
        window=2,
        low_band_lock=0.5,
        colour_match=True,
        vae=["vae", 0],
    )
    final = ["refined", 0]
    if trim:
        graph["trimmed"] = node("TrimVideoLatent", samples=final, trim_amount=trim)
        final = ["trimmed", 0]
    graph["frames"] = node("VAEDecode", samples=final, vae=["vae", 0])
    graph["video"] = node("CreateVideo", images=["frames", 0], fps=16.0)
    graph["saved"] = node(
        "SaveVideo", video=["video", 0], filename_prefix="video/api", format="mp4", codec="h264"
    )
    return graph


def image_to_video():
    """Wan 2.1 I2V: the first frame comes as a latent bound to the resolution."""
    graph = start("tiny_wan_i2v")
    graph["made"] = node(
        "WanImageToVideo",
        positive=["positive", 0],
        negative=["negative", 0],
        vae=["vae", 0],
        width=WIDTH,
        height=HEIGHT,
        length=FRAMES,
        batch_size=1,
        start_image=["image", 0],
    )
    return finish(graph, "made")


def wan_22_pair():
    """Wan 2.2: the high-noise model before the switch, the low-noise one after it."""
    graph = start("tiny_wan_high_noise")
    del graph["image"]
    graph["low"] = node(
        "UNETLoader", unet_name="tiny_wan_low_noise.safetensors", weight_dtype="default"
    )
    graph["empty"] = node(
        "EmptyHunyuanLatentVideo", width=WIDTH, height=HEIGHT, length=FRAMES, batch_size=1
    )
    return finish(graph, "empty", model_low=["low", 0])


def vace():
    """Wan VACE: control frames, and a reference image that becomes one more latent frame."""
    graph = start("tiny_wan_vace")
    graph["reference"] = node("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=1, color=0x99)
    graph["made"] = node(
        "WanVaceToVideo",
        positive=["positive", 0],
        negative=["negative", 0],
        vae=["vae", 0],
        width=WIDTH,
        height=HEIGHT,
        length=FRAMES,
        batch_size=1,
        strength=1.0,
        control_video=["image", 0],
        reference_image=["reference", 0],
    )
    return finish(graph, "made", trim=1)


def custom_sampler():
    """SamplerCustomAdvanced with Surf Reshift Guider; its result refined, then made smaller."""
    graph = wan_22_pair()
    guided = {
        name: value
        for name, value in graph.pop("preview")["inputs"].items()
        if name.startswith("low_") or name.endswith("_policy") or name in GUIDED
    }
    graph["noise"] = node("RandomNoise", noise_seed=3)
    graph["euler"] = node("KSamplerSelect", sampler_name="euler")
    graph["sigmas"] = node(
        "BasicScheduler", model=["model", 0], scheduler="simple", steps=4, denoise=1.0
    )
    graph["guider"] = node("SurfReshiftGuider", **guided)
    graph["preview"] = node(
        "SamplerCustomAdvanced",
        noise=["noise", 0],
        guider=["guider", 0],
        sampler=["euler", 0],
        sigmas=["sigmas", 0],
        latent_image=["empty", 0],
    )
    graph["refined"]["inputs"] |= {"width": 2 * WIDTH, "height": 2 * HEIGHT, "upsample": "latent"}
    graph["smaller"] = node(
        "SurfLatentDownscale",
        samples=["refined", 0],
        resolution="by scale",
        scale=0.5,
        width=16,
        height=16,
        method="auto",
    )
    graph["frames"]["inputs"]["samples"] = ["smaller", 0]
    return graph


WRITTEN = {
    "Wan 2.1 I2V": image_to_video,
    "Wan 2.2 pair": wan_22_pair,
    "Wan VACE": vace,
    "custom sampler": custom_sampler,
}
