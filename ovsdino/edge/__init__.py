"""Run exported models with neither torch nor the package's own models in the process.

from ovsdino.edge import EdgeSegmenter

segmenter = EdgeSegmenter("nano_fp16_sm87.engine", "bank.safetensors")
result = segmenter.segment("street.jpg")
"""

from ovsdino.edge.bank import TextBank
from ovsdino.edge.segmenter import EdgeSegmenter

__all__ = ["EdgeSegmenter", "TextBank"]
