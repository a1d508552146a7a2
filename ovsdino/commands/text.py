"""`ovsdino text`: words in, a text bank for an exported model out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ovsdino.console import print_json
from ovsdino.options import SegmenterOptions

if TYPE_CHECKING:
    from ovsdino.edge.bank import TextBank
    from ovsdino.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Text(SegmenterOptions):
    """Write the text bank of a class list, which an exported model takes with the image.

    The shipped model's needs no torch.
    """

    classes: str
    """Words, separated by commas; "car|automobile" is one class of two words, "static=building|tree" names it. Or a
    file of them, see `ovsdino segment`."""
    average_words: bool = False
    """Average the embeddings of a class's words. Default: a class is where any of its words is."""
    partition: bool | None = None
    """Every pixel gets one of the words. Default: contrast rows go along, if the model was trained with them, and
    pixels that are none of the words stay unlabeled; --no-partition adds them for any model."""
    output: Path = Path("bank.safetensors")
    """File to write."""
    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        from ovsdino.io.files import refuse_inputs
        from ovsdino.vocabulary import Vocabulary

        vocabulary = Vocabulary.of(self.classes, self.average_words)
        refuse_inputs([self.output], self.input_files)
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
        """Return the bank, by the model in torch; the shipped model's in NumPy where torch is not installed."""
        from ovsdino.stream.words import bank_of

        try:
            import torch  # noqa: F401
        except ModuleNotFoundError:
            if self.input_files or self.model != "nano":
                raise
            from ovsdino.edge.words import make_bank

            return make_bank(vocabulary, self.partition)
        return bank_of(self.load(), vocabulary, self.partition)
