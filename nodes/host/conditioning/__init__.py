"""CONDITIONING at another size: its maps and areas, the size that they were made for, a resize."""

from .areas import check_areas
from .grid import Conditioning, Grid, SizeChange
from .low import low_conds
from .made_for import Pixels, check_made_for, source_cells, with_made_for
from .resize import carry

__all__ = [
    "Conditioning",
    "Grid",
    "Pixels",
    "SizeChange",
    "carry",
    "check_areas",
    "check_made_for",
    "low_conds",
    "source_cells",
    "with_made_for",
]
