"""Name the runtime where scripts look for it: ``from ovsdino.edge.segmenter import EdgeSegmenter``."""

from ovsdino.edge.segmenter import EdgeResult, EdgeSegmenter

__all__ = ["EdgeResult", "EdgeSegmenter"]
