"""Weights in files."""

import pytest
import torch
from safetensors.torch import save_file
from surf.surf_core import checkpoint
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = SurfRefinerDiT(RefinerConfig(dim=24, heads=2, layers=2, ffn_dim=32, text_dim=8))
    model.initialise(torch.Generator().manual_seed(0))
    return model


def test_model_round_trips_through_a_file(model, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, model.state_dict(), model.config, {"steps": 3})
    loaded = checkpoint.load(path)
    assert loaded.config == model.config
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.half().float())


def test_load_rejects_missing_unexpected_and_misshapen_keys_by_name(model, tmp_path):
    weights = model.state_dict()
    weights["extra"] = torch.zeros(1)
    weights.pop("head.head.bias")
    weights["blocks.0.self_attn.q.weight"] = torch.zeros(3, 3)
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, weights, model.config, {})
    with pytest.raises(ValueError, match="do not fit") as error:
        checkpoint.load(path)
    for text in ("missing head.head.bias", "unexpected extra", "q.weight is (3, 3)"):
        assert text in str(error.value)


def test_load_rejects_foreign_newer_and_absent_files(model, tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="not ours"):
        checkpoint.load(foreign)
    newer = tmp_path / "newer.safetensors"
    save_file({"a": torch.zeros(1)}, newer, {"surf.format": "99", "surf.config": "{}"})
    with pytest.raises(ValueError, match="update the pack"):
        checkpoint.load(newer)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a tensor file")
    with pytest.raises(ValueError, match="is not one"):
        checkpoint.load(broken)
    with pytest.raises(FileNotFoundError, match="restore the file"):
        checkpoint.load(tmp_path / "absent.safetensors")
