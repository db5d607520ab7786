"""Weights in files."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from surf.surf_core import checkpoint, header
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.tiny.model import WEIGHTS
from torch import nn

SMALL = RefinerConfig(dim=24, heads=2, layers=2, ffn_dim=32, text_dim=8)
CONFIGS = [
    SMALL,
    replace(SMALL, block="scale", window=4, sigma_start=0.7),
    replace(SMALL, block="scale", time="t", sigma_start=0.0, patch=(1, 4, 4)),
]


@pytest.fixture
def model():
    return make(SMALL)


def make(config):
    torch.manual_seed(0)
    model = SurfRefinerDiT(config)
    model.initialise(torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("config", CONFIGS, ids=["wan", "scale", "scale in t"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_model_round_trips_through_a_file(config, dtype, tmp_path):
    model, path = make(config), tmp_path / "model.safetensors"
    checkpoint.save(path, model.state_dict(), config, {"steps": 3}, dtype)
    assert checkpoint.read_config(path) == (config, {"steps": 3})
    assert checkpoint.report(path) == []
    loaded = checkpoint.load(path)
    assert loaded.config == config
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.to(dtype).float())


def test_the_shipped_weights_load():
    config, notes = checkpoint.read_config(WEIGHTS)
    assert config == replace(RefinerConfig.tiny(), heads=4)
    assert (config.block, config.time, config.sigma_start) == ("wan", "sigma", None)
    assert notes["task"]["layers"] == 6
    assert checkpoint.report(WEIGHTS) == []
    assert checkpoint.load(WEIGHTS).config == config


def write_misfit(model, path):
    weights = model.state_dict()
    weights["extra"] = torch.zeros(1)
    weights.pop("head.head.bias")
    weights["blocks.0.self_attn.q.weight"] = torch.zeros(3, 3)
    checkpoint.save(path, weights, model.config, {})


MISFITS = [
    "missing head.head.bias",
    "unexpected extra",
    "blocks.0.self_attn.q.weight is (3, 3), expected (24, 24)",
]


def test_missing_unexpected_and_misshapen_keys_are_reported_and_rejected(model, tmp_path):
    path = tmp_path / "model.safetensors"
    write_misfit(model, path)
    assert checkpoint.report(path) == MISFITS
    with pytest.raises(ValueError, match="do not fit their config, 3 keys: ") as error:
        checkpoint.load(path)
    for text in MISFITS:
        assert text in str(error.value)


def test_a_long_list_of_keys_is_cut_with_a_count(model, tmp_path):
    path = tmp_path / "model.safetensors"
    room = {"a": torch.zeros(8000), "b": torch.zeros(1)}
    checkpoint.save(path, room, model.config, {})
    count = len(model.state_dict()) + 2
    assert len(checkpoint.report(path)) == count
    with pytest.raises(ValueError, match=f"{count} keys: .*; and {count - 20} more"):
        checkpoint.load(path)


def test_header_is_enough_for_config_and_report(tmp_path, monkeypatch):
    """A file cut off after its header, of a model of a billion parameters, and no layer made."""
    config = RefinerConfig.surf_1b()
    path, whole = tmp_path / "cut.safetensors", tmp_path / "whole.safetensors"
    some = {f"blocks.{index}.scale.bias": torch.zeros(3456) for index in range(40)}
    some["blocks.0.ffn.0.weight"] = torch.zeros(4608, 1152)
    checkpoint.save(whole, some, config, {"steps": 1})
    made = []
    init = nn.Linear.reset_parameters

    def watched(layer):
        made.append(layer.weight.device.type)
        init(layer)

    def refuse(*_):
        raise AssertionError("a tensor was read")

    class OpenWithoutTensors:
        """The open file, without its tensors."""

        def __init__(self, *given):
            self.file = safe_open(*given)

        def __enter__(self):
            self.inner = self.file.__enter__()
            self.metadata, self.keys = self.inner.metadata, self.inner.keys
            self.get_slice, self.get_tensor = self.inner.get_slice, refuse
            return self

        def __exit__(self, *given):
            return self.file.__exit__(*given)

    safe_open = header.safe_open
    monkeypatch.setattr(header, "safe_open", OpenWithoutTensors)
    monkeypatch.setattr(nn.Linear, "reset_parameters", watched)
    assert checkpoint.read_config(whole) == (config, {"steps": 1})
    report = checkpoint.report(whole)
    assert "missing blocks.39.scale.weight" in report
    assert set(made) == {"meta"}
    with pytest.raises(ValueError, match="do not fit"):
        checkpoint.load(whole)
    path.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not one"):
        checkpoint.report(path)


def test_load_rejects_foreign_newer_and_absent_files(tmp_path):
    for read in (checkpoint.load, checkpoint.read_config, checkpoint.report):
        foreign = tmp_path / "foreign.safetensors"
        save_file({"a": torch.zeros(1)}, foreign)
        with pytest.raises(ValueError, match="got none; it is not ours"):
            read(foreign)
        save_file({"a": torch.zeros(1)}, foreign, {"surf.config": "{}", "format": "pt"})
        with pytest.raises(ValueError, match="got format, surf.config; it is not ours"):
            read(foreign)
        newer = tmp_path / "newer.safetensors"
        save_file({"a": torch.zeros(1)}, newer, {"surf.format": "4", "surf.config": "{}"})
        with pytest.raises(ValueError, match="format 3 or older, got 4 .* update the pack"):
            read(newer)
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(b"not a tensor file")
        with pytest.raises(ValueError, match="is not one"):
            read(broken)
        with pytest.raises(FileNotFoundError, match="restore the file"):
            read(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        (json.dumps({"dim": 24, "patch": [1, 2, 2]}), "missing"),
        (json.dumps({"speed": 1, "patch": [1, 2, 2]}), "unknown fields speed"),
        (
            json.dumps({"dim": 25, "heads": 2, "layers": 1, "ffn_dim": 1, "patch": [1, 2, 2]}),
            "even",
        ),
        (
            json.dumps({"dim": "24", "heads": 2, "layers": 1, "ffn_dim": 1, "patch": [1]}),
            "dim must",
        ),
    ],
)
def test_a_config_that_is_none_is_rejected(text, expected, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"surf.format": "2", "surf.config": text})
    with pytest.raises(ValueError, match="expected a refiner's config") as error:
        checkpoint.read_config(path)
    assert expected in str(error.value)
