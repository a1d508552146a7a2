"""The page: an image or a webcam and words in, the image with names on it out; and a tab for short videos."""

from __future__ import annotations

import functools
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as TookTooLong
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ovsdino.errors import OVSDinoError, one_line, out_of_memory
from ovsdino.results import Segmentation
from ovsdino.serve.clip import SUFFIX, Clip, frames_of, rate_of
from ovsdino.serve.view import shown, times
from ovsdino.serve.worker import Wish, Worker

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read where gradio is imported

import gradio as gr

__all__ = ["mounted"]

KEPT_SECONDS = 600  # that a visitor's files lie in the temporary folder
MODES = {"as the model was made": None, "always a word": True, "unlabeled": False}
PHOTOGRAPHS = (  # that come with packages which are often there
    ("sklearn", "datasets/images/china.jpg", "sky, temple, tree, grass, person, dog"),
    ("skimage", "data/coffee.png", "cup, spoon, table, cat"),
    ("sklearn", "datasets/images/flower.jpg", "flower, leaf, sky"),
    ("skimage", "data/chelsea.png", "cat, dog, blanket"),
    ("skimage", "data/rocket.jpg", "rocket, sky, tower, grass"),
    ("skimage", "data/astronaut.png", "person, flag, helmet, tree"),
)
EMPTY = "The result appears here: choose an image and name what to look for."


def mounted(app: Any, worker: Worker) -> Any:
    """Return a Starlette application with the page at `/`."""
    folder = tempfile.TemporaryDirectory(prefix="ovsdino-demo-")
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    blocks = _blocks(worker, Path(folder.name))
    blocks.queue(max_size=worker.limits.max_waiting, default_concurrency_limit=None)
    blocks.kept_folder = folder  # until the page is gone
    system = ["system-ui", "sans-serif"]  # fonts of the machine: none is fetched
    theme = gr.themes.Base(primary_hue="teal", font=system, font_mono=["ui-monospace", "monospace"])
    app = gr.mount_gradio_app(
        app,
        blocks,
        "/",
        theme=theme,
        css=(files("ovsdino.serve") / "page.css").read_text(),
        footer_links=[],
        run_history=False,
        max_file_size=worker.limits.max_megabytes * 1_000_000,
        ssr_mode=False,
        pwa=False,
        show_error=True,
    )
    # gradio looks whether a file that a request names was uploaded only in a page that it launched itself: without this
    # a request could name any file of this machine (gradio 6.31, found by tests/serve/test_page.py).
    blocks.has_launched = True
    return app


def _blocks(worker: Worker, folder: Path) -> Any:
    limits = worker.limits
    with gr.Blocks(title="ovsdino", analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)) as blocks:
        gr.Markdown(
            f"# ovsdino\nName what to look for; every pixel is given one of the words, or none. Model: "
            f"{worker.segmenter.name} on {worker.segmenter.device}.",
            elem_id="ov-title",
        )
        with gr.Tab("Image"):
            _image_tab(worker)
        with gr.Tab("Video"):
            _video_tab(worker, folder)
        gr.Markdown(
            f"At most {limits.max_megabytes} MB, {limits.max_megapixels} million pixels. For programs: `POST /segment`."
        )
    return blocks


def _image_tab(worker: Worker) -> None:
    with gr.Row():
        with gr.Column(scale=4):
            picture = gr.Image(
                label="Image",
                sources=["upload", "webcam", "clipboard"],
                type="filepath",
                image_mode=None,
                height=300,
                elem_id="ov-image",
                buttons=[],
            )
            _only_uploads(picture)
            words = gr.Textbox(
                label="Words",
                placeholder="sky, temple, tree|bush",
                elem_id="ov-words",
                lines=1,
                max_length=20_000,
                info="commas between classes, | between words of one class",
            )
            button = gr.Button("Segment", variant="primary", elem_id="ov-go")
            threshold = gr.Slider(
                0,
                0.95,
                0,
                step=0.05,
                label="Confidence",
                elem_id="ov-confidence",
                info="pixels less certain than this stay unlabeled",
            )
            mode = gr.Radio(
                list(MODES), value=next(iter(MODES)), label="Pixels that are none of the words", elem_id="ov-mode"
            )
            more = gr.Textbox(
                label="Other words on the same image",
                elem_id="ov-more",
                max_length=20_000,
                placeholder="roof, wall, path",
                info="a second list, next to the first",
            )
        with gr.Column(scale=7):
            first = _viewer("ov-first", EMPTY)
            second = _viewer("ov-second", "", visible=False)
    _examples(picture, words)

    def answer(path: str | None, text: str, other: str, least: float, kind: str) -> tuple[Any, Any]:
        if not path:
            raise gr.Error("choose an image first", title="No image")
        lists = [one for one in (text, other) if one.strip()]
        wishes = [Wish(one, MODES.get(kind), least) for one in lists or [text]]
        results = _waited(worker, lambda: [shown(one) for one in _segment(worker, path, wishes)])
        return results[0], gr.HTML(value=results[1] if len(results) > 1 else None, visible=len(results) > 1)

    inputs, outputs = [picture, words, more, threshold, mode], [first, second]
    events: list[Any] = [button.click, words.submit, more.submit]
    gr.on(events, answer, inputs, outputs, api_name="segment", trigger_mode="once", show_progress_on=first)
    # A slider or switch that is moved asks again where there is a result to change.
    for event in (threshold.release, mode.input):
        event(_again(answer), inputs, outputs, api_visibility="private", trigger_mode="always_last")


