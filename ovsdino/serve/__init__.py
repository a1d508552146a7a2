"""The HTTP endpoint and the page: one model, one thread that runs it, and limits on all that comes in."""
