"""Graphs for the host tests in API form: the shipped ones made tiny, and others written here."""

TINY = {
    "wan2.1_t2v_14B_fp8_scaled.safetensors": "tiny_wan_t2v.safetensors",
    "wan2.1_t2v_1.3B_fp16.safetensors": "tiny_wan_low_noise.safetensors",
    "wan_2.1_vae.safetensors": "tiny_wan_vae.safetensors",
    "hunyuan_video_t2v_720p_bf16.safetensors": "tiny_hunyuan.safetensors",
    "hunyuan_video_vae_bf16.safetensors": "tiny_hunyuan_vae.safetensors",
    "surf_refiner.safetensors": "tiny_surf_refiner.safetensors",
}
WIDTH, HEIGHT, FRAMES = 96, 64, 9
TEXT = {"wan": {"width": 4096, "pooled_width": 0}, "hunyuan": {"width": 64, "pooled_width": 768}}
GUIDED = ("model", "model_low", "positive", "negative", "switch_step", "cfg", "cfg_low", "handover")
# Widgets that decide how long a graph runs, by node.
SMALL = {
    "EmptyHunyuanLatentVideo": {"width": WIDTH, "height": HEIGHT, "length": FRAMES},
    "SurfReshiftKSampler": {"steps": 4, "switch_step": 2},
    "SurfRefiner": {
        "resolution": "by size",
        "width": 2 * WIDTH,
        "height": 2 * HEIGHT,
        "steps": 2,
        "window": 2,
    },
}


def shrink(prompt):
    """Put tiny checkpoints and sizes in place of real ones, a test node for the text encoder."""
    family = "hunyuan" if any("hunyuan" in str(n["inputs"]) for n in prompt.values()) else "wan"
    small = {}
    for number, node in prompt.items():
        kind, inputs = node["class_type"], dict(node["inputs"])
        if kind in ("CLIPLoader", "DualCLIPLoader"):
            continue
        if kind == "CLIPTextEncode":
            kind, inputs = "RandomConditioning", {"seed": int(number), **TEXT[family]}
        for name in ("unet_name", "vae_name", "refiner_name"):
            if name in inputs:
                inputs[name] = TINY[inputs[name]]
        small[number] = {"class_type": kind, "inputs": inputs | SMALL.get(kind, {})}
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
    """SamplerCustomAdvanced with the Reshift Guider; its result is refined, then made smaller."""
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
