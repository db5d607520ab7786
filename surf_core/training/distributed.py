"""Join the processes of torchrun, shard the model over them, and reduce numbers.

    torchrun --nproc-per-node 8 -m ...                                       one machine
    torchrun --nnodes 3 --nproc-per-node 8 --rdzv-backend c10d ... -m ...    three

Weights, gradients and optimizer states are sharded within a machine and replicated over machines
(HSDP). Without torchrun a run is one process, and the model is not sharded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The processes of a run, and which of them this one is."""

    device: torch.device
    """Device of this process."""
    rank: int = 0
    """Rank of this process."""
    size: int = 1
    """Number of processes."""
    mesh: DeviceMesh | None = None
    """(replicas, shards) of the processes; None for one process."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files."""
        return self.rank == 0

    def mean(self, *values: float) -> list[float]:
        """Average numbers over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return (total / self.size).tolist()

    def gather(self, value: object) -> list:
        """Gather an object of every process, by rank; a barrier."""
        if self.size == 1:
            return [value]
        values: list[object] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def processes(device: str | None = None, shards: int | None = None) -> Iterator[World]:
    """Join the processes that torchrun started, or run as the only one.

    Args:
        device: "cuda" or "cpu"; by default CUDA if available.
        shards: processes that shard one copy of the model; by default the GPUs of a machine, or
            all processes on CPUs.

    Raises:
        ValueError: processes that do not divide into groups of `shards`.
    """
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    mine = not dist.is_initialized() and dist.is_torchelastic_launched()
    where = torch.device(kind)
    if kind == "cuda":
        where = torch.device(kind, dist.get_node_local_rank(fallback_rank=0))
        torch.cuda.set_device(where)
    if mine:
        dist.init_process_group(BACKENDS[kind])
    size = dist.get_world_size() if dist.is_initialized() else 1
    if size == 1:
        yield World(device=where)
    else:
        yield World(device=where, rank=dist.get_rank(), size=size, mesh=_mesh(kind, size, shards))
    # Not after an error: other processes may wait in a collective, until torchrun ends them.
    if mine:
        dist.destroy_process_group()


def _mesh(kind: str, size: int, shards: int | None) -> DeviceMesh:
    shards = shards or min(size, torch.cuda.device_count() if kind == "cuda" else size)
    if size % shards:
        raise ValueError(
            f"expected processes in groups of {shards}, got {size}; "
            "start as many on every machine, or name the shards."
        )
    return init_device_mesh(kind, (size // shards, shards), mesh_dim_names=("replica", "shard"))


def shard_model(model: nn.Module, world: World, precision: str) -> nn.Module:
    """Move the model to its device and, with several processes, shard it by FSDP2; in place.

    A block's weights are gathered when it runs, in bf16 if that is the precision; gradients are
    reduced in fp32.
    """
    if world.mesh is None:
        return model.to(world.device)
    half = torch.bfloat16 if precision == "bf16" else None
    # Inputs are not cast: timesteps need more precision than bf16, and autocast casts the rest.
    policy = MixedPrecisionPolicy(
        param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for module in (*getattr(model, "blocks", ()), model):
        fully_shard(module, mesh=world.mesh, mp_policy=policy)
    return model
