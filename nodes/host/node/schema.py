"""Node declarations that an older host can read."""

import inspect
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

LOCALES = Path(__file__).parents[3] / "locales"


@cache
def translated_words() -> dict[str, list[str]]:
    """{English search word: the same in other languages}, of every locales/<language>/search.json.

    The front end searches titles and these words, and a host has no other place to translate them.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(LOCALES.glob("*/search.json")):
        for word, words in json.loads(path.read_text(encoding="utf-8")).items():
            found.setdefault(word, []).extend(words)
    return found


def declare(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call an io.Schema or io.*.Input with only the keywords that this host knows.

    One unknown keyword would keep the whole pack from loading. `advanced` goes through
    `extra_dict` where the host has that instead: the front end reads both alike.
    `search_aliases` get their translations.

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
    if words := kwargs.get("search_aliases"):
        others = [other for word in words for other in translated_words().get(word, [])]
        kwargs["search_aliases"] = [*words, *dict.fromkeys(others)]
    return make(*args, **kwargs)
