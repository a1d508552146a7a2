"""`ovsdino calibrate`: the background's score, the temperature and the known images of a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ovsdino.commands.protocol_options import ProtocolOptions
from ovsdino.console import print_json, progress_bar
from ovsdino.options import data_root

if TYPE_CHECKING:
    from ovsdino.data.segmentation import SegmentationDataset
    from ovsdino.models.novelty import Gaussian
    from ovsdino.pipeline import Segmenter

FEWEST = 20  # images whose Gaussian says something of others


@dataclass(frozen=True, kw_only=True)
class Calibrate(ProtocolOptions):
    """Measure a trained model on training images, and write the figures into its checkpoint, where commands read them.

    The background's score, for a data set with a background class and a model without a contrast: the published score,
    0.55, is for a backbone without decoder, and training the decoder changes the scores. Only the words of each image
    are read: the score is taken at which label maps show these and no others best.

    The temperature, which makes confidences mean what they say, from the labels of pixels: logits are divided by it for
    good, and labels stay as they are. And which images are known, to warn of others.
    """

    split: str = "train"
    """Part of the data set; not the one that is reported."""
    protocol: Literal["talk2dino", "dinov3"] = "talk2dino"
    """Protocol to calibrate; evaluate with the same settings."""
    json: bool = False
    """Print one JSON object on stdout: background and f1, the protocol's own score before and f1_before; temperature,
    the expected calibration error at it and before; the limit of the images' distances; and where it was written."""

    def run(self) -> int:
        from ovsdino.data.datasets import open_dataset
        from ovsdino.eval.evaluate import read_class_names
        from ovsdino.models.calibration import write_measured
        from ovsdino.windows import Batches

        dataset = open_dataset(self.dataset, data_root(self.root), self.split)
        class_names = read_class_names(self.class_names) if self.class_names else {}
        self.changed_preset(self.protocol, 0)  # refuses a wrong option before the model is loaded
        segmenter = self.load()
        if self.batch_size is not None:
            segmenter.batches = Batches(self.batch_size)
        found: dict[str, Any] = {}
        if dataset.has_background and not segmenter.model.config.contrast:
            found |= self._background(segmenter, dataset, class_names)
        figures, known = self._confidences(segmenter, dataset, class_names)
        found |= figures
        if self.checkpoint is not None:
            background = found.get("background")
            write_measured(
                self.checkpoint,
                self.dataset,
                background=None if background is None else round(background, 5),
                known=known,
                temperature=figures["temperature"],
            )
        written = str(self.checkpoint) if self.checkpoint else None
        if self.json:
            facts = {"dataset": self.dataset, "split": self.split, "model": self.model}
            rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in found.items()}
            print_json({**facts, **rounded, "written": written})
        else:
            _tell(found)
            print(f"written into {written}" if written else "no checkpoint given: nothing is kept")
        return 0

    def _background(
        self, segmenter: Segmenter, dataset: SegmentationDataset, class_names: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the background's score, by words alone."""
        from ovsdino.eval.calibrate import calibrate

        protocol = self.changed_preset(self.protocol, segmenter.model.config.embed_dim)
        with progress_bar() as progress:
            task = progress.add_task(f"calibrate {self.dataset} {self.split}", total=None)
            result = calibrate(
                segmenter,
                dataset,
                protocol,
                class_names=class_names,
                limit=self.limit,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        return result.to_dict()

    def _confidences(
        self, segmenter: Segmenter, dataset: SegmentationDataset, class_names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Gaussian | None]:
        """Return temperature, calibration error before and after it, and the Gaussian of the images."""
        from ovsdino.eval.confidence import fit_temperature, sampled_error, sampled_logits
        from ovsdino.eval.evaluate import dataset_vocabulary
        from ovsdino.models.novelty import Gaussian

        vocabulary = dataset_vocabulary(
            dataset.names, class_names, self.average_words, has_background=dataset.has_background
        )
        with progress_bar() as progress:
            task = progress.add_task(f"confidences {self.dataset} {self.split}", total=None)
            logits, labels, pooled = sampled_logits(
                segmenter,
                dataset,
                vocabulary,
                limit=self.limit,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        temperature = fit_temperature(logits, labels)
        known = Gaussian.fit(pooled) if len(pooled) >= FEWEST else None
        figures = {
            "images": len(pooled),
            "temperature": temperature,
            "ece_before": sampled_error(logits, labels),
            "ece": sampled_error(logits / temperature, labels),
            "novelty_limit": None if known is None else known.limit,
        }
        return figures, known


def _tell(found: Mapping[str, Any]) -> None:
    """Print the figures for people."""
    if "background" in found:
        print(
            f"background {found['background']:.5f}: words of {found['images']} images shown with F1 {found['f1']:.3f}; "
            f"at the protocol's {found['before']}: {found['f1_before']:.3f}"
        )
    print(
        f"temperature {found['temperature']:.3f}: calibration error {found['ece_before']:.3f} -> {found['ece']:.3f} on "
        f"{found['images']} images"
    )
