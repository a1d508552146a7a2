"""Files on disk: written whole or not at all, read with one rule for damaged ones."""
