"""Runs of Surf Plan on the fake host, and a clock that a model turns."""

import torch
from surf.nodes.host.plan import measure as measuring
from surf.nodes.plan import SurfPlan
from surf.surf_core.cost import WAN_1_3B, forward_work
from surf.tests.nodes.skip_node import wan

DEFAULTS = {
    "steps": 40, "switch_step": 10, "cfg": 7.5, "cfg_low": 1.0, "low_resolution": "by scale",
    "low_scale": 0.5, "low_width": 416, "low_height": 240, "refine_steps": 8,
    "resolution": "by scale", "scale": 2.0, "width": 1920, "height": 1088, "refine_cfg": 1.0,
    "window": 0, "keep": 1.0, "tile": 0,
}  # fmt: skip

MODEL = 1e-13, 2e-13
"""A machine: seconds an operation of linear maps, and of self-attention."""


def latent(frames=21, rows=60, columns=104):
    return {"samples": torch.zeros(1, 16, frames, rows, columns)}


def prompt(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 512, 8, generator=generator), {}]]


def run(model=None, samples=None, **changed):
    """Outputs of the node: model, report; and what it shows."""
    out = SurfPlan.execute(model=model or wan(), latent=samples or latent(), **DEFAULTS | changed)
    return *out.args, out.ui


def rows_of(report):
    """Stage -> its row of the table, cut where two spaces are."""
    lines = report.split("\n\n")[0].splitlines()[1:]
    cut = [[part.strip() for part in line.split("  ") if part.strip()] for line in lines]
    return {row[0]: row[1:] for row in cut}


class Clock:
    """Time that passes when the model is evaluated, by the operations of its size."""

    def __init__(self, monkeypatch, small=1):
        self.now, self.small, self.sizes = 0.0, small, []
        monkeypatch.setattr(measuring, "clock", lambda: self.now)

    def of(self, frames, rows, columns, window=0):
        work = forward_work(WAN_1_3B, 1 + 4 * (frames - 1), 8 * rows, 8 * columns, window)
        return MODEL[0] * work.linear + MODEL[1] * work.pairs

    def model(self, **changed):
        def velocity(x, sigma, cond):
            self.sizes.append(tuple(x.shape[-2:]))
            self.now += self.of(*x.shape[-3:])
            return x

        model = wan()
        model.velocity = velocity
        return model
