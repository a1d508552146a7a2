"""The runtime of exported models: needs neither torch nor the rest of the package's models."""
