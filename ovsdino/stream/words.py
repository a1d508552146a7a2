"""Read words while a model runs: words in, the text bank that its exported file takes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovsdino.edge.bank import TextBank
from ovsdino.edge.clip_tower import ClipTower
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError
from ovsdino.vocabulary import Classes, Vocabulary

if TYPE_CHECKING:
    from ovsdino.pipeline import Segmenter

__all__ = ["WordReader", "bank_of"]

REMEDY = "export both of the same files"


class WordReader:
    """A function from words to a text bank, without torch for the shipped nano.

    The text side of another model, or of other weights, is loaded with torch at the first call, unless it is given as a
    file that needs none.

    Args:
        sidecar: The sidecar of the exported file.
        checkpoint: Weights that the file was exported from, where they are not the shipped ones.
        partition: See `ovsdino.edge.EdgeSegmenter`; contrast rows are left out where the file takes none.
        tower: Text tower of the same model.

    Raises:
        OVSDinoError: The tower is of other weights than the file.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        checkpoint: Path | None = None,
        partition: bool | None = None,
        tower: ClipTower | None = None,
    ) -> None:
        if tower is not None and tower.facts.weights != sidecar.weights:
            raise OVSDinoError(f"{tower.name}: its words are of other weights than {sidecar.file}; {REMEDY}")
        self._tower = tower
        self._model, self._checkpoint = sidecar.model, checkpoint
        self._partition = partition if sidecar.grouped else True
        self._average = not sidecar.grouped
        self._segmenter: Segmenter | None = None

    def __call__(self, words: Classes) -> TextBank:
        """Return the bank of a class list, as `ovsdino text` makes it.

        Args:
            words: See `Vocabulary.of`.

        Raises:
            OVSDinoError: They are not a class list, or the model's text side cannot be loaded here.
        """
        vocabulary = Vocabulary.of(words, self._average)
        if self._tower is not None:
            return self._tower.bank(vocabulary, self._partition)
        if self._model == "nano" and self._checkpoint is None:
            from ovsdino.edge.words import make_bank

            return make_bank(vocabulary, self._partition)
        if self._segmenter is None:
            from ovsdino.options import SegmenterOptions

            self._segmenter = SegmenterOptions(model=self._model, checkpoint=self._checkpoint, device="cpu").load()
        return bank_of(self._segmenter, vocabulary, self._partition)


def bank_of(segmenter: Segmenter, vocabulary: Vocabulary, partition: bool | None = None) -> TextBank:
    """Return the rows of a model in torch as a text bank.

    Args:
        segmenter: The model.
        vocabulary: The classes.
        partition: See `Segmenter.text_rows`.

    Raises:
        OVSDinoError: The model cannot encode the words.
    """
    from ovsdino.models.text_rows import TextRows
    from ovsdino.models.weights import weights_digest

    rows = segmenter.text_rows(vocabulary, partition)
    facts: dict[str, Any] = {"model": segmenter.name, "weights": weights_digest(segmenter.model)}
    if not isinstance(rows, TextRows):
        return TextBank(names=vocabulary.names, text=rows.cpu().numpy(), **facts)
    present = rows.words.any(-1)  # rows of zeros fill up
    if rows.contrast is not None and rows.contrast.any():
        facts["contrast"] = rows.contrast.cpu().numpy()
    words = rows.words[present].cpu().numpy()
    return TextBank(names=vocabulary.names, text=words, words=tuple(present.sum(1).tolist()), **facts)
