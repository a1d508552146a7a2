"""Trace CLIP's text tower with a model's projection into one ONNX graph: tokens in, the rows of words out.

Attention in CLIP's text is causal, so what stands behind the end mark changes nothing: the graph takes sequences as
long as the longest text, and a word of two tokens costs a tenth of the 77 that CLIP pads to.
"""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ovsdino.deploy.export.compare import cosine
from ovsdino.deploy.export.trace import traced
from ovsdino.edge.clip_tokens import CONTEXT, MERGES
from ovsdino.edge.clip_tower import FACTS_KEY, MERGES_KEY, ClipTower, TowerFacts
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.text import TEMPLATES, ClipTextTower
from ovsdino.models.weights import weights_digest

__all__ = ["COSINE", "export_tower", "read_merges"]

COSINE = 0.9999  # least, of each row with PyTorch's
MOST_NAMES, MOST_TEMPLATES = 4096, 256
# Words of one token and of many, with an accent, a number and an ending.
PROBES = (
    "road",
    "traffic light",
    "café",
    "7-Eleven",
    "driver's seat",
    "a wall of old grey stone by the sea",
    "x " * 60,
)


class _Tower(nn.Module):
    """CLIP's text encoder and a model's projection, over the tokens of names in templates.

    Args:
        tower: Of the model that is exported.
    """

    def __init__(self, tower: ClipTextTower) -> None:
        super().__init__()
        self.clip = tower.clip[0].float()
        self.tower = tower

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T, L) int64 to rows (N, D) float32, the T templates of a name averaged."""
        clip: Any = self.clip
        flat, length = tokens.flatten(0, 1), tokens.shape[2]
        x = clip.token_embedding(flat) + clip.positional_embedding[:length]
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
        last = flat.argmax(1)  # the end mark is the largest number
        x = x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2]))[:, 0] @ clip.text_projection
        return self.tower.project(x.unflatten(0, tokens.shape[:2]).mean(1))


def export_tower(model: OVSDINO) -> tuple[bytes, float]:
    """Return the text tower of a model as an ONNX file, and the least cosine of its rows with PyTorch's.

    Args:
        model: A model of CLIP's words, on the CPU in eval mode.

    Raises:
        OVSDinoError: Its words are not CLIP's; open_clip or CLIP's weights cannot be had; torch cannot export it; or a
            row departs from PyTorch's.
    """
    tower, name = model.text_tower, model.config.name
    if not isinstance(tower, ClipTextTower):
        raise OVSDinoError(f"{name}: its words are not CLIP's; those of nano need no torch and no export")
    tower.clip  # noqa: B018  (read now, so that its errors are not the exporter's)
    try:
        graph = traced(
            _Tower(tower).eval(),
            (torch.zeros(3, len(TEMPLATES), 12, dtype=torch.int64),),
            input_names=["tokens"],
            output_names=["rows"],
            dynamic_shapes=[
                {
                    0: torch.export.Dim("N", min=1, max=MOST_NAMES),
                    1: torch.export.Dim("T", min=1, max=MOST_TEMPLATES),
                    2: torch.export.Dim("L", min=2, max=CONTEXT),
                }
            ],
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise OVSDinoError(f"{name}: torch cannot export its text: {one_line(error, 300)}") from error
    graph.producer_name = "ovsdino"
    facts = TowerFacts(
        model=name,
        weights=weights_digest(model),
        embed_dim=model.config.embed_dim,
        templates=TEMPLATES,
        contrast=model.config.contrast,
        cosine=1.0,
    )
    least = _compare(tower, _with(graph, facts))
    return _with(graph, replace(facts, cosine=least)), least


def _with(graph: onnx.ModelProto, facts: TowerFacts) -> bytes:
    """Return a graph as a file with its facts and CLIP's tokenizer."""
    onnx.helper.set_model_props(graph, {FACTS_KEY: facts.to_json(), MERGES_KEY: read_merges()})
    return bytes(graph.SerializeToString())


def _compare(tower: ClipTextTower, data: bytes) -> float:
    """Return the least cosine of a file's rows of `PROBES` with those of PyTorch.

    Raises:
        OVSDinoError: It is below `COSINE`.
    """
    expected, found = tower.encode(PROBES).numpy(), ClipTower(data, "text tower").encode(PROBES)
    least = min(cosine(a, b) for a, b in zip(found, expected, strict=True))
    if not least >= COSINE:
        raise OVSDinoError(f"the text tower's graph departs from PyTorch: cosine {least:.6f}, expected {COSINE}")
    return least


def read_merges() -> str:
    """Return the pairs of CLIP's tokenizer, out of open_clip's file."""
    from open_clip.tokenizer import default_bpe

    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    return "\n".join(lines[1 : 1 + MERGES])
