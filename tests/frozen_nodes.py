"""What saved workflows know of every node: its inputs in order, how each is set, its outputs.

A line an input, written by hand: whoever changes a node changes its line here in the same commit.
Before 0.1.0 lines may go; afterwards they may only be added, at the end.
"""

HOST = object()
"""Ends a list of options that the host continues: its samplers, its schedulers, its files."""
SMALLER = ["by scale", "240p", "480p", "720p", "by size"]
LARGER = ["1080p", "720p", "by scale", "by size", "1440p", "2160p"]
DTYPES = ["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]
METHODS = ["auto", "bilinear", "area", "bicubic"]
TINY_PROMPT = (
    "red ball moving right in the northwest, four blue beads moving up in the southeast, on sand"
)
KERNELS = ["host", "sdpa", "flash_varlen", "torch_varlen", "triton"]


def socket(kind, **more):
    """An input that only a link fills."""
    return {"type": kind, **more}


def widget(kind, default=None, **more):
    """An input that the node itself shows."""
    return {"type": kind, **({} if default is None else {"default": default}), **more}


POLICIES = {
    "sigma_policy": widget(
        "COMBO", "snr_equal", options=["same", "snr_equal"], advanced=True, optional=True
    ),
    "noise_policy": widget(
        "COMBO", "inherited", options=["fresh", "inherited"], advanced=True, optional=True
    ),
    "handover": widget(
        "COMBO", "reuse", options=["reuse", "evaluate"], advanced=True, optional=True
    ),
}
"""How the steps after a switch take over, in every node that has one."""
AFTER_SWITCH = {
    "low_band_lock": widget(
        "FLOAT", 0.0, min=0.0, max=1.0, step=0.05, optional=True, advanced=True
    ),
    "switch_sigma": widget("FLOAT", 0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True),
    "rope_scale_low": widget(
        "FLOAT", 1.0, min=1.0, max=4.0, step=0.05, optional=True, advanced=True
    ),
}
"""What they hold of it; the ladder has the first alone."""
INPUTS = {
    "SurfReshiftKSampler": {
        "model": socket("MODEL"),
        "positive": socket("CONDITIONING"),
        "negative": socket("CONDITIONING"),
        "latent_image": socket("LATENT"),
        "seed": widget("INT", 0, min=0, max=2**64 - 1, control_after_generate=True),
        "steps": widget("INT", 40, min=1, max=10000),
        "switch_step": widget("INT", 10, min=0, max=10000),
        "cfg": widget("FLOAT", 7.5, min=0.0, max=100.0, step=0.1, round=0.01),
        "cfg_low": widget("FLOAT", 5.0, min=0.0, max=100.0, step=0.1, round=0.01),
        "shift": widget("FLOAT", 3.0, min=0.0, max=100.0, step=0.01),
        "shift_low": widget("FLOAT", 3.0, min=0.0, max=100.0, step=0.01),
        "sampler_name": widget("COMBO", "euler", options=[HOST]),
        "scheduler": widget("COMBO", "simple", options=[HOST]),
        "low_resolution": widget("COMBO", "by scale", options=SMALLER),
        "low_scale": widget("FLOAT", 0.5, min=0.1, max=1.0, step=0.05),
        "model_low": socket("MODEL", optional=True),
        "model_low_noise": socket("MODEL", optional=True),
        "expert_boundary": widget("FLOAT", 0.0, min=0.0, max=1.0, step=0.005, optional=True),
        "steps_low": widget("INT", 0, min=0, max=10000, optional=True),
        "low_width": widget("INT", 416, min=16, max=8192, step=16, advanced=True, optional=True),
        "low_height": widget("INT", 240, min=16, max=8192, step=16, advanced=True, optional=True),
        "denoise": widget("FLOAT", 1.0, min=0.01, max=1.0, step=0.01, optional=True, advanced=True),
        **POLICIES,
        "cfg_low_noise": widget(
            "FLOAT", 0.0, min=0.0, max=100.0, step=0.1, round=0.01, optional=True, advanced=True
        ),
        "sampler_low": widget(
            "COMBO", "same", options=["same", HOST], optional=True, advanced=True
        ),
        "scheduler_low": widget(
            "COMBO", "same", options=["same", HOST], optional=True, advanced=True
        ),
        "positive_low": socket("CONDITIONING", optional=True),
        "negative_low": socket("CONDITIONING", optional=True),
        **AFTER_SWITCH,
    },
    "SurfReshiftGuider": {
        "model": socket("MODEL"),
        "positive": socket("CONDITIONING"),
        "negative": socket("CONDITIONING"),
        "switch_step": widget("INT", 10, min=0, max=10000),
        "cfg": widget("FLOAT", 7.5, min=0.0, max=100.0, step=0.1, round=0.01),
        "cfg_low": widget("FLOAT", 5.0, min=0.0, max=100.0, step=0.1, round=0.01),
        "low_resolution": widget("COMBO", "by scale", options=SMALLER),
        "low_scale": widget("FLOAT", 0.5, min=0.1, max=1.0, step=0.05),
        "model_low": socket("MODEL", optional=True),
        "model_low_noise": socket("MODEL", optional=True),
        "expert_boundary": widget("FLOAT", 0.0, min=0.0, max=1.0, step=0.005, optional=True),
        "steps_low": widget("INT", 0, min=0, max=10000, optional=True),
        "low_width": widget("INT", 416, min=16, max=8192, step=16, advanced=True, optional=True),
        "low_height": widget("INT", 240, min=16, max=8192, step=16, advanced=True, optional=True),
        **POLICIES,
        "cfg_low_noise": widget(
            "FLOAT", 0.0, min=0.0, max=100.0, step=0.1, round=0.01, optional=True, advanced=True
        ),
        "positive_low": socket("CONDITIONING", optional=True),
        "negative_low": socket("CONDITIONING", optional=True),
        **AFTER_SWITCH,
    },
    "SurfReshiftAnyGuider": {
        "guider": socket("GUIDER"),
        "switch_step": widget("INT", 10, min=0, max=10000),
        "low_resolution": widget("COMBO", "by scale", options=SMALLER),
        "low_scale": widget("FLOAT", 0.5, min=0.1, max=1.0, step=0.05),
        "steps_low": widget("INT", 0, min=0, max=10000, optional=True),
        "model_low": socket("MODEL", optional=True),
        "positive_low": socket("CONDITIONING", optional=True),
        "middle_low": socket("CONDITIONING", optional=True),
        "negative_low": socket("CONDITIONING", optional=True),
        "cfg_low": widget("FLOAT", 0.0, min=0.0, max=100.0, step=0.1, round=0.01, optional=True),
        "first_frame": socket("IMAGE", optional=True),
        "last_frame": socket("IMAGE", optional=True),
        "vae": socket("VAE", optional=True),
        "low_width": widget("INT", 416, min=16, max=8192, step=16, advanced=True, optional=True),
        "low_height": widget("INT", 240, min=16, max=8192, step=16, advanced=True, optional=True),
        **POLICIES,
        **AFTER_SWITCH,
    },
    "SurfReshiftLadder": {
        "guider": socket("GUIDER"),
        "sizes": widget("STRING", "10: 0.75, 20: 0.5"),
        **POLICIES,
        "low_band_lock": widget(
            "FLOAT", 0.0, min=0.0, max=1.0, step=0.05, optional=True, advanced=True
        ),
    },
    "SurfLatentDownscale": {
        "samples": socket("LATENT"),
        "resolution": widget("COMBO", "by scale", options=SMALLER),
        "scale": widget("FLOAT", 0.5, min=0.1, max=1.0, step=0.05),
        "width": widget("INT", 416, min=16, max=8192, step=16),
        "height": widget("INT", 240, min=16, max=8192, step=16),
        "method": widget("COMBO", "auto", options=METHODS, advanced=True),
        "made_width": widget("INT", 0, min=0, max=16384, step=8, optional=True, advanced=True),
        "made_height": widget("INT", 0, min=0, max=16384, step=8, optional=True, advanced=True),
        "vae": socket("VAE", optional=True),
    },
    "SurfRefiner": {
        "model": socket("MODEL"),
        "positive": socket("CONDITIONING"),
        "negative": socket("CONDITIONING"),
        "latent": socket("LATENT", optional=True),
        "seed": widget("INT", 0, min=0, max=2**64 - 1, control_after_generate=True),
        "resolution": widget("COMBO", "1080p", options=LARGER),
        "scale": widget("FLOAT", 2.0, min=1.0, max=8.0, step=0.05),
        "width": widget("INT", 1920, min=16, max=16384, step=8, advanced=True),
        "height": widget("INT", 1088, min=16, max=16384, step=8, advanced=True),
        "upsample": widget("COMBO", "pixel", options=["pixel", "latent"]),
        "sigma_start": widget("FLOAT", 0.65, min=0.01, max=1.0, step=0.01),
        "steps": widget("INT", 10, min=1, max=1000),
        "cfg": widget("FLOAT", 4.5, min=0.0, max=100.0, step=0.1),
        "window": widget("INT", 4, min=0, max=1024),
        "low_band_lock": widget("FLOAT", 0.0, min=0.0, max=1.0, step=0.05, advanced=True),
        "colour_match": widget("BOOLEAN", False, advanced=True),
        "vae": socket("VAE", optional=True),
        "tile": widget("INT", 0, min=0, max=16384, step=16, optional=True, advanced=True),
        "mask": socket("SURF_MASK", optional=True),
        "seam": widget("INT", 0, min=0, max=16, optional=True, advanced=True),
        "made_width": widget("INT", 0, min=0, max=16384, step=8, optional=True, advanced=True),
        "made_height": widget("INT", 0, min=0, max=16384, step=8, optional=True, advanced=True),
        "start_image": socket("IMAGE", optional=True),
        "refine_audio": widget("BOOLEAN", False, optional=True, advanced=True),
        "image": socket("IMAGE", optional=True),
        "chunk_frames": widget("INT", 0, min=0, max=16384, optional=True, advanced=True),
        "resume": widget("BOOLEAN", False, optional=True, advanced=True),
    },
    "SurfRefinerLoader": {
        "refiner_name": widget("COMBO", options=[HOST]),
        "weight_dtype": widget("COMBO", "default", options=DTYPES, advanced=True),
        "attention": widget("COMBO", "host", options=KERNELS, advanced=True),
    },
    "SurfWindowedAttention": {
        "model": socket("MODEL"),
        "window": widget("INT", 4, min=0, max=1024),
    },
    "SurfColourMatch": {
        "image": socket("IMAGE"),
        "reference": socket("IMAGE"),
        "method": widget("COMBO", "wavelet", options=["wavelet", "lab"]),
        "strength": widget("FLOAT", 1.0, min=0.0, max=1.0, step=0.05),
    },
    "SurfTinyModels": {},
    "SurfTinyPrompt": {
        "text": widget("STRING", TINY_PROMPT),
    },
    "SurfSkipMask": {
        "model": socket("MODEL"),
        "latent": socket("LATENT"),
        "predictor": widget("COMBO", "detail", options=["detail", "footage", HOST]),
        "choose": widget("COMBO", "keep ratio", options=["keep ratio", "tau"]),
        "keep": widget("FLOAT", 0.5, min=0.05, max=1.0, step=0.05),
        "tau": widget("FLOAT", 3.0, min=0.0, max=255.0, step=0.1),
        "resolution": widget("COMBO", "1080p", options=LARGER),
        "scale": widget("FLOAT", 2.0, min=1.0, max=8.0, step=0.05),
        "width": widget("INT", 1920, min=16, max=16384, step=8, advanced=True),
        "height": widget("INT", 1088, min=16, max=16384, step=8, advanced=True),
        "upsample": widget("COMBO", "pixel", options=["pixel", "latent"]),
        "dilate": widget("INT", 0, min=0, max=8, advanced=True),
        "vae": socket("VAE", optional=True),
        "image": socket("IMAGE", optional=True),
    },
    "SurfSeedVR2Skip": {
        "model": socket("MODEL"),
        "conditioning": socket("CONDITIONING"),
        "choose": widget("COMBO", "keep ratio", options=["keep ratio", "tau"]),
        "keep": widget("FLOAT", 0.5, min=0.05, max=1.0, step=0.05),
        "tau": widget("FLOAT", 3.0, min=0.0, max=255.0, step=0.1),
        "dilate": widget("INT", 0, min=0, max=8, advanced=True),
        "seam": widget("INT", 0, min=0, max=16, advanced=True),
        "image": socket("IMAGE", optional=True),
        "latent": socket("LATENT", optional=True),
    },
    "SurfCompile": {
        "model": socket("MODEL"),
    },
    "SurfVAEDecode": {
        "samples": socket("LATENT"),
        "vae": socket("VAE"),
        "width": widget("INT", 0, min=0, max=16384),
        "height": widget("INT", 0, min=0, max=16384),
        "piece": widget("INT", 0, min=0, max=16384, step=16, advanced=True),
    },
    "SurfSignature": {
        "image": socket("IMAGE"),
        "reference": socket("IMAGE"),
        "other": socket("IMAGE", optional=True),
        "rows": widget("INT", 480, min=0, max=16384, advanced=True),
    },
    "SurfDecodeVideo": {
        "samples": socket("LATENT"),
        "vae": socket("VAE"),
        "fps": widget("FLOAT", 16.0, min=0.01, max=240.0, step=0.01),
        "width": widget("INT", 0, min=0, max=16384),
        "height": widget("INT", 0, min=0, max=16384),
        "audio": socket("AUDIO", optional=True),
        "crf": widget("INT", 23, min=0, max=51, advanced=True),
        "memory": widget("FLOAT", 1.5, min=0.1, max=1024.0, step=0.1, advanced=True),
        "piece": widget("INT", 0, min=0, max=16384, step=16, advanced=True),
    },
    "SurfImageToVideo": {
        "vae": socket("VAE"),
        "positive": socket("CONDITIONING"),
        "negative": socket("CONDITIONING"),
        "start_image": socket("IMAGE"),
        "width": widget("INT", 832, min=16, max=16384, step=16),
        "height": widget("INT", 480, min=16, max=16384, step=16),
        "length": widget("INT", 81, min=1, max=16384, step=4),
        "low_resolution": widget("COMBO", "by scale", options=SMALLER),
        "low_scale": widget("FLOAT", 0.5, min=0.1, max=1.0, step=0.05),
        "low_width": widget("INT", 416, min=16, max=8192, step=16, advanced=True),
        "low_height": widget("INT", 240, min=16, max=8192, step=16, advanced=True),
        "target_resolution": widget("COMBO", "1080p", options=LARGER),
        "target_scale": widget("FLOAT", 2.0, min=1.0, max=8.0, step=0.05),
        "target_width": widget("INT", 1920, min=16, max=16384, step=8, advanced=True),
        "target_height": widget("INT", 1088, min=16, max=16384, step=8, advanced=True),
        "end_image": socket("IMAGE", optional=True),
        "clip_vision_output": socket("CLIP_VISION_OUTPUT", optional=True),
        "clip_vision_end": socket("CLIP_VISION_OUTPUT", optional=True),
    },
    "SurfStartDrafts": {
        "latent": socket("LATENT"),
        "count": widget("INT", 4, min=1, max=64),
        "how": widget("COMBO", "one by one", options=["one by one", "as a batch"]),
    },
    "SurfDrafts": {
        "drafts": socket("LATENT"),
        "index": widget("INT", 1, min=1, max=4096),
        "fps": widget("FLOAT", 16.0, min=1.0, max=120.0, step=1.0),
        "vae": socket("VAE", optional=True),
        "model": socket("MODEL", optional=True),
        "seed": socket("INT", min=0, max=2**64 - 1, optional=True, force_input=True),
    },
    "SurfFinishDraft": {
        "draft": socket("LATENT"),
        "start": socket("LATENT"),
        "model": socket("MODEL", optional=True),
    },
    "SurfSaveDraft": {
        "draft": socket("LATENT"),
        "filename_prefix": widget("STRING", "drafts/ComfyUI"),
    },
    "SurfLoadDraft": {"file": widget("COMBO", options=[HOST])},
    "SurfPlan": {
        "model": socket("MODEL"),
        "latent": socket("LATENT"),
        "steps": widget("INT", 40, min=1, max=10000),
        "switch_step": widget("INT", 10, min=0, max=10000),
        "cfg": widget("FLOAT", 7.5, min=0.0, max=100.0, step=0.1, round=0.01),
        "cfg_low": widget("FLOAT", 5.0, min=0.0, max=100.0, step=0.1, round=0.01),
        "low_resolution": widget("COMBO", "by scale", options=SMALLER),
        "low_scale": widget("FLOAT", 0.5, min=0.1, max=1.0, step=0.05),
        "low_width": widget("INT", 416, min=16, max=8192, step=16, advanced=True),
        "low_height": widget("INT", 240, min=16, max=8192, step=16, advanced=True),
        "refine_steps": widget("INT", 10, min=0, max=1000),
        "resolution": widget("COMBO", "1080p", options=LARGER),
        "scale": widget("FLOAT", 2.0, min=1.0, max=8.0, step=0.05),
        "width": widget("INT", 1920, min=16, max=16384, step=8, advanced=True),
        "height": widget("INT", 1088, min=16, max=16384, step=8, advanced=True),
        "refine_cfg": widget("FLOAT", 4.5, min=0.0, max=100.0, step=0.1),
        "window": widget("INT", 4, min=0, max=1024),
        "keep": widget("FLOAT", 1.0, min=0.05, max=1.0, step=0.05),
        "calibrate": widget("BOOLEAN", False),
        "tile": widget("INT", 0, min=0, max=16384, step=16, advanced=True),
        "chunk_frames": widget("INT", 0, min=0, max=16384, advanced=True),
        "refiner": socket("MODEL", optional=True),
        "vae": socket("VAE", optional=True),
        "positive": socket("CONDITIONING", optional=True),
        "negative": socket("CONDITIONING", optional=True),
    },
}
"""Node id -> input id -> what is neither None nor False; a default of False counts."""
OUTPUTS = {
    "SurfReshiftKSampler": {"preview": "LATENT", "switch_x0": "LATENT"},
    "SurfReshiftGuider": {"guider": "GUIDER"},
    "SurfReshiftAnyGuider": {"guider": "GUIDER"},
    "SurfReshiftLadder": {"guider": "GUIDER"},
    "SurfLatentDownscale": {"latent": "LATENT"},
    "SurfRefiner": {
        "latent": "LATENT",
        "width": "INT",
        "height": "INT",
        "positive": "CONDITIONING",
        "negative": "CONDITIONING",
    },
    "SurfRefinerLoader": {"model": "MODEL"},
    "SurfWindowedAttention": {"model": "MODEL"},
    "SurfColourMatch": {"image": "IMAGE"},
    "SurfTinyModels": {"model": "MODEL", "refiner": "MODEL", "vae": "VAE", "latent": "LATENT"},
    "SurfTinyPrompt": {"conditioning": "CONDITIONING"},
    "SurfSkipMask": {
        "mask": "SURF_MASK",
        "keep_ratio": "FLOAT",
        "image": "IMAGE",
        "report": "STRING",
    },
    "SurfSeedVR2Skip": {"model": "MODEL", "keep_ratio": "FLOAT", "report": "STRING"},
    "SurfCompile": {"model": "MODEL"},
    "SurfVAEDecode": {"image": "IMAGE"},
    "SurfSignature": {"picture": "IMAGE", "report": "STRING"},
    "SurfDecodeVideo": {"video": "VIDEO"},
    "SurfImageToVideo": {
        "positive": "CONDITIONING",
        "negative": "CONDITIONING",
        "positive_low": "CONDITIONING",
        "negative_low": "CONDITIONING",
        "positive_target": "CONDITIONING",
        "negative_target": "CONDITIONING",
        "latent": "LATENT",
    },
    "SurfStartDrafts": {"latent": "LATENT"},
    "SurfDrafts": {"draft": "LATENT"},
    "SurfFinishDraft": {"latent": "LATENT", "seed": "INT"},
    "SurfSaveDraft": {"draft": "LATENT"},
    "SurfLoadDraft": {"draft": "LATENT", "plan": "STRING"},
    "SurfPlan": {"model": "MODEL", "report": "STRING"},
}
"""Node id -> output -> type."""
FIELDS = (
    "default", "min", "max", "step", "round", "options", "optional", "advanced",
    "control_after_generate", "force_input",
)  # fmt: skip


def describe(item, frozen):
    """Return what the schema of an input says, in the form of `INPUTS`.

    Args:
        item: an input of a schema, of the host or of its stub.
        frozen: its line above; what the host adds to a list that ends in `HOST` is left out.
    """
    said = {"type": item.get_io_type()}
    for name in FIELDS:
        value = getattr(item, name, None)
        if value is not None and (value is not False or name == "default"):
            said[name] = getattr(value, "value", value)
    options = frozen.get("options", [])
    if HOST in options:
        ours = len(options) - 1
        said["options"] = [*said["options"][:ours], HOST]
    return said
