"""A task small enough to train in a test, and runs of it that need processes of their own.

    torchrun --nproc-per-node 2 training_toy.py together OUT
    python training_toy.py killed OUT

The package must be importable as `surf`. test_training_processes.py reads what they write.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.training import logs, state
from surf.surf_core.training.loop import run
from surf.surf_core.training.task import Batch, Recipe, Task
from torch import nn
from torch.utils.checkpoint import checkpoint

WIDTH = 12
SHORT = {"steps": 8, "batch": 4, "lr": 0.02, "warmup": 2, "precision": "fp32", "log_every": 1}
LONG = Recipe(**SHORT | {"steps": 40, "save_every": 3, "log_every": 2, "held_out_every": 7})


class ResidualBlocks(nn.Module):
    """Blocks of one layer with a residual, and a head."""

    checkpointing = False

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 3)
        self.seen = 0

    def forward(self, x):
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = x + torch.tanh(checkpoint(self._counted, block, x, use_reentrant=False))
            else:
                x = x + torch.tanh(self._counted(block, x))
        return self.head(x)

    def _counted(self, block, x):
        self.seen += 1
        return block(x)


class Toy(Task):
    """Regress a fixed function of random vectors."""

    def __init__(self, seed=0):
        self.seed, self.model = seed, None

    def build(self):
        self.model = ResidualBlocks()
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
        return self.model

    def batch(self, step, rank, world):
        samples = [self.sample(step, place) for place in range(rank, 4, world)]
        keys = tuple(f"{step}/{place}" for place in range(rank, 4, world))
        return Batch(tensors={"x": torch.stack(samples)}, keys=keys)

    def sample(self, step, place):
        generator = torch.Generator().manual_seed(self.seed + 1000 * step + place)
        return torch.randn(WIDTH, generator=generator)

    def loss(self, model, batch):
        x = batch.tensors["x"]
        return (model(x).float() - x[:, :3].sin() - x[:, 3:4]).square().mean()

    def held_out(self, model):
        x = torch.stack([self.sample(-1, place) for place in range(4)])
        return {"all": self.loss(model, Batch(tensors={"x": x}, keys=("",) * 4)).item()}

    def samples(self, model, folder, step):
        (folder / "picture.txt").write_text(str(self.held_out(model)["all"]))

    def export(self, weights, path, notes):
        save_file({name: value.contiguous() for name, value in weights.items()}, path)


class Poisoned(Toy):
    """The second process gets a bad sample at step 3."""

    def sample(self, step, place):
        return super().sample(step, place) * (float("nan") if (step, place) == (3, 1) else 1.0)


class Video(Toy):
    """The refiner on noise, for what FSDP does to its inputs and its checkpointing."""

    def build(self):
        config = RefinerConfig.tiny()
        model = SurfRefinerDiT(config)
        model.initialise(torch.Generator().manual_seed(0))
        nn.init.normal_(
            model.head.head.weight, std=0.05, generator=torch.Generator().manual_seed(1)
        )
        return model

    def batch(self, step, rank, world):
        places = range(rank, 2, world)
        shape = (RefinerConfig.tiny().latent_channels, 2, 4, 4)
        z = [torch.randn(shape, generator=torch.Generator().manual_seed(p)) for p in places]
        t = torch.tensor([701.0 + 3 * place for place in places])
        return Batch(tensors={"z": torch.stack(z), "t": t}, keys=tuple(map(str, places)))

    def loss(self, model, batch):
        z, t = batch.tensors["z"], batch.tensors["t"]
        context = torch.ones(len(z), 3, RefinerConfig.tiny().text_dim)
        return (model(z, t, context).float() - z).square().mean()

    def held_out(self, model):
        return {"all": self.loss(model, self.batch(0, 0, 1)).item()}


def together(out):
    """Several runs one after the other, in the two processes of this launch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    recipe = Recipe(**SHORT, held_out_every=4, sample_every=8)
    run(Toy(), recipe, out / "shards", shards=2, device="cpu")
    run(Toy(), recipe, out / "replicas", shards=1, device="cpu")
    run(Toy(), Recipe(**SHORT, micro=2, checkpointing=True), out / "micro", device="cpu")
    run(Toy(), Recipe(**SHORT, save_every=4), out / "half", max_minutes=0, device="cpu")
    video = SHORT | {"batch": 2, "steps": 3, "checkpointing": True, "held_out_every": 3}
    run(Video(), Recipe(**video), out / "video", device="cpu")
    run(Video(), Recipe(**video | {"precision": "bf16"}), out / "video16", device="cpu")
    try:
        run(Poisoned(), Recipe(**SHORT), out / "poisoned", device="cpu")
    except FloatingPointError as error:
        (out / f"poisoned-{dist.get_rank()}.txt").write_text(str(error))
    if dist.get_rank() == 1:
        refuse_files()
    try:
        run(Toy(), Recipe(**SHORT, save_every=4), out / "half", device="cpu")
    except OSError as error:
        (out / f"error-{dist.get_rank()}.txt").write_text(str(error))
    dist.destroy_process_group()


def refuse_files():
    """Let every shard that is written meet a full disk."""

    class FullDisk(state.dcp.filesystem.FileSystem):
        def create_stream(self, path, mode):
            return super().create_stream(Path("/dev/full") if "w" in mode else path, mode)

    made = state.dcp.FileSystemWriter.__init__

    def init(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self.fs = FullDisk()

    state.dcp.FileSystemWriter.__init__ = init


def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def dying(place):
    """Arrange for this process to die at one place of its third time there."""
    owner, name = {"write": (state.dcp.FileSystemWriter, "write_data"),
                   "publish": (state, "_publish"), "tidy": (state, "_tidy"),
                   "remove": (state.shutil, "rmtree"), "log": (logs.Log, "add")}[place]  # fmt: skip
    real, left = getattr(owner, name), [3]

    def counted(*args, **kwargs):
        left[0] -= 1
        if place == "log" or left[0]:
            done = real(*args, **kwargs)
            return die() if not left[0] else done
        return die()

    setattr(owner, name, counted)


def child_of(out, place):
    """Start a process that trains in `out`, and dies at `place`; no torch ran in this one yet."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        if place:
            dying(place)
        run(Toy(), LONG, out, device="cpu")
        os._exit(0)
    return child


def killed(out):
    """Run LONG in children, each killed at a place or at a random time, until one gets through.

    First once without being killed, into `whole`, in a child too.
    """
    draw = random.Random(0)
    places = ["write", "publish", "tidy", "remove", "log"] + [None] * 100
    kills = 0
    os.waitpid(child_of(out / "whole", None), 0)
    for place in places:
        child = child_of(out / "killed", place)
        if place is None and kills < 9:
            time.sleep(draw.uniform(0.02, 0.25))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        kills += 1
    (out / "kills.txt").write_text(str(kills))


if __name__ == "__main__":
    {"together": together, "killed": killed}[sys.argv[1]](Path(sys.argv[2]))
