"""`POST /segment` and `GET /health`, over HTTP."""

from __future__ import annotations

import io
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from ovsdino.data.rle import decode_rle
from ovsdino.pipeline import Segmenter
from ovsdino.serve.server import application
from ovsdino.serve.worker import Worker
from tests.support.serving import LIMITS, picture, running

httpx = pytest.importorskip("httpx", reason="comes with gradio")

WORDS = "sky, grass, violin"


def post(server: str, data: bytes = b"", **fields: str) -> Any:
    return httpx.post(f"{server}/segment", files={"image": ("a.png", data or picture())}, data=fields, timeout=60)


def test_masks_areas_and_boxes_are_those_of_the_library(server: str, nano: Segmenter) -> None:
    found = post(server, classes=WORDS).json()
    expected = nano.segment(picture(), WORDS)
    assert (found["width"], found["height"]) == (64, 48)
    assert [entry["name"] for entry in found["classes"]] == list(expected.names)
    for entry, there in zip(found["classes"], expected.found, strict=True):
        mask = expected.mask(entry["name"])
        assert entry["found"] == there and entry["area"] == mask.sum()
        assert entry["fraction"] == pytest.approx(mask.mean(), abs=1e-6)
        if there:
            assert np.array_equal(decode_rle(entry["segmentation"], 48, 64), mask)
            rows, columns = np.nonzero(mask)
            x, y = columns.min(), rows.min()
            assert entry["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
        else:
            assert entry["segmentation"] is None and entry["bbox"] is None
    assert found["unlabeled"] == pytest.approx(1 - sum(entry["fraction"] for entry in found["classes"]), abs=1e-5)


def test_labels_come_as_a_png_and_the_overlay_as_a_picture(server: str, nano: Segmenter) -> None:
    answer = post(server, classes=WORDS, format="png")
    assert answer.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), nano.segment(picture(), WORDS).labels)
    overlay = Image.open(io.BytesIO(post(server, classes=WORDS, format="overlay").content))
    assert overlay.mode == "RGB" and overlay.width >= 64


def test_the_partition_and_the_confidence_are_taken(server: str, nano: Segmenter) -> None:
    assert post(server, classes="violin, dog", partition="true").json()["unlabeled"] == 0.0
    least = post(server, classes="sky, grass", partition="false", confidence="0.9").json()
    expected = nano.segment(picture(), "sky, grass", partition=False, background=0.9)
    assert [entry["area"] for entry in least["classes"]] == [expected.mask(name).sum() for name in expected.names]


def test_health_names_the_model(server: str) -> None:
    assert httpx.get(f"{server}/health").json().items() >= {"status": "ok", "model": "nano"}.items()


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "classes is missing"),
        ({"classes": " "}, "no classes given"),
        ({"classes": "a, a"}, "twice"),
        ({"classes": "a, b, c, d, e, f, g"}, "at most 6"),
        ({"classes": "x" * 5000}, "at most 6"),
        ({"classes": "/etc/classes.txt"}, "files of classes are not read here"),
        ({"classes": "a", "format": "bmp"}, "format is 'bmp'"),
        ({"classes": "a", "partition": "maybe"}, "partition is 'maybe'"),
        ({"classes": "a, b", "confidence": "2"}, "confidence is '2'"),
        ({"classes": "a, b", "confidence": "nan"}, "confidence is 'nan'"),
        ({"classes": "a", "confidence": "0.5", "partition": "true"}, "two classes or more"),
        ({"classes": "a", "other": "1"}, "unknown field 'other'"),
    ],
)
def test_a_bad_field_is_a_400_with_a_sentence(server: str, fields: dict[str, str], word: str) -> None:
    answer = post(server, **fields)
    assert answer.status_code == 400 and word in answer.json()["error"]
    assert list(answer.json()) == ["error"] and "\n" not in answer.json()["error"]


def test_a_bad_image_is_a_400_with_a_sentence(server: str) -> None:
    for data, word in ((b"hello", "not a JPEG"), (picture()[:60], "damaged"), (picture("GIF"), "not a JPEG")):
        answer = post(server, data, classes="sky")
        assert answer.status_code == 400 and word in answer.json()["error"]
    empty = httpx.post(f"{server}/segment", files={"image": ("a.png", b"")}, data={"classes": "sky"})
    assert empty.status_code == 400 and "empty" in empty.json()["error"]
    text = httpx.post(f"{server}/segment", files={"classes": ("c", b"x")}, data={"image": "a.png"})
    assert text.status_code == 400 and "a file" in text.json()["error"]


def test_what_is_no_form_is_refused(server: str) -> None:
    assert httpx.post(f"{server}/segment", json={"classes": "sky"}).status_code == 415
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert httpx.post(f"{server}/segment", content=b"--y\r\nnothing", headers=broken).status_code == 400
    two = [("image", ("a.png", picture())), ("image", ("b.png", picture()))]
    assert httpx.post(f"{server}/segment", files=two, data={"classes": "sky"}).status_code == 400


