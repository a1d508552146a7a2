"""The page's functions, called over HTTP as the browser calls them."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovsdino.pipeline import Segmenter
from tests.support.serving import picture

gradio_client = pytest.importorskip("gradio_client", reason="needs the extra demo")
httpx = pytest.importorskip("httpx", reason="comes with gradio")
cv2 = pytest.importorskip("cv2", reason="needs OpenCV")

MODE = "as the model was made"


@pytest.fixture(scope="module")
def client(page: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("client")
    before, tempfile.tempdir = tempfile.tempdir, str(folder)  # the client leaves empty folders there
    found = gradio_client.Client(page, verbose=False, download_files=folder, analytics_enabled=False)
    yield found
    found.close()
    tempfile.tempdir = before


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("page") / "a.png"
    path.write_bytes(picture())
    return gradio_client.handle_file(path)


def asked(client: Any, image: Any, words: str, more: str = "", least: float = 0.0, mode: str = MODE) -> Any:
    return client.predict(image, words, more, least, mode, api_name="/segment")


def pixels(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))


def test_the_viewer_gets_the_labels_and_names_of_the_library(client: Any, photograph: Any, nano: Segmenter) -> None:
    first, second = asked(client, photograph, "sky, grass, violin", "tree, water")
    expected = nano.segment(picture(), "sky, grass, violin")
    coded = pixels(first["labels"]).astype(int)
    assert np.array_equal(coded[..., 0] + 256 * coded[..., 1], expected.labels)
    assert pixels(first["photo"]).shape == (48, 64, 3)
    assert [(one["name"], one["found"]) for one in first["classes"]] == list(
        zip(expected.names, expected.found, strict=True)
    )
    assert first["unlabeled"] == pytest.approx(expected.fractions[-1])
    assert [one["name"] for one in second["value"]["classes"]] == ["tree", "water"] and second["visible"]
    assert "encoded before" in second["value"]["times"]


def test_without_a_second_list_its_place_is_hidden(client: Any, photograph: Any) -> None:
    assert not asked(client, photograph, "sky")[1]["visible"]


def test_the_switch_makes_a_partition(client: Any, photograph: Any) -> None:
    assert asked(client, photograph, "violin, dog", mode="always a word")[0]["unlabeled"] == 0.0


@pytest.mark.parametrize(
    ("data", "words", "sentence"),
    [
        (b"no image", "sky", "not a JPEG, PNG, WEBP, BMP or TIFF image"),
        (picture(), "sky, sky", "class 'sky' is given twice"),
        (picture(), " ", "no classes given"),
        (picture(), "<b>x</b>, <b>x</b>", "&lt;b&gt;x"),
        (picture("JPEG", (1200, 900)), "sky", "more than 1 million pixels"),
    ],
)
def test_what_is_not_valid_gives_a_sentence(
    client: Any, tmp_path: Path, data: bytes, words: str, sentence: str
) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(Exception, match=sentence):
        asked(client, gradio_client.handle_file(tmp_path / "a.png"), words)


def test_twenty_at_once_are_all_answered(client: Any, photograph: Any) -> None:
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda n: asked(client, photograph, f"sky, grass, thing {n % 5}")[0], range(20)))
    assert [one["classes"][2]["name"] for one in found] == [f"thing {n % 5}" for n in range(20)]
    assert len({one["number"] for one in found}) == 20


def test_neither_a_file_of_the_server_nor_an_address_can_be_named(page: str) -> None:
    for path, sentence in (("/etc/hostname", "not uploaded by a user"), ("https://a.example/b.png", "not fetched")):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        for name, data in (("segment", [file, "sky", "", 0, MODE]), ("video", [file, "sky", 2])):
            event = httpx.post(f"{page}/gradio_api/call/{name}", json={"data": data}).json()["event_id"]
            answer = httpx.get(f"{page}/gradio_api/call/{name}/{event}", timeout=60).text
            assert "event: error" in answer and sentence in answer


def test_a_short_video_comes_back_as_one_that_browsers_play(client: Any, tmp_path: Path) -> None:
    clip = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 12, (64, 48))
    for seed in range(6):
        frame = np.asarray(Image.open(io.BytesIO(picture(seed=seed))))
        clip.write(np.ascontiguousarray(frame[..., ::-1]))
    clip.release()
    _, text, made = client.predict(gradio_client.handle_file(tmp_path / "a.avi"), "sky, grass", 4, api_name="/video")
    assert "4 frames" in text
    played = cv2.VideoCapture(made["video"] if isinstance(made, dict) else made)
    assert int(played.get(cv2.CAP_PROP_FRAME_COUNT)) == 4 and played.get(cv2.CAP_PROP_FPS) == pytest.approx(12, abs=0.5)
    assert Path(made["video"] if isinstance(made, dict) else made).read_bytes()[:4] == b"\x1aE\xdf\xa3"  # WebM's EBML


def test_the_page_says_nothing_to_other_sites(page: str) -> None:
    answer = httpx.get(page)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    config = httpx.get(f"{page}/config").json()
    assert config["analytics_enabled"] is False and not any("http" in one for one in config["stylesheets"])
    assert httpx.get(page, headers={"host": "elsewhere.example"}).status_code == 403


def test_too_large_an_upload_is_refused(page: str) -> None:
    answer = httpx.post(f"{page}/gradio_api/upload", files={"files": ("a.png", bytes(1_100_000))})
    assert answer.status_code == 413 and "1 MB" in json.loads(answer.text)["error"]
