"""Damaged weight files: refused in milliseconds with advice, or loaded and fit to run.

A few in the usual run; `pytest tests/test_damaged_files.py --fuzz 2000` takes minutes.
"""

import json
import random
import re
import struct
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from surf.nodes.host.refiner import loading
from surf.surf_core import checkpoint
from surf.surf_core.draft import Draft, load_draft, save_draft
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.skip import MaskPredictor, PredictorConfig, predictor

SMALL = RefinerConfig(dim=16, heads=2, layers=2, ffn_dim=24, text_dim=8, freq_dim=16, window=2)
PAPER = replace(
    SMALL, block="scale", time="t", sigma_start=0.3, sigma_start_range=(0.1, 0.5), patch=(1, 2, 4)
)
LONGEST, SLOWEST, LARGEST = 2000, 1.0, 200 * 2**20
"""Of a message in characters, of a call in seconds of the CPU and in bytes of memory."""
VALUES = [
    True, False, None, -1, 0, 1, 2, 3, 10**5, 10**6, 10**9, 2**31, 2**53, 2**63, 10**400, 1.5, -0.5,
    1e300, float("nan"), float("inf"), "", "16", "x" * 10**5, [], {}, [1, 2], [1, 2, 2, 2],
    [True] * 3, [10**6] * 3, [1, 2, 10**9], [0.1, 0.2], [0.5, 0.1], [float("nan")] * 2, [[]],
    {"a": {}},
]  # fmt: skip
DTYPES = ["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I64", "I8", "U8", "BOOL",
          "C64", "F64", "F32", "F16", "BF16", "Q4", "", None, 7, []]  # fmt: skip
TEXTS = ["", "{", "null", "[]", "7", "NaN", '"a"', "[" * 1100 + "]" * 1100, '{"a":' * 1100,
         '{"a":' * 1100 + "1" + "}" * 1100, "9" * 5000, '{"a":' + "9" * 5000 + "}", "{}" * 10,
         '{"dim": 16', "\\", "\u0663", "0", "-1", "1e3", "99", "nan", "inf", "1e-320"]  # fmt: skip


def refiner(config):
    model = SurfRefinerDiT(config)
    model.initialise(torch.Generator().manual_seed(0))
    return model.state_dict()


def whole_files(folder):
    """One file of each kind, by name, each with the functions that read it."""
    for name, config in (("wan", SMALL), ("paper", PAPER)):
        checkpoint.save(folder / name, refiner(config), config, {"steps": 1})
    config = PredictorConfig(width=8, depth=2, groups=2)
    model = MaskPredictor(config)
    model.initialise(torch.Generator().manual_seed(0))
    predictor.save(folder / "mask", model.state_dict(), config, 0.5, {"steps": 1})
    ours = (run_refiner, checkpoint.report, checkpoint.read_config, run_host)
    tensors = {"video": torch.ones(2, 16, 3, 8, 8), "audio": torch.ones(2, 8, 5, 16)}
    tensors["video_mask"] = torch.ones(1, 1, 3, 8, 8)
    whole = Draft(
        tensors=tensors, batch_index=(0, 5), made_for=(64, 64), record={"seed": 7, "steps": 4}
    )
    save_draft(folder / "draft", whole, {"prompt": "{}"})
    return {"wan": ours, "paper": ours, "mask": (run_mask,), "draft": (load_draft,)}


def run_refiner(path):
    model = checkpoint.load(path)
    config = model.config
    z = torch.zeros(1, config.latent_channels, *(2 * side for side in config.patch))
    with torch.no_grad():
        model(z, torch.tensor([500.0]), torch.zeros(1, 2, config.text_dim))


def run_host(path):
    loading.load_refiner(str(path))


def run_mask(path):
    model, _ = predictor.load(path)
    with torch.no_grad():
        model.scores(torch.zeros(1, model.config.latent_channels, 2, 8, 8))


def parts(data):
    """Header as JSON, and the tensors' bytes."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header, body):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def flip(draw, data):
    """Flip up to eight bits, half of the time within the header."""
    changed, end = bytearray(data), draw.choice([len(data), 3000])
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(min(end, len(data)))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(draw, data):
    return data[: draw.choice([0, 1, 7, 8, 9, 100, draw.randrange(len(data)), len(data) - 1])]


def fill(draw, data):
    """Overwrite a stretch with zeros, ones or noise; or hang more on the end."""
    start, size = draw.randrange(len(data)), draw.randint(1, 5000)
    stretch = draw.choice([bytes(size), b"\xff" * size, draw.randbytes(size)])
    return data[:start] + stretch + data[start + draw.choice([0, size]) :]


def resize(draw, data):
    """Say another length of the header."""
    size = draw.choice([0, 1, 2**22, 2**22 + 1, 2**31, 2**63 - 1, 2**64 - 1, draw.randrange(9999)])
    return struct.pack("<Q", size) + data[8:]


def edit_entry(draw, data):
    """Change what the header says of one tensor, or the tensor's name."""
    header, body = parts(data)
    name = draw.choice([key for key in header if key != "__metadata__"])
    entry, what = header[name], draw.randrange(5)
    if what == 0:
        entry["dtype"] = draw.choice(DTYPES)
    elif what == 1:
        entry["shape"] = draw.choice([entry["shape"][::-1], [], [2**40, 2**40], [0], [-1], VALUES])
    elif what == 2:
        entry["data_offsets"] = draw.choice([[0, 0], [0, 2**62], [9, 1], [], None])
    elif what == 3:
        header.pop(name)
    else:
        new = draw.choice(["x" * 10**5, "\n", "blocks.7.q", "blocks.-1.q", "blocks.0.", ""])
        header[new] = header.pop(name)
    return joined(header, body)


