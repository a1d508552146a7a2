"""The settings of a run on captions and pseudo-masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ovsdino.errors import OVSDinoError
from ovsdino.settings import Count, InputPath, Positive, Probability, Share, Size, Weight, Within
from ovsdino.train.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class WeakDataConfig:
    """The images, captions and pseudo-masks, and how they are varied.

    Attributes:
        kind: Of the captions: "jsonl", "coco" or "webdataset"; see `open_captions`.
        root: Folder or zip of the images; for "coco" the folder above `annotations`; for "webdataset" that of the tars.
        annotations: "jsonl": the file of captions. "coco": the split, for instance train2014. "webdataset": a pattern
            of the tars' names.
        masks: Folder that `ovsdino masks` wrote for the same images; "" trains without.
        sam_targets: Folder that `ovsdino masks --embeddings` wrote for the same images, for `loss.sam`.
        caption: "whole" takes a caption as one text; "phrases" takes each thing that it names; "both" compares
            images with whole captions, and masks with phrases.
        vocabulary: Of the phrases, a file of words to look for, one on each line; "" takes the parts between commas and
            "and".
        height, width: Of a crop in pixels, multiples of the patch size.
        area: Of a crop, in shares of the image (or of the caption's box) from the least to the largest.
        regions: For captions that have boxes. With 0 a sample is one caption's box and nothing around it. Otherwise a
            sample is a crop of an image, with up to this many of the captioned boxes that lie in it; the whole image
            when none does.
        aspect: A crop's aspect differs from width / height by up to this factor.
        flip: Probability of a mirror image.
        colour: Strength of the changes of brightness, contrast and (0.7 of it) saturation.
        masks_per_image: Pseudo-masks drawn for a crop, without replacement, by the root of their area.
        distractors: Phrases of other captions that join the texts of each step, drawn anew, as further negatives:
            a small batch has few texts to tell its own from.
        min_mask_area: A mask that covers less of the crop than this share is not drawn.
        workers: Processes that make batches; 0 makes them in the training process. The batches are the same.
        cache_features: Folder in which the frozen features of whole images and the grids of their masks are kept, for
            all runs that name it; relative to the working folder. Images then have one scale (`short_side` of the
            architecture), crops are of whole tokens, and `area`, `aspect` and the changes of color do not apply.
            "" keeps none.
        cache_mb: Megabytes of decoded images that all processes of the run on a machine keep together, each its share.
    """

    kind: Literal["jsonl", "coco", "webdataset"] = "jsonl"
    root: Annotated[str, InputPath()] = ""
    annotations: Annotated[str, InputPath(when=("kind", "jsonl"))] = ""
    masks: Annotated[str, InputPath()] = ""
    sam_targets: Annotated[str, InputPath()] = ""
    caption: Literal["phrases", "whole", "both"] = "phrases"
    vocabulary: Annotated[str, InputPath()] = ""
    height: Annotated[int, Within(1, 16384)] = 160
    width: Annotated[int, Within(1, 16384)] = 160
    area: Annotated[tuple[float, ...], Within(0, 1, above=True), Size(2, 2)] = (0.5, 1.0)
    regions: Annotated[int, Within(0, 10_000)] = 0
    aspect: Annotated[float, Within(1, 16)] = 1.33
    flip: Probability = 0.5
    colour: Annotated[float, Within(0, 1)] = 0.3
    masks_per_image: Annotated[int, Within(0, 10_000)] = 16
    distractors: Annotated[int, Within(0, 10_000)] = 0
    min_mask_area: Probability = 0.002
    workers: Annotated[int, Within(0, 1024)] = 0
    cache_features: Annotated[str, Size(0, 4096)] = ""
    cache_mb: Annotated[int, Within(1, 1_000_000)] = 2048


@dataclass(frozen=True, kw_only=True)
class WeakLossConfig:
    """Weights of the terms of training on captions and pseudo-masks; 0 leaves a term out.

    Attributes:
        contrast: InfoNCE between images, or regions, and their texts.
        mask: BCE + Dice of each pseudo-mask, its pooled embedding the classifier.
        pull: A pseudo-mask's embedding is one of its caption's texts.
        words: The decoder's answer to the words is one of them, the same one at every cell of a pseudo-mask.
        present: The decoder's answer has each of them in its region; needs pseudo-masks as `words` does.
        other: Cosine of a class that is none of the texts, in `words` and `present`, which every region may have: for
            captions that name some of what is there, such as image-level words. `words` then says which texts are
            absent, -log(1 - sum of their probabilities). 0 leaves it out.
        answers: Where `words` and `present` ask the decoder: "cells", at a quarter of a token, upsampling and all; or
            "tokens", before the upsampling, which then learns by `affinity` alone, at a fraction of the cost.
        least: Share of a region below which a text of its caption counts as missing.
        sam: The structure tokens approach SAM's embedding; needs `data.sam_targets` or `sam_checkpoint`.
        boundary: BCE + Dice of the boundary logits against the pseudo-masks' edges.
        preserve: F' stays near F, pooled in the pseudo-masks.
        affinity: The affinity of the guide, along which the decoder upsamples, says which cells the same pseudo-masks
            hold, see `ovsdino.train.weak.affinity`.
        distances: Of the neighbors of `affinity`, in cells of a quarter of a token.
        far: Cells of an image that are drawn at random in each step, all pairs of which count as much as the neighbors.
        structure: The same of all pairs of tokens, for the distances lambda |e_i - e_j|^2 of the SMD's heads.
        pool: How an image becomes one embedding. "heads": by one head of the class token's attention, the one that
            agrees most with the image's own caption, for all captions (Talk2DINO). "text": each text attends to the
            image itself, for a ViT without class token.
        sharpness: Of the attention of "text".
        adjust: How much of a text's prior is added to the scores of `pull`, `words` and `present` in training, 0 to 1.
        rarest: The least prior that `adjust` uses, in shares of all cells.
    """

    contrast: Weight = 1.0
    mask: Weight = 1.0
    pull: Weight = 0.5
    words: Weight = 1.0
    present: Weight = 1.0
    other: Annotated[float, Within(0, 1)] = 0.0
    answers: Literal["cells", "tokens"] = "cells"
    least: Share = 0.05
    sam: Weight = 0.0
    boundary: Weight = 0.3
    preserve: Weight = 0.2
    affinity: Weight = 0.0
    distances: Annotated[tuple[int, ...], Within(1, 64), Size(1, 8)] = (1, 2)
    far: Annotated[int, Within(2, 4096)] = 192
    structure: Weight = 0.0
    pool: Literal["text", "heads"] = "text"
    sharpness: Annotated[float, Within(0, 10_000)] = 10.0
    adjust: Probability = 1.0
    rarest: Share = 0.02


@dataclass(frozen=True, kw_only=True)
class RobustConfig:
    """Defenses against masks that may be wrong; the defaults switch all of them off.

    Attributes:
        quality_weights: A mask's losses weigh by its predicted_iou * stability_score.
        agreement: A mask's losses weigh by how well its edge follows the image's, see `agreement_weight`.
        trim: Share of a batch's masks that are dropped, those of the largest loss.
        trim_after: Steps before anything is dropped: the losses of an untrained model say nothing about the masks.
        merge: Probability that a mask is seen as its union with one that touches it.
        split: Probability that half of a mask is seen, cut along a random line.
    """

    quality_weights: bool = False
    agreement: bool = False
    trim: Annotated[float, Within(0, 0.99)] = 0.0
    trim_after: Count = 0
    merge: Probability = 0.0
    split: Probability = 0.0

    def __post_init__(self) -> None:
        if self.merge + self.split > 1:
            raise OVSDinoError(
                f"robust.merge {self.merge}, split {self.split}: expected no more than 1 together (a mask is merged or "
                "split, never both)"
            )


@dataclass(frozen=True, kw_only=True)
class ValConfig:
    """Labeled images that are measured during training and teach nothing. An empty `root` measures nothing.

    Attributes:
        prior: Of `OVSDINO.decode`, its tau, in a study's scores; the prior is estimated on training images. 0 is none.
    """

    dataset: str = "camvid"
    root: Annotated[str, InputPath()] = ""
    split: str = "val"
    prior: Annotated[float, Within(0, 10)] = 0.0


@dataclass(frozen=True, kw_only=True)
class WeakConfig(RunConfig):
    """A run on captions and pseudo-masks: no pixel label.

    Attributes:
        batch: Images of a step, over all processes.
        train_alignment: Train the map between image and text space: the backbone's linear head, or the CLIP tower's
            projection. False keeps it as it was loaded.
        projection_rate: Learning rate of a projection, or of lite2's head, that was loaded, in shares of `optim.lr`: it
            is trained already. One that begins at random, and a small ViT's head, are trained at the full rate.
        sam_checkpoint: Official SAM weights, for alignment targets made as they are needed.
        sam_variant: Of `sam_checkpoint`.
    """

    supervision: Literal["labels", "captions"] = "captions"
    batch: Positive = 16
    train_alignment: bool = True
    projection_rate: Probability = 0.1
    sam_checkpoint: Annotated[str, InputPath()] = ""
    sam_variant: Literal["vit_b", "vit_l", "vit_h"] = "vit_b"
    data: WeakDataConfig = field(default_factory=WeakDataConfig)
    loss: WeakLossConfig = field(default_factory=WeakLossConfig)
    robust: RobustConfig = field(default_factory=RobustConfig)
    val: ValConfig = field(default_factory=ValConfig)

    @property
    def weights_read(self) -> tuple[str, ...]:
        return (*super().weights_read, self.sam_checkpoint)
