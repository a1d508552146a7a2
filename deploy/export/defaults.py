"""Defaults and thresholds of an export, which its options show and its functions keep to."""

from __future__ import annotations

from typing import Literal

__all__ = ["AGREEMENT", "BAKED_AGREEMENT", "CLASSES", "CONTRAST", "COSINE", "WORDS", "Backend", "Precision"]

Backend = Literal["tensorrt", "tensorrt_rtx"]
Precision = Literal["float32", "float16", "bfloat16"]
CLASSES = (1, 256)  # least and most rows of the text bank
WORDS = (1, 16)  # least and most words of a class, of a graph that takes groups of rows
CONTRAST = (1, 256)  # least and most contrast rows
COSINE = 0.999  # least cosine of the logits, for the worst image
AGREEMENT = 0.995  # least share of pixels with the same label
BAKED_AGREEMENT = 0.9999  # the same of a graph with the words inside, against the graph that it was made from
