"""`POST /segment` and `GET /health`."""

from __future__ import annotations

import io
import logging
from typing import Any, Literal, cast, get_args

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ovsdino.errors import OVSDinoError, one_line, out_of_memory
from ovsdino.results import Segmentation
from ovsdino.serve.worker import Busy, Gone, TooLarge, Wish, Worker

__all__ = ["described", "routes"]

log = logging.getLogger("ovsdino")

Form = Literal["json", "png", "overlay"]
FIELDS = ("image", "classes", "partition", "confidence", "format")
TRUTH = {"": None, "true": True, "false": False}
LONGEST_FIELD = 1 << 20  # bytes of a field of text
CLIENT_GONE = 499  # which nobody reads


def routes(worker: Worker) -> list[Route]:
    """Return the endpoint's routes."""

    async def segment(request: Request) -> Response:
        return await _answer(worker, request)

    async def health(_: Request) -> Response:
        from ovsdino import __version__

        state = {"status": "ok", "model": worker.segmenter.name, "version": __version__}
        return JSONResponse({**state, "waiting": worker.waiting, "answered": worker.answered})

    return [Route("/segment", segment, methods=["POST"]), Route("/health", health, methods=["GET"])]


def described(result: Segmentation) -> dict[str, Any]:
    """Return a result for JSON: `Segmentation.to_dict`, and of each class its area, box and run lengths.

    A class without pixels has an area of 0, and null for the other two.
    """
    found = result.to_dict()
    masks = {entry["category_id"]: entry for entry in result.to_rle()}
    for index, entry in enumerate(found["classes"][: len(result.names)]):
        mask = masks.get(index, {"area": 0})
        entry |= {key: mask.get(key) for key in ("area", "bbox", "segmentation")}
    if result.background:
        found["unlabeled"] = found["classes"].pop()["fraction"]
    else:
        found["unlabeled"] = 0.0
    return found


async def _answer(worker: Worker, request: Request) -> Response:
    """Return the answer to one request, whatever it holds."""
    try:
        with worker.place():
            return await _segmented(worker, request)
    except Busy as error:
        return _problem(503, error, {"Retry-After": str(error.seconds)})
    except TooLarge as error:
        return _problem(413, error)
    except OVSDinoError as error:
        return _problem(400, error)
    except HTTPException as error:
        return _problem(error.status_code, error.detail)
    except (Gone, ClientDisconnect):
        return Response(status_code=CLIENT_GONE)
    except Exception as error:
        if out_of_memory(error):
            return _problem(503, "out of memory: send a smaller image", {"Retry-After": "1"})
        log.exception("a request failed")
        return _problem(500, f"internal error ({type(error).__name__}): the server's log has more")


async def _segmented(worker: Worker, request: Request) -> Response:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise HTTPException(415, "send a form: multipart/form-data with the fields image and classes")
    async with request.form(max_files=1, max_fields=len(FIELDS), max_part_size=LONGEST_FIELD) as form:
        upload, wish, style = _read(form)
        data = await upload.read()
    if not data:
        raise OVSDinoError("image: the file is empty (0 bytes)")

    def work() -> Response:
        return _response(worker.segment(data, [wish])[0], style)

    return await worker.run(work, _gone(request))


def _read(form: FormData) -> tuple[UploadFile, Wish, Form]:
    """Return the image, what is asked of it, and the form of the answer.

    Raises:
        OVSDinoError: A field is missing, given twice, unknown or of no valid value.
    """
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if name not in FIELDS:
            raise OVSDinoError(f"unknown field {one_line(name, 40)!r}: expected {', '.join(FIELDS)}")
        if name in fields:
            raise OVSDinoError(f"{name} is given twice")
        if isinstance(value, str) == (name == "image"):
            raise OVSDinoError(f"{name} is {'not ' if name == 'image' else ''}a file")
        fields[name] = value if isinstance(value, str) else ""
    for name in FIELDS[:2]:
        if name not in fields:
            raise OVSDinoError(f"{name} is missing: send a form with the fields image (a file) and classes (text)")
    truth = fields.get("partition", "").strip().lower()
    if truth not in TRUTH:
        raise OVSDinoError(f"partition is {one_line(truth, 40)!r}: expected true or false")
    style = fields.get("format", "json").strip().lower()
    if style not in get_args(Form):
        raise OVSDinoError(f"format is {one_line(style, 40)!r}: expected {', '.join(get_args(Form))}")
    wish = Wish(fields["classes"], TRUTH[truth], _probability(fields.get("confidence", "")))
    return cast(UploadFile, form["image"]), wish, cast(Form, style)


def _probability(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:  # also of NaN
        raise OVSDinoError(f"confidence is {one_line(text, 40)!r}: expected a number from 0 to below 1")
    return value


def _response(result: Segmentation, style: Form) -> Response:
    if style == "json":
        return JSONResponse(described(result))
    file = io.BytesIO()
    picture = result.to_image() if style == "png" else result.overlay()
    picture.save(file, "PNG", compress_level=1)
    return Response(file.getvalue(), media_type="image/png")


async def _gone(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _problem(status: int, message: object, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": one_line(message)}, status, headers)
