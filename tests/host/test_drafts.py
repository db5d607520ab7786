"""Drafts on a real host: what runs again for another one, and what the node shows."""

import os

import av
import pytest
import torch
from safetensors.torch import load_file
from surf.surf_core.draft import ENDING
from surf.tests.host.graphs import node
from surf.tests.host.server import Server, install_pack

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH is not set"),
]

PROMPTS = {"positive": ["prompt", 0], "negative": ["prompt", 0]}
LOW = {"low_resolution": "by scale", "low_scale": 0.5, "low_width": 32, "low_height": 32}
SWITCH = LOW | {"switch_step": 1, "cfg": 1.0, "cfg_low": 1.0, "sigma_policy": "same"}
SWITCH |= {"noise_policy": "fresh", "handover": "reuse"}


def graph(index, how="one by one", count=4):
    """Four drafts of the embedded model: one refined, the same one made again in full."""
    return {
        "models": node("SurfTinyModels"),
        "prompt": node("SurfTinyPrompt", text="red ball"),
        "started": node("SurfStartDrafts", latent=["models", 3], count=count, how=how),
        "sampled": node(
            "SurfReshiftKSampler", model=["models", 0], **PROMPTS, latent_image=["started", 0],
            seed=7, steps=2, shift=3.0, shift_low=3.0, sampler_name="euler", scheduler="simple",
            denoise=1.0, **SWITCH,
        ),
        "drafts": node(
            "SurfDrafts", drafts=["sampled", 0], index=index, fps=8.0, vae=["models", 2],
        ),
        "again": node("SurfFinishDraft", draft=["drafts", 0], start=["models", 3]),
        "refined": node(
            "SurfRefiner", model=["models", 1], **PROMPTS, latent=["drafts", 0], seed=1,
            resolution="by scale", scale=2.0, width=64, height=64, upsample="latent",
            sigma_start=0.05, steps=1, cfg=1.0, window=0, low_band_lock=0.0, colour_match=False,
        ),
        "full": node(
            "KSampler", model=["models", 0], **PROMPTS, latent_image=["again", 0],
            seed=["again", 1], steps=2, cfg=1.0, sampler_name="euler", scheduler="simple",
            denoise=1.0,
        ),
        "kept": node("SaveLatent", samples=["refined", 0], filename_prefix=f"refined_{index}"),
        "kept full": node("SaveLatent", samples=["full", 0], filename_prefix=f"full_{index}"),
    }  # fmt: skip


