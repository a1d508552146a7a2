"""One file for each subcommand: a frozen dataclass whose fields are its options and whose `run` returns the exit code.

Importing a command imports neither torch nor numpy; `run` imports what it needs.
"""