def test_other_addresses_and_methods_name_those_that_are_there(server: str) -> None:
    for answer, status in ((httpx.get(f"{server}/"), 404), (httpx.get(f"{server}/segment"), 405)):
        assert answer.status_code == status and "POST /segment" in answer.json()["error"]


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(server: str) -> None:
    for size in ((2000, 600), (20_000, 20_000)):
        file = io.BytesIO()
        Image.new("1", size).save(file, "PNG")
        answer = post(server, file.getvalue(), classes="sky")
        assert answer.status_code == 413 and "1 million pixels" in answer.json()["error"]


def test_a_body_that_is_too_large_is_refused_with_its_length_stated_or_not(server: str) -> None:
    stated = post(server, bytes(1_100_000), classes="sky")
    assert stated.status_code == 413 and "1 MB" in stated.json()["error"]

    def parts() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield bytes(65_536)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert httpx.post(f"{server}/segment", content=parts(), headers=headers).status_code == 413
    assert httpx.get(f"{server}/health").json()["waiting"] == 0


def test_a_foreign_page_and_a_foreign_name_are_refused(server: str) -> None:
    port = urlsplit(server).port
    for headers in (
        {"origin": "https://elsewhere.example"},
        {"origin": "null"},
        {"host": "elsewhere.example"},
        {"host": f"127.0.0.1.elsewhere.example:{port}"},
    ):
        assert httpx.get(f"{server}/health", headers=headers).status_code == 403
    for headers in (
        {"origin": server},
        {"host": f"localhost:{port}"},
        {"host": "[::1]:80"},
        {"host": "robot.example"},
        {"host": "robot.example", "origin": "https://robot.example"},
    ):
        answer = httpx.get(f"{server}/health", headers=headers)
        assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


def test_many_at_once_are_all_answered_the_bad_ones_by_4xx(server: str) -> None:
    good, bad = picture(), b"not an image"
    with ThreadPoolExecutor(12) as pool:
        codes = [
            answer.status_code
            for answer in pool.map(lambda n: post(server, bad if n % 4 == 3 else good, classes=WORDS), range(24))
        ]
    assert codes == [400 if n % 4 == 3 else 200 for n in range(24)]


def test_no_place_is_a_503_that_says_when_to_try_again(nano: Segmenter) -> None:
    worker = Worker(nano, replace(LIMITS, max_waiting=1))
    free, begun = threading.Event(), threading.Event()
    with running(application(worker)) as server, ThreadPoolExecutor(1) as pool:
        worker.submit(lambda: (begun.set(), free.wait(30)))
        assert begun.wait(30)
        first = pool.submit(post, server, classes="sky")
        while httpx.get(f"{server}/health").json()["waiting"] == 0:
            pass
        second = post(server, classes="sky")
        free.set()
        assert second.status_code == 503 and int(second.headers["retry-after"]) >= 1
        assert first.result().status_code == 200
    worker.close()


def test_a_turn_that_does_not_come_is_a_503_and_a_slow_body_a_408(nano: Segmenter) -> None:
    worker = Worker(nano, replace(LIMITS, max_seconds=1))
    free = threading.Event()
    with running(application(worker)) as server:
        worker.submit(lambda: free.wait(30))
        late = post(server, classes="sky")
        free.set()
        assert late.status_code == 503 and "within 1 s" in late.json()["error"]
        with socket.create_connection((urlsplit(server).hostname, urlsplit(server).port)) as slow:
            head = "POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            slow.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x".encode())
            assert b" 408 " in slow.recv(4096).split(b"\r\n")[0]
        assert httpx.get(f"{server}/health").json()["waiting"] == 0
    worker.close()


def test_nothing_runs_for_a_client_that_went_away(nano: Segmenter) -> None:
    worker = Worker(nano, LIMITS)
    free = threading.Event()
    with running(application(worker)) as server:
        worker.submit(lambda: free.wait(30))
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server}/segment", files={"image": picture()}, data={"classes": "sky"}, timeout=0.5)
        while httpx.get(f"{server}/health").json()["waiting"]:
            pass
        free.set()
        assert post(server, classes="sky").status_code == 200
        assert httpx.get(f"{server}/health").json()["answered"] == 2  # the blocker and the last one
    worker.close()


def test_the_same_image_with_other_words_is_not_encoded_again(server: str, nano: Segmenter) -> None:
    data = picture(seed=77)
    first, second = post(server, data, classes=WORDS).json(), post(server, data, classes="water, wall").json()
    assert "encode" in first["stages_ms"] and "encode" not in second["stages_ms"]
    areas = [entry["area"] for entry in second["classes"]]
    assert areas == [mask.sum() for mask in nano.segment(data, "water, wall").masks()]
