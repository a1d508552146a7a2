"""Text towers: from words to embeddings in the image features' space.

`ClipTextTower` is the published baseline's: CLIP ViT-B/16 and Talk2DINO's projection. `HashedTextTower` is a hashed
subword table and a small attention, distilled from a sentence encoder, 1 M parameters, no vocabulary file.
`ovsdino.models.lexicon` stores the rows of 40 000 words. A sentence encoder itself is the tower of
`ovsdino.models.sentence`.
"""

from __future__ import annotations

import functools
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import sha256_of
from ovsdino.models.spelling import PIECES_MAX, WORDS_MAX, word_pieces, words_of
from ovsdino.models.weights import below, fetch, load_state, read_foreign

log = logging.getLogger("ovsdino")

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
PROMPTS_AT_ONCE = 64
CLIP_FILE = ("timm/vit_base_patch16_clip_224.openai", "open_clip_model.safetensors")  # open_clip's "openai" tag
CLIP_OPTION = "clip_weights (--clip-weights FILE; OpenAI's own ViT-B-16.pt serves as well)"
CLIP_ARCHIVE_SHA256 = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"  # named in OpenAI's own URL


class TextTower(nn.Module):
    """Map words to (n, D) by `project(read(names))`, of which only `project` is ever trained.

    Attributes:
        takes_templates: Whether `read` puts the words into templates; others read them bare.
    """

    takes_templates = True

    def encode(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Embed each name without gradients; rows need not be of length one. The arguments are those of `read`."""
        with torch.no_grad():
            return self.project(self.read(names, templates))

    def read(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return the rows of the frozen part, (n, width of the tower), which can be kept.

        Args:
            names: Words or phrases.
            templates: Sentences with a {} for the name, whose embeddings are averaged; None takes the tower's own. A
                tower that reads bare words has none and ignores them.
        """
        raise NotImplementedError

    def project(self, rows: Tensor) -> Tensor:
        """Map the rows of `read` to (n, D)."""
        return rows

    def familiarity(self, names: Sequence[str]) -> Tensor:
        """Return how well names are known, (n,) float32 in 0..1.

        One is a name whose every word was learnt. Between one half and one it is read as a known word that it
        resembles, zero says that a word of it is like none. A tower that was not told what it learnt returns ones.

        Args:
            names: Words or phrases.
        """
        return torch.ones(len(names))

    def read_as(self, name: str) -> str:
        """Return the known words that a name is read as; the name itself where that is so or nothing is known."""
        return name


def check_templates(templates: Sequence[str]) -> None:
    """Refuse a template without a place for the name.

    Raises:
        OVSDinoError: There is one.
    """
    for template in templates:
        if "{}" not in template:
            raise OVSDinoError(f"template {template!r} has no {{}} for the class name")


class HashedTextTower(TextTower):
    """Hashed subwords -> word vectors -> one attention layer over the words -> D.

    A word vector is the sum of its two whole-word buckets and the mean of its character n-grams: words of the
    distillation list are remembered, others (plurals, compounds, misspellings) fall near the words they resemble.

    Args:
        embed_dim: Output width D.
        width: Table width.
        buckets: Rows of the table.
    """

    takes_templates = False

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
        """Return bucket ids (n, words, pieces), -1 where there is none, and the word mask (n, words)."""
        split = [words_of(name)[:WORDS_MAX] or [""] for name in names]
        words = max(len(s) for s in split)
        ids = torch.full((len(split), words, PIECES_MAX), -1)
        for row, parts in enumerate(split):
            for column, word in enumerate(parts):
                pieces = [piece % self.buckets for piece in word_pieces(word)]
                ids[row, column, : len(pieces)] = torch.tensor(pieces)
        return ids, ids[:, :, 0] >= 0

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Map bucket ids (n, words, pieces) and the word mask (n, words) to (n, D)."""
        present = (ids >= 0).unsqueeze(-1)
        pieces = self.table(ids.clamp_min(0)) * present
        grams = pieces[:, :, 2:].sum(2) / present[:, :, 2:].sum(2).clamp_min(1)
        x = self.norm(pieces[:, :, 0] + pieces[:, :, 1] + grams) + self.position[: ids.shape[1]]
        attended, _ = self.attention(x, x, x, key_padding_mask=~mask, need_weights=False)
        x = x + attended
        weight = self.pool(x).squeeze(-1).masked_fill(~mask, float("-inf")).softmax(1)
        pooled = (weight.unsqueeze(-1) * x).sum(1)
        return self.out(F.gelu(self.hidden(pooled)))

    @torch.no_grad()
    def read(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return (n, D); see `TextTower.read`."""
        device = self.table.weight.device
        ids, mask = self.tokenize(names)
        return self(ids.to(device), mask.to(device))


class ClipTextTower(TextTower):
    """CLIP ViT-B/16's text encoder (open_clip), templates averaged un-normalized, then Talk2DINO's projection.

    CLIP itself is read at the first use and is not part of the state dict: it is frozen and comes from elsewhere.

    Args:
        embed_dim: Width D of the image features.
        weights: "openai" takes OpenAI's weights from the hub; a path, from a file (see `read_clip`); None leaves CLIP
            random, for timing and tests.
    """

    def __init__(self, embed_dim: int, *, weights: str | Path | None = "openai") -> None:
        super().__init__()
        self.weights = weights
        self.linear_layer, self.hidden_layers = talk_projection(512, embed_dim)

    @functools.cached_property
    def clip(self) -> tuple[Any, Any]:
        """CLIP without its image encoder, and open_clip's tokenizer.

        Raises:
            OVSDinoError: open_clip is not installed, or the weights cannot be had.
        """
        try:
            import open_clip
        except ImportError as error:
            raise OVSDinoError("this model needs open_clip for its text: pip install 'ovsdino[clip]'") from error
        # OpenAI's weights were trained with QuickGELU; plain "ViT-B-16" would compute something else with them.
        config = open_clip.get_model_config("ViT-B-16-quickgelu")
        # The image encoder is dropped below; at this size making it costs nothing (350 MB and 1.5 s otherwise).
        config["vision_cfg"] = {"layers": 1, "width": 64, "patch_size": 32, "image_size": 32}
        model = open_clip.CLIP(**config)
        del model.visual
        if self.weights is not None:
            path = fetch(*CLIP_FILE, CLIP_OPTION) if self.weights == "openai" else Path(self.weights)
            load_state(model, read_clip(path), f"{path} (CLIP ViT-B-16)", partial=("logit_scale",))
        return model.eval().requires_grad_(False), open_clip.get_tokenizer("ViT-B-16")

    @torch.no_grad()
    def read(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return (n, 512); see `TextTower.read`.

        Raises:
            OVSDinoError: A template has no {}, or CLIP cannot be had.
        """
        templates = TEMPLATES if templates is None else templates
        check_templates(templates)
        model, tokenizer = self.clip
        device = self.linear_layer.weight.device
        model.to(device)
        prompts = [template.replace("{}", name) for name in names for template in templates]
        rows = []
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            part = prompts[start : start + PROMPTS_AT_ONCE]
            tokens = tokenizer(part)
            for prompt, last in zip(part, tokens[:, -1].tolist(), strict=True):
                if last and len(tokenizer.encode(prompt)) + 2 > tokens.shape[1]:
                    _warn_of_cut(prompt, tokens.shape[1])
            rows.append(model.encode_text(tokens.to(device)).float())
        return torch.cat(rows).unflatten(0, (len(names), len(templates))).mean(1)

    def project(self, rows: Tensor) -> Tensor:
        """Map (n, 512) to (n, D)."""
        x = self.linear_layer(rows)
        for layer in self.hidden_layers:
            x = layer(torch.tanh(x))
        return x


@functools.lru_cache(maxsize=65536)
def _warn_of_cut(prompt: str, most: int) -> None:
    """Say once that a text is cut: training reads its captions again and again."""
    log.warning("longer than the %d tokens that CLIP reads, cut: %r", most, prompt)


def talk_projection(clip_dim: int, embed_dim: int) -> tuple[nn.Linear, nn.ModuleList]:
    """Return Talk2DINO's map from CLIP's text space to DINO's (linear, tanh, linear), named as in its checkpoints."""
    return nn.Linear(clip_dim, embed_dim), nn.ModuleList([nn.Linear(embed_dim, embed_dim)])


def read_clip(path: str | Path) -> dict[str, Tensor]:
    """Return the text half of a CLIP ViT-B/16 file, under CLIP's own keys.

    Args:
        path: OpenAI's ViT-B-16.pt, or its state dict as .safetensors or .pth: open_clip's, with prefixes (`module.`,
            `clip_model.`), in half precision, inside a training checkpoint.

    Raises:
        OVSDinoError: The file is missing, unreadable, without CLIP's text encoder, or a TorchScript archive that is
            not OpenAI's.
    """
    path = Path(path)
    if _is_archive(path):
        # Loading an archive can run code that it brings along, so only the published one is let in.
        if sha256_of(path, "weight file") != CLIP_ARCHIVE_SHA256:
            raise OVSDinoError(
                f"{path}: a TorchScript archive (it can hold code), and not OpenAI's ViT-B-16.pt; give the state dict "
                "as .safetensors or .pth"
            )
        state = dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    else:
        state = read_foreign(path)
    state = below(state, "token_embedding.weight", f"{path}: no CLIP text encoder in it")
    left_out = ("visual.", "input_resolution", "context_length", "vocab_size", "logit_bias")
    return {key: value for key, value in state.items() if not key.startswith(left_out)}


def _is_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # a damaged zip raises errors of many types; torch could not open it either
        return False


def read_projection(path: str | Path) -> dict[str, Tensor]:
    """Return Talk2DINO's text projection, from its own file or out of a whole Talk2DINO model (keys `proj.*`).

    Raises:
        OVSDinoError: The file is missing, unreadable, or without projection.
    """
    message = f"{path}: no Talk2DINO projection in it (linear_layer.weight is missing)"
    return below(read_foreign(path), "linear_layer.weight", message)
