"""Calibrate trained weights on training images of several data sets together.

One temperature, by which every data set's confidences mean what they say as nearly as one number can, and one Gaussian
of the images that the model knows. Labels stay as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.data.datasets import open_dataset
from ovsdino.eval.confidence import fit_temperature, sampled_error, sampled_logits
from ovsdino.eval.evaluate import dataset_vocabulary
from ovsdino.models.calibration import write_measured
from ovsdino.models.novelty import Gaussian
from ovsdino.models.text_rows import ABSENT
from ovsdino.models.zoo import create_model
from ovsdino.pipeline import Segmenter

__all__ = ["calibrate_file"]


def calibrate_file(
    path: Path, model: str, datasets: Sequence[str], root: Path, limit: int | None = None
) -> dict[str, Any]:
    """Fit the temperature and the Gaussian, and put them into a weight file, in place of earlier ones.

    Words compete with the contrast vocabulary where the model was made for that.

    Args:
        path: The weights, .safetensors.
        model: Their model's name.
        datasets: Data sets whose training images are read.
        root: Folder that holds them.
        limit: Take the first so many images of each only.

    Returns:
        "temperature"; "images"; "novelty_limit"; "ece": for each data set [before, after], on its training images.

    Raises:
        OVSDinoError: A data set or the file cannot be read, or the weights are not the model's.
        ValueError: There are fewer than four images, or no labels.
    """
    segmenter = Segmenter(create_model(model, checkpoint=path))
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    pooled: list[np.ndarray] = []
    for name in datasets:
        data = open_dataset(name, root, "train")
        vocabulary = dataset_vocabulary(data.names, {}, has_background=data.has_background)
        found = sampled_logits(segmenter, data, vocabulary, limit=limit)
        logits.append(found[0])
        labels.append(found[1])
        pooled.append(found[2])
        print(f"{name}: {len(pooled[-1])} images, {len(labels[-1])} pixels", file=sys.stderr, flush=True)
    most = max(one.shape[1] for one in logits)
    temperature = fit_temperature(
        torch.cat([F.pad(one, (0, most - one.shape[1]), value=ABSENT) for one in logits]), torch.cat(labels)
    )
    images = np.concatenate(pooled)
    known = Gaussian.fit(images[np.random.default_rng(0).permutation(len(images))])
    write_measured(path, "+".join(datasets), known=known, temperature=temperature)
    return {
        "temperature": temperature,
        "images": len(images),
        "novelty_limit": known.limit,
        "ece": {
            name: [sampled_error(one, label), sampled_error(one / temperature, label)]
            for name, one, label in zip(datasets, logits, labels, strict=True)
        },
    }