def _only_uploads(component: Any) -> None:
    """Have an input give the path of the uploaded file alone, undecoded, and fetch no address.

    `ovsdino.io` reads the file, within the limits, and says its errors. A subclass would do, if gradio did not write a
    stub next to the module of each.
    """
    move = component.async_move_resource_to_block_cache

    async def moved(path: Any) -> Any:
        if "://" in str(path)[:12]:
            raise gr.Error("addresses are not fetched: upload the file", print_exception=False)
        return await move(path)

    component.async_move_resource_to_block_cache = moved
    component.preprocess = lambda payload: None if payload is None else payload.path


def _again(answer: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(answer)
    def ready(path: str | None, text: str, *rest: Any) -> Any:
        return answer(path, text, *rest) if path and text.strip() else (gr.skip(), gr.skip())

    return ready


def _segment(worker: Worker, path: str, wishes: list[Wish]) -> list[Segmentation]:
    return worker.segment(Path(path).read_bytes(), wishes, "the image")


def _waited(worker: Worker, work: Callable[[], Any]) -> Any:
    """Return a job's result, its errors as gradio's, which the page shows as a sentence."""
    try:
        with worker.place():
            return worker.submit(work).result(worker.limits.max_seconds)
    except TookTooLong:
        raise gr.Error(f"no result within {worker.limits.max_seconds} s: try again later", title="Busy") from None
    except OVSDinoError as error:
        raise gr.Error(_escaped(error), title="Not possible", duration=None, print_exception=False) from None
    except Exception as error:
        if out_of_memory(error):
            raise gr.Error("out of memory: take a smaller image") from None
        raise


def _escaped(error: Exception) -> str:
    """Return a message for a place that takes HTML."""
    from html import escape

    return escape(one_line(error), quote=False)


def _viewer(name: str, empty: str, visible: bool = True) -> Any:
    from html import escape

    return gr.HTML(
        elem_id=name,
        visible=visible,
        html_template=f'<div class="ov-viewer" data-empty="{escape(empty)}"></div>',
        js_on_load=(files("ovsdino.serve") / "viewer.js").read_text(),
        apply_default_css=False,
    )


def _examples(picture: Any, words: Any) -> None:
    there = []
    for package, place, text in PHOTOGRAPHS:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (path := Path(folder, place)).is_file():
                there.append([str(path), text])
    if there:
        gr.Examples(
            there,
            [picture, words],
            label="Photographs",
            cache_examples=False,
            elem_id="ov-examples",
            visible_columns=[0],
        )


def _video_tab(worker: Worker, folder: Path) -> None:
    with gr.Row():
        with gr.Column(scale=4):
            video = gr.Video(label="Video", sources=["upload"], height=260, elem_id="ov-video", buttons=[])
            _only_uploads(video)
            words = gr.Textbox(
                label="Words", placeholder="road, car, person", max_length=20_000, elem_id="ov-video-words"
            )
            most = worker.limits.max_frames
            count = gr.Slider(1, most, min(most, 32), step=1, label="Frames", info="from the start of the video")
            button = gr.Button("Segment", variant="primary", elem_id="ov-video-go")
        with gr.Column(scale=7):
            live = gr.Image(label="Newest frame", interactive=False, elem_id="ov-live", buttons=[], format="jpeg")
            state = gr.Markdown(elem_id="ov-video-state")
            made = gr.Video(label="Result", interactive=False, autoplay=True, loop=True, elem_id="ov-video-result")

    def run(path: str | None, text: str, frames: float) -> Iterator[tuple[Any, Any, Any]]:
        if not path:
            raise gr.Error("choose a video first", title="No video")
        vocabulary = _waited(worker, lambda: Wish(text).vocabulary(worker.limits.max_classes))
        clip = Clip(folder / f"{uuid.uuid4().hex}{SUFFIX}", _waited(worker, lambda: rate_of(path)))
        results = worker.segmenter.stream(frames_of(path, min(int(frames), most)), vocabulary)
        done = 0
        try:
            # Each frame is a job of its own, so that others' images come between them.
            while (one := _waited(worker, lambda: next(results, None))) is not None:
                done += 1
                yield clip.add(one), f"frame {done}: {times(one)}", None
        finally:
            clip.close()
        yield gr.skip(), f"{done} frames; the memory of the last frame keeps the labels steady", str(clip.path)

    button.click(run, [video, words, count], [live, state, made], api_name="video", concurrency_limit=2)
