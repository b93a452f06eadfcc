"""Convert any supported image source to model input: uint8 ``[height, width, 3]``, RGB."""

from hybrid_rt.images.encoded import MAX_PIXELS
from hybrid_rt.images.load import decode, load_batch, load_pixels, prepare
from hybrid_rt.images.sources import Source, Sources, as_sources, source_name

__all__ = [
    "MAX_PIXELS",
    "Source",
    "Sources",
    "as_sources",
    "decode",
    "load_batch",
    "load_pixels",
    "prepare",
    "source_name",
]
