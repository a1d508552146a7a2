"""`python -m ovsdino` is the command `ovsdino`."""

from ovsdino.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
