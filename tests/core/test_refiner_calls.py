"""Which attention calls a refiner makes, and that compiled parts are the same with few codes."""

import pytest
import torch
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.window import sdpa
from torch._dynamo import config as dynamo

CONFIG = RefinerConfig(
    dim=48, heads=2, layers=4, ffn_dim=64, text_dim=8, window=4, block="scale", time="t",
    sigma_start=0.3,
)  # fmt: skip


def network(attention=sdpa):
    torch.manual_seed(0)
    module = SurfRefinerDiT(CONFIG, attention=attention).eval()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return module


def run(module, frames, size=(4, 6), time=400.0, keep=None, batch=1):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(batch, 16, frames, *size, generator=generator)
    text = torch.randn(batch, 5, 8, generator=generator)
    with torch.no_grad():
        return module(z, torch.full((batch,), time), text, keep=keep)


def test_every_step_makes_the_same_few_kinds_of_attention_calls():
    seen = []

    def noted(q, k, v):
        seen.append((q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
        return sdpa(q, k, v)

    module, steps = network(noted), []
    for time in (1000.0, 500.0, 100.0):
        seen.clear()
        run(module, 21, time=time)
        steps.append(list(seen))
    assert steps[0] == steps[1] == steps[2]
    own = {call for call in steps[0] if call[2] == call[3]}
    # Four frames, one at the end; shifted by two: two at the start, three at the end.
    assert own == {(1, 2, 6 * frames, 6 * frames) for frames in (1, 2, 3, 4)}
    assert len(set(steps[0]) - own) <= 4


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    module = network()
    for block in module.blocks:
        for part in ("attend", "cross_attend_and_mlp"):
            setattr(block, part, torch.compile(getattr(block, part), backend="eager"))
    yield module
    torch._dynamo.reset()


def test_compiled_parts_match_and_serve_other_lengths_sizes_and_masks(compiled):
    plain = network()
    masks = [torch.rand(9, 2, 3, generator=torch.Generator().manual_seed(n)) < 0.6 for n in (1, 2)]
    for frames, keep in ((9, None), (9, masks[0])):
        torch.testing.assert_close(run(compiled, frames, keep=keep), run(plain, frames, keep=keep))
    with dynamo.patch(error_on_recompile=True):
        for frames, size in ((21, (4, 6)), (13, (6, 4)), (6, (8, 8))):
            torch.testing.assert_close(run(compiled, frames, size), run(plain, frames, size))
        kept = (run(module, 9, keep=masks[1]) for module in (compiled, plain))
        torch.testing.assert_close(*kept)
