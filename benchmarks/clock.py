"""How long a call takes, on a GPU until it has finished."""

import time
from collections.abc import Callable

import torch


def seconds(run: Callable[[], object], cuda: bool) -> float:
    """Time one call."""
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
