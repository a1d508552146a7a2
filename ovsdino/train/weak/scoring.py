"""The scores of a run of a study: borders, priors at inference, both readings of a data set with a background."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.data.spread import spread
from ovsdino.errors import OVSDinoError
from ovsdino.eval.boundary import BoundaryF1, trimap
from ovsdino.eval.calibrate import best_threshold, shown_below
from ovsdino.eval.evaluate import prior_of_images
from ovsdino.eval.metrics import Confusion
from ovsdino.models.ovsdino import ImageFeatures
from ovsdino.ops import upsample_argmax
from ovsdino.windows import bilinear

if TYPE_CHECKING:
    from ovsdino.train.weak.trainer import WeakTrainer

CALIBRATED_ON = 100  # training images, at most


def score(trainer: WeakTrainer) -> dict[str, float]:
    """Return a trained model's scores on its validation images, in 0..1.

    With a background (class 0, never a word) the words compete, and where the best one's cosine is below a threshold,
    `background_threshold`'s, it is background. The words alone are scored as well, over the other pixels. Contours are
    then those of the labels with `filled` gaps; pixels without a label are not scored.

    Returns:
        "miou", "boundary_f1", "trimap_miou", "pixel_accuracy"; with a background also "miou_words", the mIoU of the
        words alone, and "threshold".

    Raises:
        OVSDinoError: The configuration names no validation images.
    """
    data = trainer.val_set
    if data is None:
        raise OVSDinoError("the study's configuration names no validation images (val.root)")
    text = trainer.class_text(data)
    prior = class_prior(trainer, text)
    kinds, near = Confusion(len(data.names), data.ignore_index), Confusion(len(data.names), data.ignore_index)
    words = Confusion(len(data.names) - 1, data.ignore_index) if data.has_background else None
    f1 = BoundaryF1(len(data.names))
    threshold = background_threshold(trainer, text, prior) if data.has_background else 0.0
    for index, features in trainer.val_features():
        target = trainer.val_label(index)
        logits = answers(trainer, features, text, prior)
        labels = upsample_argmax(logits, target.shape)[0].cpu().numpy().astype(np.int64)
        target = target.astype(np.int64)
        ignore = target == data.ignore_index
        if words is not None:
            words.update(labels, np.where(ignore | (target == 0), data.ignore_index, target - 1))
            best = bilinear(cosines(trainer, logits), target.shape, False).amax(1)[0].cpu().numpy()
            labels = np.where(best < threshold, 0, labels + 1)
        whole, hidden = (target, ignore) if words is None else (filled(target, ignore), np.zeros_like(ignore))
        kinds.update(labels, target)
        near.update(labels, np.where(trimap(whole, hidden) & ~ignore, target, data.ignore_index))
        f1.update(labels, whole, hidden)
    per_class = f1.per_class()
    found = {
        "miou": kinds.miou(),
        "boundary_f1": float(np.nanmean(per_class)) if np.isfinite(per_class).any() else None,
        "trimap_miou": near.miou(),
        "pixel_accuracy": kinds.accuracy(),
    }
    if words is not None:
        found |= {"miou_words": words.miou(), "threshold": threshold}
    return {name: value or 0.0 for name, value in found.items()}


def answers(trainer: WeakTrainer, features: ImageFeatures, text: Tensor, prior: Tensor | None) -> Tensor:
    """Return the logits of an image, (1, K, h, w) float32, at the strength of the prior that `val.prior` names."""
    with torch.no_grad():
        return trainer.model.decode(features, text, prior, trainer.config.val.prior).float()


def class_prior(trainer: WeakTrainer, text: Tensor) -> Tensor | None:
    """Return how common each class is in the training images by the model's own account, (K,); None without a prior."""
    if not trainer.config.val.prior:
        return None
    images = (features for _, features in training_features(trainer))
    return prior_of_images(trainer.model, images, text, trainer.config.loss.rarest).to(text.device)


def background_threshold(trainer: WeakTrainer, text: Tensor, prior: Tensor | None) -> float:
    """Return the cosine below which a pixel is background, chosen on training images by their captions alone.

    See `ovsdino.eval.calibrate`: at the threshold the words that label maps show, on 5 % of an image or more, agree
    best with the words of the captions; no label is read.

    Args:
        trainer: Its training images and their captions.
        text: (K, D), of the classes without the background.
        prior: Of `class_prior`.

    Raises:
        OVSDinoError: No word is shown.
    """
    data = trainer.val_set
    assert data is not None
    said = captioned_classes(trainer, data)
    shown, there = [], []
    for name, features in training_features(trainer):
        shown.append(shown_below(cosines(trainer, answers(trainer, features, text, prior))[0]))
        there.append(np.isin(np.arange(len(text)), list(said.get(name, ()))))
    return best_threshold(np.stack(shown), np.stack(there))


def cosines(trainer: WeakTrainer, logits: Tensor) -> Tensor:
    """Return logits without the temperature."""
    return logits / trainer.model.log_scale.detach().exp()


def filled(target: np.ndarray, ignore: np.ndarray) -> np.ndarray:
    """Return labels (H, W) with the nearest label in place of none.

    VOC leaves a band of five pixels around its objects without a label, so that no two classes ever meet.
    """
    if not ignore.any() or ignore.all():
        return target
    nearest = distance_transform_edt(ignore, return_distances=False, return_indices=True)
    found: np.ndarray = target[tuple(nearest)]
    return found


def captioned_classes(trainer: WeakTrainer, data: SegmentationDataset) -> dict[str, set[int]]:
    """Return the classes, numbered without the background, that the captions of each training image name."""
    place = {name: i for i, name in enumerate(data.names[1:])}
    found: dict[str, set[int]] = {}
    for i in range(len(trainer.data.captions)):
        record = trainer.data.captions.record(i)
        texts = [text for caption in record.captions for text in trainer.data.texts(caption)]
        found.setdefault(record.image, set()).update(place[text] for text in texts if text in place)
    return found


def training_features(trainer: WeakTrainer) -> Iterator[tuple[str, ImageFeatures]]:
    """Yield up to `CALIBRATED_ON` training images, spread evenly, by name with their features."""
    names = list(dict.fromkeys(trainer.data.captions.record(i).image for i in range(len(trainer.data.captions))))
    for index in spread(len(names), CALIBRATED_ON):
        yield names[index], trainer.image_features(names[index])
