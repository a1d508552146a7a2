"""What a person sees: plain lines on a terminal of any width, help that is right, and one line for what went wrong."""

from __future__ import annotations
