"""The result of a segmentation: labels, names, scores, and the forms that other tools read."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ovsdino import formats
from ovsdino.data.rle import encode_mask
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write, refuse_inputs
from ovsdino.io.images import ImageLike, load_image
from ovsdino.label_maps import count_labels
from ovsdino.overlay import BACKGROUND_COLOR, class_colors, draw_overlay
from ovsdino.regions import Region, connected_parts
from ovsdino.vocabulary import BACKGROUND

__all__ = ["Segmentation"]

OUTPUTS = ("labels.png", "overlay.png", "overlay.jpg")  # ends of the names that `save` writes


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """One segmented image.

    Attributes:
        labels: (H, W) uint8, int16 or int32 at the size of the image: the index into `names`, or K for a pixel that
            belongs to none of them.
        names: The K class names.
        scores: For each class the mean confidence (largest softmax probability, 0..1) over its pixels, 0 where it has
            none; None if confidences were not computed.
        familiarity: How well the model knows each class's words, 0..1: 1 was learnt, at least 0.5 resembles what was,
            below means little (`ovsdino.models.text.TextTower.familiarity`); None if nobody asked.
        background: Whether pixels can have the label K: those below a threshold, or those that are none of the words.
        confidence: (H, W) float16, the largest softmax probability of each pixel, among the words and the contrast if
            it competes; None if it was not asked for.
        novelty: Distance of the image to those that the model knows, in units that one in a hundred of them exceeds;
            None where the model cannot tell (`ovsdino calibrate`).
        image: The (H, W, 3) uint8 image, kept for `overlay`; a result of `Segmenter.segment` holds a copy, so that the
            caller can use a frame's buffer again.
        source: Path of the image file, where there is one; `save` names its files after it.
        palette: RGB (0..255) of each of `names` where it is not the usual one; None for none.
        stages_ms: Milliseconds of each stage of this image.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    scores: tuple[float, ...] | None = None
    familiarity: tuple[float, ...] | None = None
    background: bool = False
    confidence: np.ndarray | None = field(default=None, repr=False)
    novelty: float | None = None
    image: np.ndarray | None = field(default=None, repr=False)
    source: str | None = None
    palette: tuple[tuple[int, int, int] | None, ...] | None = None
    stages_ms: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels must be (H, W) integers, got {labels.dtype} {labels.shape}")
        top = len(self.names) - (not self.background)
        if labels.size and not (labels.min() >= 0 and labels.max() <= top):
            raise ValueError(f"labels span {labels.min()}..{labels.max()}, expected 0..{top}")
        if self.background and any(name.casefold() == BACKGROUND for name in self.names):
            raise ValueError(f"a class is called {BACKGROUND!r}, as the label {len(self.names)} is")
        object.__setattr__(self, "labels", labels)

    def __repr__(self) -> str:
        """Return the size and what was found, the largest first, in a line."""
        shares = sorted(zip(self.names, self.fractions, strict=False), key=lambda entry: -entry[1])
        found = ", ".join(f"{name} {share:.1%}" for name, share in shares if share) or "nothing"
        return f"<Segmentation {self.width}x{self.height}: {found}>"

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.labels.shape[0])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.labels.shape[1])

    @property
    def ms(self) -> float:
        """Milliseconds from the image to its labels."""
        return float(sum(self.stages_ms.values()))

    @property
    def all_names(self) -> tuple[str, ...]:
        """The name of every label value: `names`, and "background" last if there is one."""
        return (*self.names, BACKGROUND) if self.background else self.names

    @cached_property
    def fractions(self) -> tuple[float, ...]:
        """Share of the image's pixels for every entry of `all_names`; they sum to 1."""
        counts = count_labels(self.labels, len(self.all_names))
        return tuple((counts / max(1, self.labels.size)).tolist())

    @property
    def found(self) -> tuple[bool, ...]:
        """Whether each of `names` has any pixel."""
        return tuple(fraction > 0 for fraction in self.fractions[: len(self.names)])

    @cached_property
    def colors(self) -> np.ndarray:
        """(len(all_names), 3) uint8 RGB; the same name has the same color in every image."""
        colors = class_colors(self.names)
        for row, color in enumerate(self.palette or ()):
            if color is not None:
                colors[row] = color
        return np.vstack([colors, [BACKGROUND_COLOR]]).astype(np.uint8) if self.background else colors

    def mask(self, name: str | int) -> np.ndarray:
        """Return the pixels of one class, by name or index, (H, W) bool.

        Raises:
            OVSDinoError: There is no such class.
        """
        names = self.all_names
        if isinstance(name, str):
            if name not in names:
                raise OVSDinoError(f"no class {name!r}; this segmentation has {', '.join(names[:20])}")
            name = names.index(name)
        if not 0 <= name < len(names):
            raise OVSDinoError(f"no class {name}; this segmentation has 0..{len(names) - 1}")
        return np.asarray(self.labels == name)

    def masks(self) -> np.ndarray:
        """Return one mask per class, without the background, (K, H, W) bool: for many classes prefer `mask`."""
        masks = np.empty((len(self.names), *self.labels.shape), dtype=bool)
        for index, mask in enumerate(masks):
            np.equal(self.labels, index, out=mask)
        return masks

    def __iter__(self) -> Iterator[Region]:
        """Yield a region for each class that has pixels, in the order of `names`."""
        for index in self._present():
            yield self.region(index)

    def region(self, name: str | int) -> Region:
        """Return all pixels of one class, by name or index, as a region; its box is empty where there are none.

        Raises:
            OVSDinoError: There is no such class.
        """
        mask = self.mask(name)
        index = self.all_names.index(name) if isinstance(name, str) else name
        left, top, right, bottom = box = _box(mask) if mask.any() else (0, 0, 0, 0)
        return Region(
            index=index,
            name=self.all_names[index],
            score=self.scores[index] if self.scores and index < len(self.scores) else None,
            box=box,
            inside=mask[top:bottom, left:right],
            size=(self.height, self.width),
        )

    def instances(self, least_pixels: int = 1) -> list[Region]:
        """Return the connected parts of each class, in the order of `names`, the largest of a class first.

        They are not objects that were told apart: two cars that touch in the picture are one part.

        Args:
            least_pixels: Smaller parts are left out.

        Returns:
            Regions; with the map of confidences (`confidence=True`) each has a score of its own, else that of its
            class.
        """
        found = []
        for whole in self:
            for (left, top, right, bottom), inside in connected_parts(whole.inside, least_pixels):
                x, y = whole.box[:2]
                box = (left + x, top + y, right + x, bottom + y)
                score = whole.score
                if self.confidence is not None:
                    score = float(self.confidence[box[1] : box[3], box[0] : box[2]][inside].mean(dtype=np.float64))
                found.append(replace(whole, box=box, inside=inside, score=score))
        return found

    def crop(self, name: str | int | Region) -> Image.Image:
        """Return the image cut to the box of a class or region, transparent where it is not, RGBA.

        Raises:
            OVSDinoError: There is no such class, it has no pixels, or this result does not hold its image.
        """
        region = name if isinstance(name, Region) else self.region(name)
        if not region.area:
            raise OVSDinoError(f"{region.name!r} was not found in this image: there is nothing to cut out")
        left, top, right, bottom = region.box
        pixels = self._picture(None)[top:bottom, left:right]
        return Image.fromarray(np.dstack([pixels, region.inside.astype(np.uint8) * 255]))

    def overlay(
        self,
        image: ImageLike | None = None,
        alpha: float = 0.5,
        *,
        boundaries: bool = True,
        names: bool = True,
        legend: bool = True,
    ) -> Image.Image:
        """Return the image with the class colors laid over it, borders, names and a legend.

        Args:
            image: Picture to draw on; the segmented image by default.
            alpha: Weight of the colors, 0..1.
            boundaries: Draw a light line where two classes meet.
            names: Write the name of each class on its region, where there is room.
            legend: Add a strip below with the names and shares; without it the picture has the image's size.

        Raises:
            OVSDinoError: There is no image, it has another size, or alpha is outside 0..1.
        """
        if not 0.0 <= alpha <= 1.0:
            raise OVSDinoError(f"alpha is {alpha}: expected 0..1")
        picture = self._picture(image)
        entries = list(zip(self.all_names, map(tuple, self.colors.tolist()), self.fractions, strict=True))
        return draw_overlay(
            picture, self.labels, entries, alpha=alpha, boundaries=boundaries, names=names, legend=legend
        )

    def plot(self, **options: Any) -> np.ndarray:
        """Return `overlay` as an array, (H, W, 3) uint8 RGB, higher by its legend; for OpenCV: `[..., ::-1]`."""
        return np.asarray(self.overlay(**options))

    def show(self, **options: Any) -> None:
        """Open `overlay` in the picture viewer of the system."""
        self.overlay(**options).show()

    def _repr_png_(self) -> bytes:
        """Return the picture that a notebook shows: the overlay, or the labels where the image is not held."""
        file = io.BytesIO()
        (self.to_image() if self.image is None else self.overlay()).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def to_image(self) -> Image.Image:
        """Return the labels as an indexed image with the class colors as palette; 16-bit gray beyond 256 values."""
        if len(self.all_names) > 256:
            return Image.fromarray(self.labels.astype(np.uint16))
        picture = Image.fromarray(self.labels.astype(np.uint8))
        picture.putpalette(self.colors.tobytes())
        return picture

    def to_png(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_image` as a PNG; return its path.

        Raises:
            OVSDinoError: The file cannot be written, or is the image that was segmented.
        """
        refuse_inputs([path], [self.source] if self.source else [])
        return _write(self.to_image(), path)

    def to_rle(self) -> list[dict[str, Any]]:
        """Return COCO run-length masks, one per class that has pixels.

        Returns:
            Dicts with "category_id" (index into `names`), "name", "score", "segmentation" ({"size": [H, W], "counts":
            text}), "area" in pixels and "bbox" [x, y, width, height]; ready for `json.dump` and pycocotools.

        Raises:
            OVSDinoError: pycocotools is not installed.
        """
        found = []
        for index in self._present():
            segmentation, area, box = encode_mask(self.labels == index)
            found.append(
                {
                    "category_id": index,
                    "name": self.names[index],
                    "score": self.scores[index] if self.scores else None,
                    "segmentation": segmentation,
                    "area": area,
                    "bbox": box,
                }
            )
        return found

    def to_supervision(self) -> Any:
        """Return `supervision.Detections`, one per class that has pixels, with masks, boxes and `data["class_name"]`.

        Raises:
            OVSDinoError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise OVSDinoError(
                "to_supervision needs supervision: pip install 'ovsdino[supervision]' or pip install supervision"
            ) from error
        present = self._present()
        if not present:
            return supervision.Detections.empty()
        masks = np.stack([self.labels == index for index in present])
        return supervision.Detections(
            xyxy=np.array([_box(mask) for mask in masks], dtype=np.float32),
            mask=masks,
            class_id=np.array(present),
            confidence=np.array([self.scores[i] for i in present], dtype=np.float32) if self.scores else None,
            data={"class_name": np.array([self.names[index] for index in present])},
        )

    def to_coco(self, image_id: int = 1, *, instances: bool = True) -> dict[str, Any]:
        """Return a COCO data set of this image: "images", "categories" (ids from 1) and "annotations" as run lengths.

        Args:
            image_id: Of this image.
            instances: An annotation for each connected part; False writes one per class.

        Raises:
            OVSDinoError: pycocotools is not installed.
        """
        return formats.coco(self._regions(instances), self.names, self.labels.shape, self._file_name(), image_id)

    def to_yolo(self) -> str:
        """Return YOLO's segmentation labels, a line "class x y x y ..." for each connected part, 0..1 of the sides.

        Raises:
            OVSDinoError: OpenCV is not installed.
        """
        return formats.yolo(list(self), self.labels.shape)

    def to_labelme(self) -> dict[str, Any]:
        """Return LabelMe's file, ready for `json.dump`: a polygon for each connected part, grouped.

        Raises:
            OVSDinoError: OpenCV is not installed.
        """
        return formats.labelme(self.instances(), self.labels.shape, self._file_name())

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` with a row for each entry of `all_names`: the "classes" of `to_dict`, and pixels.

        Raises:
            OVSDinoError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise OVSDinoError("to_pandas needs pandas: pip install pandas") from error
        table = pandas.DataFrame(self.to_dict()["classes"])
        table.insert(1, "pixels", count_labels(self.labels, len(self.all_names)))
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return size, classes and times, ready for JSON.

        Each entry of `all_names` has its fraction, score, whether it was found and how well its words are known; the
        last three are null for the background.
        """
        scores: list[float | None] = [round(s, 4) for s in self.scores] if self.scores else [None] * len(self.names)
        scores += [None] * self.background
        known: list[float | None] = [round(f, 4) for f in self.familiarity or ()] or [None] * len(self.names)
        known += [None] * self.background
        there = [*self.found, *[None] * self.background]
        return {
            "width": self.width,
            "height": self.height,
            "ms": round(self.ms, 3),
            "novelty": None if self.novelty is None else round(self.novelty, 3),
            "stages_ms": {stage: round(value, 3) for stage, value in self.stages_ms.items()},
            "classes": [
                {"name": name, "fraction": round(share, 6), "score": score, "found": found, "familiarity": familiarity}
                for name, share, score, found, familiarity in zip(
                    self.all_names, self.fractions, scores, there, known, strict=True
                )
            ],
        }

    def save(
        self,
        directory: str | os.PathLike[str],
        stem: str | None = None,
        *,
        alpha: float = 0.5,
        format: Literal["png", "jpg"] = "png",
    ) -> dict[str, Path]:
        """Write `<stem>_overlay.png` (if the result holds its image) and `<stem>_labels.png`.

        Files appear under their names only when complete; files of those names are replaced.

        Args:
            directory: Folder, made if it is missing.
            stem: Start of the names. Default: the stem of the image's file, so that a script that runs again replaces
                its own results; images of one stem in several folders want stems of their own. Pixels without a file
                become image, image_2, image_3, ...: the first that is not there yet, so that nothing is replaced.
            alpha: See `overlay`.
            format: Of the overlay; "jpg" (`<stem>_overlay.jpg`, quality 90) takes a twentieth of the time of a
                photograph's "png". Labels are a PNG in either case.

        Returns:
            The paths, under "overlay" and "labels".

        Raises:
            OVSDinoError: A file cannot be written, or is the image that was segmented; there is no such format.
        """
        if format not in ("png", "jpg"):
            raise OVSDinoError(f"format is {format!r}: expected png or jpg")
        folder = Path(directory)
        if stem is None:
            stem = Path(self.source).stem if self.source else _free_stem(folder)
        paths = {"labels": folder / f"{stem}_labels.png", "overlay": folder / f"{stem}_overlay.{format}"}
        refuse_inputs(paths.values(), [self.source] if self.source else [])
        written = {"labels": self.to_png(paths["labels"])}
        if self.image is not None:
            written["overlay"] = _write(self.overlay(alpha=alpha), paths["overlay"])
        return written

    def _picture(self, image: ImageLike | None) -> np.ndarray:
        """Return the pixels to draw on, the segmented image's by default.

        Raises:
            OVSDinoError: There is no image, or it has another size.
        """
        picture = self.image if image is None else load_image(image)
        if picture is None:
            raise OVSDinoError("this result does not hold its image: give one, as in result.overlay(image)")
        if picture.shape[:2] != self.labels.shape:
            raise OVSDinoError(
                f"the image is {picture.shape[1]}x{picture.shape[0]}, the labels are {self.width}x{self.height}"
            )
        return picture

    def _regions(self, instances: bool) -> list[Region]:
        return self.instances() if instances else list(self)

    def _file_name(self) -> str | None:
        return Path(self.source).name if self.source else None

    def _present(self) -> list[int]:
        return [index for index, fraction in enumerate(self.fractions[: len(self.names)]) if fraction > 0]


def _free_stem(folder: Path) -> str:
    """Return the first of image, image_2, image_3, ... of which no file is there, in few looks at the folder."""

    def stem(number: int) -> str:
        return "image" if number == 1 else f"image_{number}"

    def taken(number: int) -> bool:
        return any(os.path.lexists(folder / f"{stem(number)}_{end}") for end in OUTPUTS)

    low, high = 0, 1  # the largest number known to be taken, and one that may be free
    while taken(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if taken(middle) else (low, middle)
    return stem(high)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _write(picture: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a picture by its suffix: a JPEG, or else a PNG, at zlib's first level (of nine), in a fifth of the time."""
    options: dict[str, Any] = {"format": "PNG", "compress_level": 1}
    if Path(path).suffix == ".jpg":
        options = {"format": "JPEG", "quality": 90}
    with atomic_write(path) as file:
        picture.save(file, **options)
    return Path(path)
