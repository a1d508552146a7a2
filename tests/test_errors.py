"""A message becomes one line that can be printed and that holds no password."""

from __future__ import annotations

import pytest

from ovsdino.errors import one_line, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://admin:secret@10.0.0.1:554/live?channel=1", "rtsp://***@10.0.0.1:554/live?channel=1"),
        ("rtsp://admin@10.0.0.1/live", "rtsp://***@10.0.0.1/live"),
        ("rtsp://u:p@ss/w#rd?@host/live cannot be opened", "rtsp://***@host/live cannot be opened"),
        ("two: http://a:b@c/ and https://d:e@f/", "two: http://***@c/ and https://***@f/"),
        ("rtsp://host/live?user=me&password=secret&channel=1", "rtsp://host/live?user=me&password=***&channel=1"),
        (
            'rtspsrc location=rtsp://u:p@h/1 user-pw="a b" ! appsink',
            "rtspsrc location=rtsp://***@h/1 user-pw=*** ! appsink",
        ),
        ("rtsp://10.0.0.1:554/live", "rtsp://10.0.0.1:554/live"),
        ("http://example.org/@me and me@example.org", "http://example.org/@me and me@example.org"),
        ("compass=north, frames/a=b.png", "compass=north, frames/a=b.png"),
    ],
)
def test_a_password_is_never_shown(text: str, shown: str) -> None:
    assert redact(text) == one_line(text) == shown


def test_bytes_of_a_name_outside_utf8_are_shown_as_escapes() -> None:
    assert one_line(b"a_\xe9\n\x1b[1m.jpg".decode("utf-8", "surrogateescape")) == "a_\\udce9 [1m.jpg"
