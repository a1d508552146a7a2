"""Label a folder of images for another tool: one COCO file, with an annotation for each connected part.

python examples/batch_to_coco.py [FOLDER] [WORDS]
"""

import json
import sys
from importlib.resources import files
from pathlib import Path

import ovsdino

folder = sys.argv[1] if len(sys.argv) > 1 else files("sklearn") / "datasets/images"
words = sys.argv[2] if len(sys.argv) > 2 else "sky, temple, tree, flower, leaf"

data = {"images": [], "categories": [], "annotations": []}
for number, result in enumerate(ovsdino.load("nano")(folder, words), 1):
    found = result.to_coco(image_id=number)
    data["categories"] = found["categories"]
    data["images"] += found["images"]
    data["annotations"] += found["annotations"]
    print(f"{result.source}: {len(found['annotations'])} parts")

Path("outputs").mkdir(exist_ok=True)
Path("outputs/annotations.json").write_text(json.dumps(data))
print("outputs/annotations.json: read it with pycocotools.coco.COCO, or load it into a labeling tool")
