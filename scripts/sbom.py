"""Write a software bill of materials of what constraints.txt pins: CycloneDX 1.6, JSON.

    python scripts/sbom.py build/sbom.json

Every package is there with its version, its purl and the SHA-256 of each file that pip may take, and with its license
where it is installed. The serial number is made of the content, so the same pins give the same file.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PIN = re.compile(r"^(?P<name>[a-z0-9.-]+)==(?P<version>[\w.]+)(?: ; (?P<marker>.+))?$")


def pins(text: str) -> list[tuple[str, str, str, list[str]]]:
    """Return (name, version, marker or "", hashes) of each requirement of a constraints file.

    Raises:
        ValueError: A line is not a pin.
    """
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        hashes = [word.removeprefix("--hash=sha256:") for word in words if word.startswith("--hash=sha256:")]
        match = PIN.match(" ".join(word for word in words if not word.startswith("--hash")))
        if match is None:
            raise ValueError(f"not a pin: {line[:80]}")
        found.append((match["name"], match["version"], match["marker"] or "", hashes))
    return found


def license_of(name: str, version: str) -> str | None:
    """Return the license that an installed package states in a line, None where it is not installed or says none."""
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    if package.version != version:
        return None
    expression = package.metadata.get("License-Expression")
    classifiers = package.metadata.get_all("Classifier") or []
    stated = [line.split(" :: ")[-1] for line in classifiers if line.startswith("License")]
    text = (package.metadata.get("License") or "").strip()
    return expression or " AND ".join(stated) or (text if text and "\n" not in text else None)


def component(name: str, version: str, marker: str, hashes: list[str]) -> dict[str, Any]:
    """Return one component; `bom-ref` tells releases for other Pythons apart."""
    purl = f"pkg:pypi/{name}@{version}"
    entry: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": one} for one in hashes],
    }
    stated = license_of(name, version)
    if stated:
        entry["licenses"] = [{"license": {"name": stated}}]
    if marker:
        entry["properties"] = [{"name": "python:marker", "value": marker}]
    return entry


def bill(version: str, text: str) -> dict[str, Any]:
    """Return the bill of materials of a release.

    Args:
        version: Of ovsdino.
        text: Content of constraints.txt.
    """
    components = [component(*pin) for pin in pins(text)]
    ours = {"type": "application", "bom-ref": "ovsdino", "name": "ovsdino", "version": version}
    ours["licenses"] = [{"license": {"id": "Apache-2.0"}}]  # type: ignore[assignment]
    serial = uuid.uuid5(uuid.NAMESPACE_OID, f"ovsdino {version} {text}")
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"component": ours},
        "components": components,
        "dependencies": [{"ref": "ovsdino", "dependsOn": [one["bom-ref"] for one in components]}],
    }


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: sbom.py FILE.json", file=sys.stderr)
        return 2
    version = (ROOT / "pyproject.toml").read_text().split('\nversion = "')[1].split('"')[0]
    found = bill(version, (ROOT / "constraints.txt").read_text())
    path = Path(argv[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")  # the package, and its atomic_write, may be absent
    part.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(part, path)
    print(f"wrote {path}: {len(found['components'])} components")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
