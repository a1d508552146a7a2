"""Put trained weights into the package: `python -m ovsdino.train.package RUN/last.safetensors --name nano`."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ovsdino.io.files import atomic_write
from ovsdino.models import shipped, weights
from ovsdino.models.backbone import num_parameters
from ovsdino.models.zoo import build_model
from ovsdino.options import data_root
from ovsdino.parsing import Argument, run_script
from ovsdino.train.calibrated import calibrate_file


@dataclass(frozen=True, kw_only=True)
class Package:
    """Copy trained weights into the package, with their entry in its manifest."""

    weights: Annotated[Path, Argument("WEIGHTS.safetensors")]
    """File that a run wrote."""
    name: str = "nano"
    """Model that they are of."""
    calibrate: tuple[str, ...] = ()
    """Data sets, as `camvid voc21`, on whose training images a copy of the weights is calibrated first: the temperature
    of its confidences, and which images it knows. Default: the weights are taken as they are."""
    root: Path | None = None
    """Folder with the data sets' zips. Default: $OVSDINO_DATA."""
    limit: int | None = None
    """Calibrate on the first N images of each data set only."""

    def run(self) -> int:
        """Check the weights against the model, copy them, and write the manifest; return the exit code.

        Raises:
            OVSDinoError: The file is damaged, or does not fit the model; or a data set is missing.
        """
        state = weights.read_safetensors(self.weights)
        model = build_model(self.name, decoder=any(key.startswith("decoder.") for key in state))
        weights.load_state(model, state, str(self.weights))
        data = self._calibrated() if self.calibrate else self.weights.read_bytes()
        file = f"{self.name}.safetensors"
        entry = shipped.Packaged(
            file=file, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), parameters=num_parameters(model)
        )
        entries = {**shipped.manifest(), self.name: entry}
        text = json.dumps({name: vars(e) for name, e in sorted(entries.items())}, indent=2) + "\n"
        for path, content in ((shipped.WEIGHTS / file, data), (shipped.MANIFEST, text.encode())):
            with atomic_write(path) as target:
                target.write(content)
        print(f"{file}: {len(data) / 1e6:.2f} MB, {entry.parameters / 1e6:.2f} M parameters")
        return 0

    def _calibrated(self) -> bytes:
        """Return the file with its measured figures, and print them."""
        root = data_root(self.root)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / self.weights.name
            with atomic_write(copy) as target:
                target.write(self.weights.read_bytes())
            figures = calibrate_file(copy, self.name, self.calibrate, root, self.limit)
            data = copy.read_bytes()
        errors = ", ".join(f"{name} {before:.3f} -> {after:.3f}" for name, (before, after) in figures["ece"].items())
        print(f"temperature {figures['temperature']:.3f}; calibration error on training images: {errors}")
        print(f"novelty: {figures['images']} images, limit {figures['novelty_limit']:.3f}")
        return data


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_script(Package, "python -m ovsdino.train.package", argv)


if __name__ == "__main__":
    raise SystemExit(main())
