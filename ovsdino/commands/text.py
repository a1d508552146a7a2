"""`ovsdino text`: words in, a text bank for an exported model out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ovsdino.console import print_json
from ovsdino.options import SegmenterOptions


@dataclass(frozen=True, kw_only=True)
class Text(SegmenterOptions):
    """Write the text bank of a class list, which an exported model takes with the image."""

    classes: str
    """Words, separated by commas; "car|automobile" averages two words for one class."""
    output: Path = Path("bank.safetensors")
    """File to write."""
    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        from ovsdino.edge.bank import TextBank
        from ovsdino.io.files import refuse_inputs
        from ovsdino.models.weights import weights_digest
        from ovsdino.vocabulary import Vocabulary

        vocabulary = Vocabulary.of(self.classes)
        refuse_inputs([self.output], self.input_files)
        segmenter = self.load()
        bank = TextBank(
            names=vocabulary.names,
            text=segmenter.encode_text(vocabulary).cpu().numpy(),
            model=segmenter.name,
            weights=weights_digest(segmenter.model),
        )
        path = bank.save(self.output)
        if self.json:
            print_json(
                {
                    "output": str(path),
                    "model": bank.model,
                    "weights": bank.weights,
                    "classes": list(bank.names),
                    "shape": list(bank.text.shape),
                }
            )
        else:
            print(f"{path}: {len(bank)} classes of {bank.model}: {', '.join(bank.names)}")
        return 0