def retype(draw, data):
    """Give one or all tensors another dtype of matching size, with whole contents."""
    header, body = parts(data)
    kinds = {2: ["F16", "BF16", "I16", "U16"], 4: ["F32", "I32", "U32"]}
    names = [key for key in header if key != "__metadata__"]
    for name in draw.choice([names, [draw.choice(names)]]):
        kind = 4 if header[name]["dtype"] == "F32" else 2
        header[name]["dtype"] = draw.choice(kinds[kind])
    return joined(header, body)


def edit_config(draw, data):
    """Give fields of the config other values."""
    header, body = parts(data)
    metadata = header["__metadata__"]
    key = next(key for key in metadata if key.endswith("config"))
    config = json.loads(metadata[key])
    for _ in range(draw.randint(1, 2)):
        name = draw.choice([*config, "layers" if "layers" in config else "depth"])
        config[name] = draw.choice(VALUES)
    if not draw.randrange(9):
        config[draw.choice(["speed", "x" * 10**5])] = 1
    metadata[key] = json.dumps(config)
    return joined(header, body)


def edit_metadata(draw, data):
    """Give one text of the metadata another value, or take it away."""
    header, body = parts(data)
    metadata = header["__metadata__"]
    name = draw.choice(list(metadata))
    metadata[name] = draw.choice([*TEXTS, metadata[name][: draw.randrange(99)], {}, 1, None])
    if not draw.randrange(4):
        metadata.pop(name)
    if not draw.randrange(9):
        metadata |= {f"key {index}": "x" * 99 for index in range(5000)}
    return joined(header, body)


def not_finite(draw, data):
    """Put NaN or infinity into one tensor, or make all of them whole numbers or bools."""
    header, _ = parts(data)
    weights = torch_tensors(data)
    name = draw.choice(list(weights))
    weights[name].view(-1)[draw.randrange(weights[name].numel())] = draw.choice(
        [float("nan"), float("inf"), -float("inf")]
    )
    kind = draw.choice([None, None, torch.int64, torch.bool, torch.float8_e5m2])
    if kind is not None:
        weights = {key: weight.to(kind) for key, weight in weights.items()}
    return to_bytes(weights, header["__metadata__"])


def torch_tensors(data):
    from safetensors.torch import load

    return {key: weight.clone() for key, weight in load(data).items()}


def many_keys(draw, data):
    """Tens of thousands of empty tensors."""
    header, body = parts(data)
    count, end = draw.choice([500, 9000, 20_000, 60_000]), len(body)
    start = draw.choice(["blocks.{}.a", "blocks.{}.self_attn.q.weight", "k{}"])
    for index in range(count):
        name = start.format(index + 2)
        header[name] = {"dtype": "F16", "shape": [0], "data_offsets": [end, end]}
    config = next(key for key in header["__metadata__"] if key.endswith("config"))
    values = json.loads(header["__metadata__"][config])
    values["layers" if "layers" in values else "depth"] = draw.choice([2, 500, count])
    header["__metadata__"][config] = json.dumps(values)
    return joined(header, body)


DAMAGE = [flip, flip, cut, fill, resize, edit_entry, edit_entry, retype, edit_config, edit_config,
          edit_config, edit_metadata, not_finite, many_keys]  # fmt: skip
STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ADVICE = re.compile(r"\b(use|choose|download|update|restore|damaged|connect|is not ours|Load)\b")


def memory(what):
    """A number of /proc/self/status in bytes, 0 where there is none; VmHWM is the peak."""
    found = re.search(rf"{what}:\s*(\d+)", STATUS.read_text()) if STATUS.exists() else None
    return 1024 * int(found[1]) if found else 0


def check(read, path, what):
    """Let a function read a file; whether it was refused."""
    if PEAK_RESET.exists():
        PEAK_RESET.write_text("5")
    began, before, refused = time.process_time(), memory("VmRSS"), None
    try:
        read(path)
    except ValueError as error:
        refused = str(error)
    spent, grown = time.process_time() - began, memory("VmHWM") - before
    assert spent < SLOWEST, (what, spent)
    assert grown < LARGEST, (what, grown)
    if refused is not None:
        assert len(refused) <= LONGEST, (what, len(refused), refused[:300])
        assert ADVICE.search(refused), (what, refused)
    return refused is not None


def test_damaged_files_are_refused_with_advice_or_run(tmp_path, request):
    count = request.config.getoption("--fuzz") or 120
    readers = whole_files(tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in readers}
    for name, reads in readers.items():
        for read in reads:
            read(tmp_path / name)
    refused = 0
    for seed in range(count):
        draw = random.Random(seed)
        damage, name = DAMAGE[seed % len(DAMAGE)], list(readers)[seed // len(DAMAGE) % 4]
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(damage(draw, whole[name]))
        what = f"seed {seed}: {damage.__name__} of {name}"
        refused += any([check(read, path, what) for read in readers[name]])
        if name != "mask":
            assert check(run_mask, path, f"{what}, as a mask")
    assert refused > count // 2
