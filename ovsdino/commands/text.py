"""`ovsdino text`: words in, a text bank for an exported model out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ovsdino.console import print_json
from ovsdino.errors import OVSDinoError
from ovsdino.options import SegmenterOptions

if TYPE_CHECKING:
    from ovsdino.edge.bank import TextBank
    from ovsdino.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Text(SegmenterOptions):
    """Write the text bank of a class list, which an exported model takes with the image.

    The shipped model's needs no torch, nor do those of a text tower that `ovsdino export text` wrote.
    """

    classes: str
    """Words, separated by commas; "car|automobile" is one class of two words, "static=building|tree" names it. Or a
    file of them, see `ovsdino segment`."""
    average_words: bool = False
    """Average the embeddings of a class's words. Default: a class is where any of its words is."""
    partition: bool | None = None
    """Every pixel gets one of the words. Default: contrast rows go along, if the model was trained with them, and
    pixels that are none of the words stay unlabeled; --no-partition adds them for any model."""
    tower: Path | None = None
    """Text tower of a model of CLIP's words, written by `ovsdino export text`: in place of --model, without torch."""
    output: Path = Path("bank.safetensors")
    """File to write."""
    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        from ovsdino.io.files import refuse_inputs
        from ovsdino.vocabulary import Vocabulary

        vocabulary = Vocabulary.of(self.classes, self.average_words)
        refuse_inputs([self.output], [*self.input_files, *([] if self.tower is None else [self.tower])])
        bank = self._bank(vocabulary)
        path = bank.save(self.output)
        if self.json:
            print_json(
                {
                    "output": str(path),
                    "model": bank.model,
                    "weights": bank.weights,
                    "classes": list(bank.names),
                    "shape": list(bank.text.shape),
                    "words": list(bank.words or (1,) * len(bank)),
                    "contrast": 0 if bank.contrast is None else len(bank.contrast),
                }
            )
        else:
            rival = "" if bank.contrast is None else f", among {len(bank.contrast)} contrast rows"
            print(f"{path}: {len(bank)} classes of {bank.model}{rival}: {', '.join(bank.names)}")
        return 0

    def _bank(self, vocabulary: Vocabulary) -> TextBank:
        """Return the bank, by the model in torch; without torch by NumPy or an exported tower."""
        from ovsdino.stream.words import bank_of

        if self.tower is not None:
            from ovsdino.edge.clip_tower import ClipTower

            if self.input_files:
                raise OVSDinoError("--tower holds its weights: leave out the other files, or export it with them")
            return ClipTower.load(self.tower).bank(vocabulary, self.partition)
        try:
            import torch  # noqa: F401
        except ModuleNotFoundError as error:
            if self.model != "nano":
                raise OVSDinoError(
                    f"this needs torch for the words of {self.model}: pip install 'ovsdino[torch]', or take a text "
                    f"tower that `ovsdino export text --model {self.model}` wrote where torch is: --tower FILE"
                ) from error
            if self.input_files:
                raise
            from ovsdino.edge.words import make_bank

            return make_bank(vocabulary, self.partition)
        return bank_of(self.load(), vocabulary, self.partition)
