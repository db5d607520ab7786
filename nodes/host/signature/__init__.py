"""Say what of a reference survived in a video, in words and as a picture."""

from .compare import compare
from .picture import draw_signature

__all__ = ["compare", "draw_signature"]
