"""Write the list of the phrases that a configuration trains: `python -m ovsdino.train.mixed.grounded CONFIG.yaml`.

See `ovsdino.models.grounding`. Listed are the names of labels and their neighbors in the vocabulary, which lend their
rows; and ImageNet's classes, the pictures' words and the contrast's phrases, which keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

import ovsdino
from ovsdino.contrast import contrast_phrases
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write
from ovsdino.models.grounding import LENDS
from ovsdino.models.lexicon import LexiconTextTower
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.spelling import words_of
from ovsdino.models.zoo import create_model
from ovsdino.parsing import Argument, run_script
from ovsdino.settings import build_config, read_yaml
from ovsdino.train.dense.config import TextSupervision
from ovsdino.train.dense.text import neighbour_mask, read_vocabulary
from ovsdino.train.mixed.config import MixedConfig
from ovsdino.train.pretrain.hypernyms import imagenet_hypernyms
from ovsdino.train.pretrain.phrases import read_extra

AT_ONCE = 1000  # words that are encoded together
HEAD = """\
# The phrases that nano was trained on; ovsdino/models/grounding.py says what for. "+": pixel labels taught it.
# Written by python -m ovsdino.train.mixed.grounded.
"""


@dataclass(frozen=True, kw_only=True)
class Grounded:
    """List the phrases that a training showed, those that nano's text tower stores whole."""

    config: Annotated[Path, Argument("CONFIG.yaml")]
    """Configuration of the training; its vocabularies lie where it says."""
    extra: tuple[Path, ...] = ()
    """Files of further phrases that were shown, as words.zip: see `ovsdino.train.pretrain.distill_text --extra`."""
    output: Path = Path(ovsdino.__file__).parent / "grounded.txt"
    """File to write."""

    def run(self) -> int:
        """Write the list; return the exit code.

        Raises:
            OVSDinoError: A file is missing, the configuration is of another kind, or the tower has no lexicon.
        """
        config = build_config(MixedConfig, read_yaml(self.config), "")
        model = create_model(config.model)
        tower = model.text_tower
        if not isinstance(tower, LexiconTextTower):
            raise OVSDinoError(f"{config.model}: its text tower has no lexicon")
        tower.ground({})  # neighbors are told by the rows as they are stored
        folder = self.config.parent
        shown = {word: True for labels in config.labels.values() for word in taught(model, labels.text, config, folder)}
        table = imagenet_hypernyms()
        others = [name for synset in table.classes for name in table.names[synset]]
        for path in self.extra:
            others += read_extra(path)
        for word in (*others, *contrast_phrases()):
            shown.setdefault(" ".join(words_of(word)), False)
        held = config.exclude
        kept = sorted(word for word in shown if tower.stored_whole(word) and word not in held)
        lines = (f"{LENDS if shown[word] else ''}{word}\n" for word in kept)
        with atomic_write(self.output) as file:
            file.write((HEAD + "".join(lines)).encode())
        print(f"{self.output}: {len(kept)} phrases, {sum(shown[word] for word in kept)} of them taught by pixel labels")
        return 0


def taught(model: OVSDINO, text: TextSupervision, config: MixedConfig, folder: Path) -> Iterator[str]:
    """Yield the phrases of a label set's classes, and their neighbors in its vocabulary.

    Args:
        model: Encodes them.
        text: The label set's.
        config: Of the whole run.
        folder: The configuration's own.
    """
    for group in text.names.values():
        yield from (" ".join(words_of(phrase)) for phrase in group)
    if text.vocabulary:
        words = read_vocabulary(str(folder / text.vocabulary), config.exclude)
        near = neighbour_mask(encoded(model, words), [encoded(model, group) for group in text.names.values()], text)
        yield from (
            " ".join(words_of(word)) for word, is_near in zip(words, near.any(1).tolist(), strict=True) if is_near
        )


def encoded(model: OVSDINO, words: Sequence[str]) -> Tensor:
    """Return the rows of words, (n, D)."""
    return torch.cat([model.encode_text(words[at : at + AT_ONCE]) for at in range(0, len(words), AT_ONCE)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_script(Grounded, "python -m ovsdino.train.mixed.grounded", argv)


if __name__ == "__main__":
    raise SystemExit(main())
