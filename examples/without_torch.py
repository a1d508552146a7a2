"""Export the model once, then run it where there is no torch: an ONNX file, words, and NumPy.

python examples/without_torch.py [IMAGE] [WORDS]
"""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from ovsdino.edge import EdgeSegmenter
from ovsdino.edge.words import make_bank

image = sys.argv[1] if len(sys.argv) > 1 else files("sklearn") / "datasets/images/china.jpg"
words = sys.argv[2] if len(sys.argv) > 2 else "sky, temple, tree"

file = Path("outputs/nano.onnx")
if not file.is_file():  # in a process of its own, which needs torch and the extra "export"
    subprocess.run([sys.executable, "-m", "ovsdino", "export", "onnx", "--output", str(file)], check=True)

with EdgeSegmenter(file, make_bank(words)) as segmenter:
    for vocabulary in (words, "building, lake, boat"):  # other words need no other file
        segmenter.set_bank(make_bank(vocabulary))
        result = segmenter.segment(image)
        shares = ", ".join(f"{region.name} {region.area / result.labels.size:.0%}" for region in result)
        print(f"{shares}; {result.ms:.0f} ms with {segmenter.backend}")
result.save("outputs", stem="without_torch")

print("torch was imported:", "torch" in sys.modules)
