"""Start several drafts, show them, choose one; save and load them."""

from .items import HOW, choose, drafts_of, flatten, listed, made_again, single, start_drafts
from .sheet import show

__all__ = [
    "HOW",
    "choose",
    "drafts_of",
    "flatten",
    "listed",
    "made_again",
    "show",
    "single",
    "start_drafts",
]
