"""Teach the model a word of one's own from a few labeled images, and use it next to all others.

    python examples/own_classes.py [FOLDER]

FOLDER holds images/, labels/ (index PNGs, 255 for no label) and classes.json. Without one, a dahlia is labeled here.
"""

import json
import sys
from importlib.resources import files
from pathlib import Path

from PIL import Image, ImageDraw

import ovsdino
from ovsdino.data.datasets import open_folders
from ovsdino.train.adapt.session import adapt, choose_images, lesson_of

photograph = Image.open(files("sklearn") / "datasets/images/flower.jpg")
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/lesson")
if len(sys.argv) == 1:
    labels = Image.new("L", photograph.size, 1)
    ImageDraw.Draw(labels).ellipse((173, 86, 445, 354), fill=0)
    ImageDraw.Draw(labels).rectangle((270, 356, 640, 427), fill=255)  # another bloom, cut off
    for name, picture in (("images", photograph), ("labels", labels)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, left in enumerate((0, 40, 80, 120, 160)):
            picture.crop((left, 0, left + 480, 427)).save(folder / name / f"{number}.png")
    (folder / "classes.json").write_text(json.dumps(["dahlia", "background"]))

segmenter = ovsdino.load("nano")
lesson = lesson_of(open_folders(folder / "images", folder / "labels"))
learned = adapt(segmenter, lesson, choose_images(lesson))
for word in learned.words:
    print(f"{word['word']}: IoU on images held out {word['iou_before']:.2f} -> {word['iou_after']:.2f}")
learned.adapted.save("outputs/adapted.safetensors")  # for `--adapted FILE` of every command

result = segmenter.adapted_to(learned.adapted).segment(photograph, [*lesson.words, "plant"])
print({name: round(share, 3) for name, share in zip(result.all_names, result.fractions, strict=True)})
