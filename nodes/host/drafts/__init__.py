"""Start several drafts, show them, choose one; save and load them."""

from .files import check_draft_file, draft_names, fingerprint, graph_of, load, save
from .items import HOW, choose, drafts_of, flatten, listed, made_again, single, start_drafts
from .sheet import show

__all__ = [
    "HOW",
    "check_draft_file",
    "choose",
    "draft_names",
    "drafts_of",
    "fingerprint",
    "flatten",
    "graph_of",
    "listed",
    "load",
    "made_again",
    "save",
    "show",
    "single",
    "start_drafts",
]
