"""Turn a result into the two pictures and the list that viewer.js shows."""

from __future__ import annotations

import base64
import io
import itertools
from typing import Any

import numpy as np
from PIL import Image

from ovsdino.models.spelling import UNKNOWN_BELOW
from ovsdino.network import NOVEL
from ovsdino.results import Segmentation

__all__ = ["LONGEST_SIDE", "shown"]

LONGEST_SIDE = 1280  # of the picture in the browser, in pixels; labels are those of the whole image
_numbers = itertools.count(1)


def shown(result: Segmentation) -> dict[str, Any]:
    """Return a result as viewer.js takes it.

    Args:
        result: With its image.

    Returns:
        "photo" and "labels" (addresses that hold a JPEG and a PNG of one size; red + 256 green is a pixel's index into
        "classes", beyond them for none), "classes", "unlabeled" (share of the image), "times" and "number", which no
        other result has.
    """
    assert result.image is not None
    scale = min(1.0, LONGEST_SIDE / max(result.width, result.height))
    size = max(1, round(result.width * scale)), max(1, round(result.height * scale))
    columns = ((np.arange(size[0]) + 0.5) * result.width / size[0]).astype(int)
    rows = ((np.arange(size[1]) + 0.5) * result.height / size[1]).astype(int)
    labels = result.labels[rows[:, None], columns].astype(np.int64)
    coded = np.stack([labels & 255, labels >> 8, np.zeros_like(labels)], -1).astype(np.uint8)
    found = result.to_dict()
    classes = [
        {
            "name": entry["name"],
            "color": result.colors[index].tolist(),
            "found": entry["found"],
            "share": entry["fraction"],
            "score": entry["score"] if entry["found"] else None,
            "note": _note(entry),
        }
        for index, entry in enumerate(found["classes"][: len(result.names)])
    ]
    return {
        "photo": _address(Image.fromarray(result.image).resize(size, Image.Resampling.BILINEAR), "JPEG", quality=88),
        "labels": _address(Image.fromarray(coded), "PNG", compress_level=1),
        "classes": classes,
        "unlabeled": result.fractions[-1] if result.background else 0.0,
        "times": times(result),
        "number": next(_numbers),
    }


def times(result: Segmentation) -> str:
    """Return the milliseconds of the stages that took any, in a line."""
    stages = ", ".join(f"{name} {value:.0f}" for name, value in result.stages_ms.items() if value >= 0.5)
    strange = result.novelty is not None and result.novelty > NOVEL
    unlike = "; unlike the images that the model knows: do not rely on its labels" if strange else ""
    again = "" if "encode" in result.stages_ms else "; the image was encoded before"
    return f"{result.ms:.0f} ms" + (f" ({stages}{again})" if stages else "") + unlike


def _note(entry: dict[str, Any]) -> str:
    known = entry["familiarity"]
    if known is not None and known < UNKNOWN_BELOW:
        return "the model does not know this word: its mask means little"
    if not entry["found"]:
        return "not found in this image"
    return f"{entry['fraction']:.2%} of the image" + ("" if entry["score"] is None else f", {entry['score']:.0%} sure")


def _address(picture: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
