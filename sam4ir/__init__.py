"""sam4ir: image restoration networks trained with Segment Anything's masks, deployed as the plain network."""

__version__ = "0.1.0"
