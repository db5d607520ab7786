"""CONDITIONING at another size: its maps and areas, the size that they were made for, a resize."""

from .areas import check_areas
from .grid import Conditioning, Grid, SizeChange, maps
from .guides import KEYFRAMES, check_keyframes, pad_cells
from .length import check_frames_beside
from .low import low_conds
from .made_for import KEY as MADE_FOR
from .made_for import Pixels, check_made_for, source_cells, with_made_for
from .resize import carry
from .text_width import check_text_width

__all__ = [
    "KEYFRAMES",
    "MADE_FOR",
    "Conditioning",
    "Grid",
    "Pixels",
    "SizeChange",
    "carry",
    "check_areas",
    "check_frames_beside",
    "check_keyframes",
    "check_made_for",
    "check_text_width",
    "low_conds",
    "maps",
    "pad_cells",
    "source_cells",
    "with_made_for",
]
