"""Node declarations that an older host can read."""

import inspect
from collections.abc import Callable
from typing import Any


def declare(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call an io.Schema or io.*.Input with only the keywords that this host knows.

    One unknown keyword would keep the whole pack from loading. `advanced` goes through
    `extra_dict` where the host has that instead: the front end reads both alike.

    Args:
        make: io.Schema, io.Int.Input, io.Latent.Output, ...

    Returns:
        What `make` returns.
    """
    accepted = inspect.signature(make).parameters
    if any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        return make(*args, **kwargs)
    dropped = {name: kwargs.pop(name) for name in list(kwargs) if name not in accepted}
    if dropped.get("advanced") and "extra_dict" in accepted:
        kwargs["extra_dict"] = {**kwargs.get("extra_dict", {}), "advanced": True}
    return make(*args, **kwargs)
