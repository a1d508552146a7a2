"""Segment a photograph: a mask for each word, a picture of them, and what each one covers.

python examples/photograph.py [IMAGE] [WORDS]
"""

import sys
from importlib.resources import files

import ovsdino

image = sys.argv[1] if len(sys.argv) > 1 else files("sklearn") / "datasets/images/china.jpg"
words = sys.argv[2] if len(sys.argv) > 2 else "sky, temple|pagoda, tree, person"

result = ovsdino.segment(image, words)

for region in result:  # the classes that were found; `result.mask("sky")` is (H, W) bool
    print(f"{region.name}: {region.area / result.labels.size:.1%} of the image, confidence {region.score:.2f}")
missing = [name for name, found in zip(result.names, result.found, strict=True) if not found]
print("not found:", ", ".join(missing) or "none")

written = result.save("outputs")  # the overlay, and the labels as a PNG
print(written["overlay"])
