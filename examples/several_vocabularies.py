"""Ask several vocabularies of one image: the network sees it once, each vocabulary takes what is left.

python examples/several_vocabularies.py [IMAGE] [WORDS ...]
"""

import sys
from importlib.resources import files

import ovsdino

image = sys.argv[1] if len(sys.argv) > 1 else files("sklearn") / "datasets/images/china.jpg"
vocabularies = sys.argv[2:] or [
    "sky, temple, tree, water",
    "building, lake, bush",
    {"made by people": ["building", "temple", "boat"], "grown": ["tree", "bush", "grass"]},
]

prepared = ovsdino.load("nano").set_image(image)
print(f"encoded once in {sum(prepared.stages_ms.values()):.0f} ms")

for number, words in enumerate(vocabularies):
    result = prepared.segment(words)
    print(f"{result.ms:.0f} ms:", ", ".join(f"{region.name} {region.area:,} pixels" for region in result))
    result.save("outputs", stem=f"vocabulary_{number}")

# The same image with another threshold, or as a partition in which every pixel gets one of the words:
surely = prepared.segment(vocabularies[0], least_certainty=0.99)
everywhere = prepared.segment(vocabularies[0], partition=True)
print("surely:", [region.name for region in surely], "everywhere:", [region.name for region in everywhere])
