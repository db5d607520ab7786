"""Generated calls of every node inside a real host, in its process: see tests/node_calls.py.

    cd $COMFYUI_PATH && python tests/host/fuzz_cases.py RESULTS.json [COUNT [FIRST]]

Run by test_inside.py with the number of `pytest --fuzz`. FIRST is a seed to go on from, or one
that failed, with COUNT 1. Weights are random.
"""

import sys
import tempfile
from pathlib import Path

NUMBERS = [int(text) for text in sys.argv[2:]]

import checkpoints  # noqa: E402, I001 the host comes last
import torch  # noqa: E402
from inprocess import Host  # noqa: E402
from inside import noise, report  # noqa: E402

import seedvr2_reference as seedvr2  # noqa: E402, enters the host
import comfy.sd  # noqa: E402
import comfy.samplers  # noqa: E402
import folder_paths  # noqa: E402
from surf.nodes.host.refiner.loading import load_refiner  # noqa: E402
from surf.nodes.host.skip.skip_mask import SkipMask  # noqa: E402
from surf.surf_core.skip import Mask  # noqa: E402
from surf.tests.node_calls import CallInputs, check_all  # noqa: E402
from surf.tests.node_values import Family  # noqa: E402

FOLDER = Path(tempfile.mkdtemp())
COUNT, FIRST = (*NUMBERS, 0, 0)[:2]


def loaded(state):
    return comfy.sd.load_diffusion_model_state_dict(state)


def families(host):
    """Models of several makes, each with its VAE; the embedded pair with theirs."""
    vae = comfy.sd.VAE(sd=checkpoints.wan_vae())
    tiny, refiner, own, _ = host.nodes["SurfTinyModels"].execute().result
    ours = load_refiner(checkpoints.refiner(FOLDER / "fuzz_refiner.safetensors"))
    vectors = (("pooled_output", 2048),)
    found = [
        Family(model=host.model(), width=4096, vae=vae),
        Family(model=host.model("tiny_wan_i2v"), width=4096, vae=vae),
        Family(model=host.model("tiny_wan22_5b"), width=4096, channels=48, vae=vae),
        Family(model=host.model("tiny_wan_vace"), width=4096, vae=vae, areas=False),
        Family(model=host.model("tiny_hunyuan"), width=64, options=(("pooled_output", 768),),
               vae=vae, areas=False),
        Family(model=loaded(checkpoints.sd3()), width=4096, options=vectors, video=False, vae=vae),
        Family(model=tiny, width=4096, vae=own),
        Family(model=refiner, width=4096, vae=own),
        Family(model=ours, width=64, vae=vae),
    ]  # fmt: skip
    if seedvr2.seedvr is not None:
        start = ("condition", 17, 3, 8, 12)
        found.append(
            Family(
                model=seedvr2.model(),
                width=5120,
                options=(start,),
                vae=vae,
                shape=(16, 3, 8, 12),
                areas=False,
            )
        )
    return found


def masks():
    """What Surf Skip Mask gives for two sizes."""
    made = []
    for frames, rows, columns in ((3, 4, 6), (1, 4, 4)):
        scores = torch.rand(frames, rows, columns, generator=torch.Generator().manual_seed(rows))
        mask = Mask(tokens=scores > 0.5, scores=scores, source="test", tau=0.5)
        samples = noise(1, 16, frames, rows, columns)
        made.append(SkipMask(mask=mask, size=(2 * rows, 2 * columns), upsampled=None,
                             upsample="latent", samples=samples))  # fmt: skip
    return made


def world():
    host = Host()
    folder_paths.add_model_folder_path("diffusion_models", str(FOLDER))
    folder_paths.set_temp_directory(str(FOLDER / "temp"))
    folder_paths.set_output_directory(str(FOLDER / "output"))
    options = {"sampler_name": ["euler", "euler_ancestral", "uni_pc", "dpmpp_2m_sde", "deis"],
               "scheduler": ["simple", "beta", "normal", "kl_optimal"]}  # fmt: skip
    whole = families(host)
    options["refiner_name"] = ["fuzz_refiner.safetensors"]
    return CallInputs(
        nodes=host.nodes, families=whole, masks=masks(), options=options,
        sampler=comfy.samplers.sampler_object, guider=comfy.samplers.CFGGuider,
    )  # fmt: skip


def case_generated_calls_give_results_or_refuse_with_advice():
    count = COUNT or 90
    ends = check_all(range(FIRST, FIRST + count), world())
    print(ends)
    assert count < 90 or min(ends.values()) > count // 10, ends


if __name__ == "__main__":
    report(seedvr2.RESULTS, dict(globals()))
