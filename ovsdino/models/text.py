"""Text towers: words in, embeddings in the image features' space out.

`ClipTextTower` is the published baseline's: CLIP ViT-B/16 and Talk2DINO's projection. `HashedTextTower` is nano's: a
hashed subword table and a small attention, distilled from a sentence encoder, 1 M parameters, no vocabulary file.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.errors import OVSDinoError
from ovsdino.hub import offline

# Talk2DINO's seven templates (evaluation protocol).
TEMPLATES = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


class TextTower(nn.Module):
    """A module with `encode(names) -> (n, D)`."""

    def encode(self, names: Sequence[str]) -> Tensor:
        """Embeds each name; rows need not be of length one."""
        raise NotImplementedError


def fnv1a(text: str) -> int:
    """64-bit FNV-1a hash of the UTF-8 bytes: the same on every machine and in every process."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


WORDS_MAX = 8
PIECES_MAX = 32


@functools.lru_cache(maxsize=65536)
def word_pieces(word: str) -> tuple[int, ...]:
    """Hashes of a word: twice as a whole (two independent buckets), then its character 3- to 5-grams."""
    marked = f"<{word}>"
    grams = [marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1)]
    return tuple(fnv1a(piece) for piece in (f"0{marked}", f"1{marked}", *grams))[:PIECES_MAX]


class HashedTextTower(TextTower):
    """Hashed subwords -> word vectors -> one attention layer over the words -> D.

    A word vector is the sum of its two whole-word buckets and the mean of its character n-grams: words of the
    distillation list are remembered, others (plurals, compounds, misspellings) fall near the words they resemble.

    Args:
        embed_dim: output width D.
        width: table width.
        buckets: rows of the table.
    """

    def __init__(self, embed_dim: int, width: int, buckets: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.table = nn.Embedding(buckets, width)
        nn.init.normal_(self.table.weight, std=0.5)
        self.position = nn.Parameter(torch.zeros(WORDS_MAX, width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.pool = nn.Linear(width, 1)
        self.hidden = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, embed_dim)

    def tokenize(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns bucket ids (n, words, pieces), -1 where there is none, and word mask (n, words)."""
        split = [re.findall(r"\w+", name.lower().replace("_", " "))[:WORDS_MAX] or [""] for name in names]
        words = max(len(s) for s in split)
        ids = torch.full((len(split), words, PIECES_MAX), -1)
        for row, parts in enumerate(split):
            for column, word in enumerate(parts):
                pieces = [piece % self.buckets for piece in word_pieces(word)]
                ids[row, column, : len(pieces)] = torch.tensor(pieces)
        return ids, ids[:, :, 0] >= 0

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (n, words, pieces), mask (n, words) -> (n, D)."""
        present = (ids >= 0).unsqueeze(-1)
        pieces = self.table(ids.clamp_min(0)) * present
        grams = pieces[:, :, 2:].sum(2) / present[:, :, 2:].sum(2).clamp_min(1)
        x = self.norm(pieces[:, :, 0] + pieces[:, :, 1] + grams) + self.position[: ids.shape[1]]
        attended, _ = self.attention(x, x, x, key_padding_mask=~mask, need_weights=False)
        x = x + attended
        weight = self.pool(x).squeeze(-1).masked_fill(~mask, float("-inf")).softmax(1)
        pooled = (weight.unsqueeze(-1) * x).sum(1)
        return self.out(F.gelu(self.hidden(pooled)))

    def encode(self, names: Sequence[str]) -> Tensor:
        device = self.table.weight.device
        ids, mask = self.tokenize(names)
        with torch.no_grad():
            return self(ids.to(device), mask.to(device))


class ClipTextTower(TextTower):
    """open_clip's ViT-B-16 text encoder, seven templates averaged un-normalised, then `TalkProjection`.

    CLIP itself is fetched at the first use and is no part of the state dict: it is frozen and comes from elsewhere.

    Args:
        embed_dim: width D of the image features.
        weights: open_clip's name ("openai") or a local file; None leaves CLIP random.
    """

    def __init__(self, embed_dim: int, *, weights: str | None = "openai") -> None:
        super().__init__()
        self.weights = weights
        self.linear_layer, self.hidden_layers = talk_projection(512, embed_dim)

    @functools.cached_property
    def clip(self) -> tuple[Callable[[Tensor], Tensor], Callable[[list[str]], Tensor]]:
        """CLIP's text encoder and tokenizer.

        Raises:
            OVSDinoError: open_clip is not installed, or its weights cannot be had.
        """
        if self.weights == "openai" and offline():
            raise OVSDinoError(clip_by_hand("OVSDINO_OFFLINE is set"))
        try:
            import open_clip
        except ImportError as error:
            raise OVSDinoError("this model needs open_clip for its text: pip install 'ovsdino[clip]'") from error
        try:
            # openai's weights were trained with QuickGELU; plain "ViT-B-16" would compute something else with them.
            model = open_clip.create_model("ViT-B-16-quickgelu", self.weights)
        except Exception as error:  # the hub client raises many types; each means the same to the user
            raise OVSDinoError(clip_by_hand(type(error).__name__)) from error
        model.eval().requires_grad_(False)
        return model.encode_text, open_clip.get_tokenizer("ViT-B-16")

    def encode(self, names: Sequence[str]) -> Tensor:
        encode_text, tokenizer = self.clip
        rows = []
        with torch.no_grad():
            for name in names:
                prompts = [template.format(name) for template in TEMPLATES]
                rows.append(encode_text(tokenizer(prompts)).float().mean(0))
            x = self.linear_layer(torch.stack(rows).to(self.linear_layer.weight.device))
            for layer in self.hidden_layers:
                x = layer(torch.tanh(x))
            return x


def talk_projection(clip_dim: int, embed_dim: int) -> tuple[nn.Linear, nn.ModuleList]:
    """Talk2DINO's map from CLIP's text space into DINO's (linear, tanh, linear), named as in its checkpoints."""
    return nn.Linear(clip_dim, embed_dim), nn.ModuleList([nn.Linear(embed_dim, embed_dim)])


def clip_by_hand(reason: str) -> str:
    return (
        f"CLIP's text weights must be fetched and cannot be here ({reason}); fetch open_clip's openai ViT-B-16 file by "
        "hand and give it as clip_weights (--clip-weights FILE), or use --model nano, which needs no network"
    )
