"""Puts trained weights into the package: `python -m ovsdino.train.package RUN/last.safetensors --name nano`."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ovsdino.console import run_command
from ovsdino.io.files import atomic_write
from ovsdino.models import weights
from ovsdino.models.backbone import num_parameters
from ovsdino.models.zoo import build_model


def main(argv: Sequence[str] | None = None) -> int:
    """Checks the weights against the model, copies them to `ovsdino/weights` and writes their manifest entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--name", default="nano")
    args = parser.parse_args(argv)
    state = weights.read_safetensors(args.weights)
    model = build_model(args.name, decoder=any(key.startswith("decoder.") for key in state))
    weights.load_state(model, state, str(args.weights))
    data = args.weights.read_bytes()
    file = f"{args.name}.safetensors"
    entry = weights.Packaged(
        file=file, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), parameters=num_parameters(model)
    )
    entries = {**weights.manifest(), args.name: entry}
    text = json.dumps({name: vars(e) for name, e in sorted(entries.items())}, indent=2) + "\n"
    for path, content in ((weights.WEIGHTS / file, data), (weights.MANIFEST, text.encode())):
        with atomic_write(path) as target:
            target.write(content)
    print(f"{file}: {len(data) / 1e6:.2f} MB, {entry.parameters / 1e6:.2f} M parameters")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(sys.argv[1:], main))