AFTER = {"drafts", "again", "refined", "full", "kept", "kept full"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("drafts")
    install_pack(base)
    with Server(base) as running:
        yield running


def ran(entry, prompt):
    """The nodes that ran: those that the host did not take from its cache."""
    cached = [set(said["nodes"]) for name, said in entry["status"]["messages"]
              if name == "execution_cached"]  # fmt: skip
    return set(prompt) - set().union(*cached)


def shown(server, entry):
    """The picture in the node: (frames, height, width)."""
    output = entry["outputs"]["drafts"]
    [image] = output["images"]
    assert output["animated"] == [True]
    with av.open(str(server.base / "temp" / image["filename"]), format="webp_pipe") as file:
        [stream] = file.streams.video
        return image["filename"], (stream.height, stream.width)


def test_another_index_runs_nothing_before_the_drafts_and_decodes_nothing(server):
    first = server.run(graph(1))
    assert ran(first, graph(1)) == set(graph(1))
    pictures = [first["outputs"]["drafts"]]
    for index in (3, 4):
        entry = server.run(graph(index))
        assert ran(entry, graph(index)) == AFTER
        pictures.append(entry["outputs"]["drafts"])
    assert pictures[0] == pictures[1] == pictures[2]
    assert len(list((server.base / "temp").glob("surf_drafts*"))) == 1


def test_the_same_index_runs_nothing(server):
    server.run(graph(2))
    assert ran(server.run(graph(2)), graph(2)) == set()


def test_the_node_alone_is_a_whole_graph(server):
    looked = {name: n for name, n in graph(1).items() if name not in AFTER - {"drafts"}}
    entry = server.run(looked)
    assert entry["outputs"]["drafts"]["images"]


def test_one_draft_and_a_batch_are_shown(server):
    for prompt in (graph(1, count=1), graph(2, "as a batch")):
        assert server.run(prompt)["outputs"]["drafts"]["images"]


def test_an_index_beyond_the_drafts_is_refused(server):
    with pytest.raises(RuntimeError, match="Surf Drafts: index must be at most the number"):
        server.run(graph(5))


def test_a_draft_of_a_sampler_of_the_host_says_its_seed_where_that_is_connected(server):
    prompt = graph(1)
    plain = {key: prompt["sampled"]["inputs"][key] for key in prompt["full"]["inputs"]}
    prompt["seed"] = node("PrimitiveInt", value=7)
    prompt["sampled"] = node("KSampler", **plain | {"cfg": 1.0, "seed": ["seed", 0]})
    with pytest.raises(RuntimeError, match="Surf Finish Draft: expected a draft that says"):
        server.run(prompt)
    prompt["drafts"]["inputs"]["seed"] = ["seed", 0]
    server.run(prompt)


def loaded(index):
    """A graph that takes the saved draft up, without any sampler before it."""
    prompt = {name: n for name, n in graph(index).items() if name not in {"started", "sampled"}}
    prompt["drafts"] = node("SurfLoadDraft", file=f"drafts/d{index}_00001_{ENDING} [output]")
    return prompt


def test_a_saved_draft_is_taken_up_bit_identical_after_a_restart(tmp_path):
    install_pack(tmp_path)
    with Server(tmp_path) as server:
        for index in (1, 3):
            prompt = graph(index)
            prompt["saved"] = node(
                "SurfSaveDraft", draft=["drafts", 0], filename_prefix=f"drafts/d{index}"
            )
            server.run(prompt)
    with Server(tmp_path) as server:
        for index in (1, 3):
            server.run(loaded(index))
    for kind in ("refined", "full"):
        before, after = {}, {}
        for index in (1, 3):
            files = [tmp_path / "output" / f"{kind}_{index}_0000{n}_.latent" for n in (1, 2)]
            before[index], after[index] = (load_file(file)["latent_tensor"] for file in files)
            assert torch.equal(before[index], after[index]), (kind, index)
        assert not torch.equal(before[1], before[3])


def test_a_file_that_is_not_there_is_refused_when_the_graph_is_queued(server):
    for file in (f"gone{ENDING}", f"../../server.log{ENDING}", "../server.log"):
        prompt = {
            "a": node("SurfLoadDraft", file=file),
            "b": node("SaveLatent", samples=["a", 0], filename_prefix="x"),
        }
        with pytest.raises(RuntimeError, match="which is not there|which leaves it"):
            server.post(prompt)


def damaged(whole):
    """Files that are no whole draft any more, by name."""
    flipped, cut = bytearray(whole), whole[: len(whole) // 2]
    flipped[-5] ^= 4
    # The graph of the host comes first in the file, and names the seed as well.
    before, about = whole.split(b"surf.draft.config")
    seed = b"surf.draft.config".join((before, about.replace(b'\\"seed\\": 7', b'\\"seed\\": 8')))
    assert seed != whole
    newer = whole.replace(b'surf.draft.format":"1"', b'surf.draft.format":"9"', 1)
    none = whole.replace(b'surf.draft.format":"1"', b'surf.draft.format":"0"', 1)
    return {
        "flipped": bytes(flipped), "seed": seed, "cut": cut, "newer": newer, "none": none,
        "empty": b"", "text": b"no draft",
    }  # fmt: skip


SAID = {
    "flipped": "as it was saved, .* restore the file from a copy, or make the draft again",
    "seed": "as it was saved, .* restore the file from a copy, or make the draft again",
    "cut": "restore the file from a copy, or make the draft again",
    "newer": "format 1 or older, got 9 .* update the pack",
    "none": "a format from 1 to 1, got 0 .* restore the file from a copy",
    "empty": "restore the file from a copy, or make the draft again",
    "text": "restore the file from a copy, or make the draft again",
}


def test_damaged_drafts_are_refused_with_advice_and_the_whole_one_still_loads(server):
    prompt = graph(1)
    prompt["saved"] = node("SurfSaveDraft", draft=["drafts", 0], filename_prefix="whole/d")
    server.run(prompt)
    path = server.base / "output" / "whole" / f"d_00001_{ENDING}"
    whole = path.read_bytes()
    files = damaged(whole)
    assert files.keys() == SAID.keys()
    for name, data in files.items():
        bad = server.base / "input" / f"{name}{ENDING}"
        bad.write_bytes(data)
        with pytest.raises(RuntimeError, match=f"Surf Load Draft: expected .*{SAID[name]}"):
            server.run({
                "a": node("SurfLoadDraft", file=bad.name),
                "b": node("SurfDrafts", drafts=["a", 0], index=1, fps=8.0),
            })  # fmt: skip
        assert bad.read_bytes() == data
    path.with_name(f"e_00001_{ENDING}").write_bytes(whole)
    for name in ("d", "e"):
        file = f"whole/{name}_00001_{ENDING} [output]"
        server.run({
            "a": node("SurfLoadDraft", file=file),
            "b": node("SaveLatent", samples=["a", 0], filename_prefix=f"taken_{name}"),
        })  # fmt: skip
    first, second = (
        load_file(server.base / "output" / f"taken_{name}_00001_.latent")["latent_tensor"]
        for name in ("d", "e")
    )
    assert torch.equal(first, second)
