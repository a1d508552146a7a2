"""`ovsdino stream`: cameras or videos in, masks in time out, and a count of the late ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ovsdino.console import print_json, say
from ovsdino.errors import OVSDinoError, redact
from ovsdino.options import SegmenterOptions
from ovsdino.parsing import Argument, OptionalValue, Repeated
from ovsdino.vocabulary import DEFAULT_BACKGROUND, LEAST_CERTAINTY, LEAST_SHARE, Vocabulary

if TYPE_CHECKING:
    import numpy as np

    from ovsdino.edge.bank import TextBank
    from ovsdino.stream.cameras import Camera
    from ovsdino.stream.loop import Engine, Streams
    from ovsdino.stream.result import StreamResult
    from ovsdino.stream.sources import SourceOptions
    from ovsdino.stream.watchdog import Watchdog


@dataclass(frozen=True, kw_only=True)
class StreamCommand:
    """Segment the newest frame of cameras or videos, again and again, and count the late results.

    With --engine and --bank it needs no torch, as on a robot. With --classes it runs a model of the zoo, as for a first
    try. Ctrl-C ends it with the summary.
    """

    sources: Annotated[tuple[str, ...], Argument("SOURCE...")] = ()
    """Camera number or /dev/videoN, video file, folder of images, rtsp:// address, or a GStreamer pipeline in quotes
    that ends in "! appsink". A name of a file or folder that exists is that one; /dev/video0 is always a camera.
    Several share the engine: in batches of its --batch at export, each with its own figures, whatever befalls the
    others."""
    source: Annotated[tuple[str, ...], Repeated()] = ()
    """Another source; may be given again and again."""
    engine: Path | None = None
    """TensorRT engine or ONNX file made by deploy/export_trt.py or deploy/export_onnx.py."""
    fallback: tuple[Path, ...] = ()
    """Smaller engines to fall back on when the deadline is missed, the largest first."""
    bank: tuple[Path, ...] = ()
    """Text bank made by `ovsdino text`: one for all engines, or one for each, with the same classes."""
    classes: str | None = None
    """Without --engine: words, separated by commas, for --model; "car|automobile" is one class of two words. Or a file
    of them, see `ovsdino segment`."""
    average_words: bool = False
    """With --classes: average the embeddings of a class's words. Default: a class is where any of its words is."""
    model: str = "nano"
    """Without --engine: the model of the zoo."""
    adapted: Path | None = None
    """Without --engine: words of your own, learned by `ovsdino adapt`; a bank holds them already."""
    device: str | None = None
    """Without --engine: cpu, cuda or cuda:N. Default: CUDA if there is one."""
    memory: bool = False
    """Without --engine: remember the frame before, so that labels do not flicker. Of one source. An .onnx that
    deploy/add_memory.py made remembers by itself."""
    key_frames: int = 1
    """With --memory: encode one frame of so many whole, and sooner where the image changes; the others are moved along,
    in less than half of the time."""
    background: Annotated[float | None, OptionalValue("T", DEFAULT_BACKGROUND)] = None
    """Leave pixels less certain than T (0..1, 0.5 if no number follows) unlabeled."""
    partition: bool | None = None
    """Give every pixel one of the words. Default: as the bank was made, or the model trained (see `ovsdino segment`);
    --no-partition asks any model of the zoo for unlabeled pixels."""
    least_share: float = LEAST_SHARE
    """Share of the frame below which a word is not found, and not painted; of no effect in a partition."""
    least_certainty: float = LEAST_CERTAINTY
    """Probability, against none of the words, that a word must reach somewhere to be found; of no effect in a
    partition."""
    fps: float | None = None
    """Frames a second to ask a camera for, or to play a file or folder at. Default: its own, 10 for a folder."""
    width: int | None = None
    """Frame width to ask a camera for."""
    height: int | None = None
    """Frame height to ask a camera for."""
    nv12: bool = False
    """The GStreamer pipeline gives NV12: frames go to the engine without a conversion on the CPU. It is switched on by
    itself where format=NV12 is the last format that the pipeline names."""
    source_latency_ms: float = 0.0
    """Age of a camera's frame when it arrives, where the camera does not tell when it was taken. V4L2 cameras tell it,
    and GStreamer pipelines where GStreamer's own Python binding (python3-gi) is installed, of a camera on the network
    with rtspsrc add-reference-timestamp-meta=true; RTSP addresses do not."""
    every_frame: bool = False
    """Segment every frame of a file or folder, however long it takes; frames then wait, and their age says little."""
    frames: int | None = None
    """End after so many results, of all sources together."""
    seconds: float | None = None
    """End so many seconds after the first frame."""
    deadline_ms: float | None = None
    """Age of a frame, when its labels are there, beyond which they are stale."""
    deadlines_ms: tuple[float, ...] = ()
    """Deadline of each source, in their order, where they differ."""
    window: int = 30
    """Results that the watchdog looks back at."""
    misses: int = 5
    """Stale results among them at which it falls back to a smaller engine."""
    headroom: float = 0.6
    """Share of the deadline that results must keep within before it tries the larger engine again."""
    recover: float = 5.0
    """Seconds that they must do so; doubled each time the larger engine misses again shortly afterwards."""
    stall: float = 2.0
    """Seconds without a frame after which the source is opened again."""
    give_up: float | None = None
    """Seconds without a frame after which it ends with an error. Default: it tries forever."""
    wait: bool = False
    """Wait for a camera that is not there yet, as long as --give-up says. Default: that is an error."""
    metrics: int | None = None
    """Port at which to serve the figures for Prometheus, http://127.0.0.1:PORT/metrics, to this machine alone."""
    report: float = 5.0
    """Seconds between two lines of figures on stderr."""
    words: str | None = None
    """Take other words while it runs: from a file with one class list, read anew when it changes or at SIGHUP; or "-"
    for lines on standard input."""
    tower: Path | None = None
    """With --words and an engine of CLIP's words: its text tower, written by `ovsdino export text`, so that other words
    need no torch."""
    labels: str | None = None
    """Write the labels: a folder for a PNG of each frame (of several sources in folders of it: 0, 1, ...); or "-" for a
    JSON line of each on stdout."""
    output: Path | None = None
    """Write overlays: a folder, or a video file (.mp4, .mkv, .avi). Those that come too fast are left out. Of several
    sources each has a folder in it, or a file of its own: out-0.mp4, out-1.mp4, ..."""
    show: bool = False
    """Show the overlays in a window, one for each source; closing one ends the stream."""
    legend: bool = False
    """Add a legend to the overlays, and write the rate and the age of the frame into them."""
    json: bool = False
    """Print one JSON object on stdout at the end."""

    def run(self) -> int:
        from ovsdino.io.files import refuse_inputs
        from ovsdino.stream.loop import describe, stop_on_signals
        from ovsdino.stream.service import Service

        sources = self._sources()
        inputs = self._inputs()
        if self.json and self.labels == "-":
            raise OVSDinoError("--labels - and --json both print on stdout: leave one out")
        if self.legend and self.output is None and not self.show:
            raise OVSDinoError("--legend without effect: overlays are made with --output or --show")
        outputs = self._outputs()
        for path in outputs:
            refuse_inputs([path], inputs)  # before a model is loaded
        stream, names = self._stream()
        with ExitStack() as stack:
            writers = [
                stack.enter_context(self._writer(source, path, names, inputs))
                for source, path in zip(sources, outputs, strict=False)
            ]
            stack.enter_context(stop_on_signals(stream.stop))
            stack.enter_context(self._metrics(stream))
            windows = [stack.enter_context(one) for one in self._windows(names, stream.stop.set)]
            shown = [_of_camera(each) for each in (writers, windows) if each]
            takers = (*shown, self._label_writer(), Service())
            summary = stream.run(_each(*(one for one in takers if one is not None)))
        if len(sources) == 1:
            summary = {"source": redact(sources[0]), **summary}
        if self.output is not None:
            written = {name: sum(getattr(one, name) for one in writers) for name in ("written", "left_out")}
            summary["output"] = {"path": str(self.output), **written}
        if self.json:
            print_json(summary)
        elif self.labels == "-":
            say(describe(summary))
        else:
            print(describe(summary), flush=True)
        if "error" in summary:
            say(f"error: {summary['error']}")
        return 2 if "error" in summary else 0

    def _sources(self) -> tuple[str, ...]:
        sources = (*self.sources, *self.source)
        if not sources:
            raise OVSDinoError("missing: SOURCE; see ovsdino stream --help")
        if len(self.deadlines_ms) not in (0, len(sources)):
            raise OVSDinoError(f"{len(self.deadlines_ms)} deadlines for {len(sources)} sources: expected one each")
        return sources

    def _stream(self) -> tuple[Streams, tuple[str, ...]]:
        from ovsdino.stream.loop import Streams

        cameras = [self._camera(place, source) for place, source in enumerate(self._sources())]
        watchdog = self._watchdog()
        engines, names = self._engines()
        self._check_engines(engines, len(cameras))
        stream = Streams(
            cameras,
            engines,
            watchdog=watchdog,
            frames=self.frames,
            seconds=self.seconds,
            report_s=self.report,
            say=say,
            between=self._feed(engines),
        )
        return stream, names

    def _camera(self, place: int, source: str) -> Camera:
        from ovsdino.stream.cameras import Camera
        from ovsdino.stream.capture import Capture, CaptureLimits, Frame, LatestFrame
        from ovsdino.stream.sources import make_source

        several = len(self._sources()) > 1
        limits = CaptureLimits(stall_s=self.stall, give_up_s=self.give_up, wait=self.wait)
        slot: LatestFrame[Frame] = LatestFrame(keep_all=self.every_frame)
        capture = Capture(
            make_source(source, self._source_options(source)),
            slot,
            limits=limits,
            say=(lambda message: say(f"camera {place}: {message}")) if several else say,
        )
        deadline = self.deadlines_ms[place] if self.deadlines_ms else self.deadline_ms
        return Camera(capture, slot, redact(source), deadline)

    def _watchdog(self) -> Watchdog | None:
        from ovsdino.stream.watchdog import Watchdog

        if self.deadline_ms is None and not self.deadlines_ms:
            if self.fallback:
                raise OVSDinoError("--fallback without --deadline-ms: say what is too late, in milliseconds")
            return None
        return Watchdog(
            1 + len(self.fallback),
            min(self.deadlines_ms) if self.deadlines_ms else self.deadline_ms or 0.0,
            window=self.window,
            misses=self.misses,
            headroom=self.headroom,
            recover_s=self.recover,
        )

    def _check_engines(self, engines: list[Engine], cameras: int) -> None:
        for engine in engines if cameras > 1 else ():
            sidecar = getattr(engine.segmenter, "sidecar", None)
            if sidecar is not None and sidecar.memory is not None:
                raise OVSDinoError(f"{engine.name}: remembers one video; run `ovsdino stream` once for each source")

    def _feed(self, engines: list[Engine]) -> Callable[[], None]:
        if self.words is None:
            if self.tower is not None:
                raise OVSDinoError("--tower goes with --words: the words at the start are in the --bank")
            return lambda: None
        from ovsdino.stream.feed import WordFeed

        readers = self._readers(engines)
        return WordFeed(self.words, lambda text: _set_words(engines, readers, text), say)

    def _readers(self, engines: list[Engine]) -> list[Callable[[str], TextBank]]:
        """Return what makes banks of other words for each engine; nothing for a model of the zoo."""
        from ovsdino.edge.clip_tower import ClipTower
        from ovsdino.stream.words import WordReader

        segmenters: list[Any] = [engine.segmenter for engine in engines]
        if isinstance(segmenters[0], _ZooSegmenter):
            return []
        tower = None if self.tower is None else ClipTower.load(self.tower)
        return [WordReader(segmenter.sidecar, tower=tower) for segmenter in segmenters]

    def _label_writer(self) -> Any:
        from ovsdino.stream.labels import LabelWriter

        return None if self.labels is None else LabelWriter(self.labels, cameras=len(self._sources()))

    def _source_options(self, source: str) -> SourceOptions:
        from ovsdino.stream.sources import SourceOptions

        return SourceOptions(
            fps=self.fps,
            width=self.width,
            height=self.height,
            keep_all=self.every_frame,
            nv12=self._gives_nv12(source),
            latency_ms=self.source_latency_ms,
        )

    def _gives_nv12(self, source: str) -> bool:
        from ovsdino.stream.sources import gives_nv12

        return self.nv12 or gives_nv12(source)

    def _engines(self) -> tuple[list[Engine], tuple[str, ...]]:
        """Return the engines, the largest first, and the classes of all."""
        from ovsdino.stream.loop import Engine

        if self.engine is None:
            if self.classes is None:
                raise OVSDinoError("give --engine FILE --bank FILE, or --classes WORDS for a model of the zoo")
            if self.fallback or self.bank:
                raise OVSDinoError("--fallback and --bank go with --engine FILE")
            options = SegmenterOptions(model=self.model, device=self.device, adapted=self.adapted)
            settings = {**self._labeling(), "memory": self.memory, "key_frames": self._key_frames()}
            segmenter = _ZooSegmenter(options, Vocabulary.of(self.classes, self.average_words), settings)
            return [Engine(self.model, segmenter)], segmenter.names
        if self.memory:
            raise OVSDinoError("--memory goes with --classes: give an engine's .onnx a memory by deploy/add_memory.py")
        if self.adapted is not None:
            raise OVSDinoError("--adapted without effect: an engine's rows are in its --bank (see `ovsdino text`)")
        if self.average_words:
            raise OVSDinoError(
                "--average-words without effect: an engine's rows are in its --bank (see `ovsdino text`)"
            )
        if self.classes is not None:
            raise OVSDinoError("--classes without effect: an engine's classes are in its --bank (see `ovsdino text`)")
        files = (self.engine, *self.fallback)
        if len(self.bank) not in (1, len(files)):
            raise OVSDinoError(
                f"{len(self.bank)} text banks for {len(files)} engines: expected --bank with 1, or one each"
            )
        from ovsdino.edge import EdgeSegmenter, TextBank

        loaded = [TextBank.load(path) for path in self.bank]
        banks = loaded * len(files) if len(loaded) == 1 else loaded
        names = tuple(banks[0].names)
        for path, bank in zip(self.bank, loaded, strict=True):
            if tuple(bank.names) != names:
                raise OVSDinoError(
                    f"{path}: other classes than {self.bank[0]}: all engines must name the same, in order"
                )
        settings = {"nv12": any(map(self._gives_nv12, self._sources())), "scores": False}
        engines: list[Engine] = []
        for path, bank in zip(files, banks, strict=True):
            name = str(path) if path.name in {engine.name for engine in engines} else path.name
            edge = EdgeSegmenter(path, bank, **self._labeling())
            if edge.sidecar.memory is not None and len(self._sources()) > 1:
                raise OVSDinoError(f"{path}: its memory is of one source: run ovsdino stream for each")
            engines.append(Engine(name, edge, settings))
        return engines, names

    def _key_frames(self) -> Any:
        from ovsdino.models.memory import KeyFrames

        if self.key_frames < 1 or (self.key_frames > 1 and not self.memory):
            raise OVSDinoError(f"--key-frames {self.key_frames}: expected at least 1, with --memory")
        if self.memory and len(self._sources()) > 1:
            raise OVSDinoError("--memory is of one source: run ovsdino stream for each")
        return KeyFrames(every=self.key_frames)

    def _labeling(self) -> dict[str, Any]:
        """Return the options of `Segmenter.segment` and `EdgeSegmenter` that say which pixels get a word."""
        return {
            "background": self.background,
            "partition": self.partition,
            "least_share": self.least_share,
            "least_certainty": self.least_certainty,
        }

    def _inputs(self) -> list[Path]:
        from ovsdino.stream.sources import files_of

        engines = () if self.engine is None else (self.engine, *self.fallback)
        adapted = () if self.adapted is None else (self.adapted,)
        files = [path for source in self._sources() for path in files_of(source)]
        return [*files, *engines, *self.bank, *adapted, *([] if self.tower is None else [self.tower])]

    def _metrics(self, stream: Streams) -> Any:
        if self.metrics is None:
            return nullcontext()
        from ovsdino.stream.metrics import MetricsServer

        return MetricsServer(self.metrics, lambda: stream.summary("running"))

    def _outputs(self) -> list[Path]:
        """Return where the overlays of each source go; nothing without --output."""
        from ovsdino.stream.output import output_of

        count = len(self._sources())
        return [] if self.output is None else [output_of(self.output, place, count) for place in range(count)]

    def _windows(self, names: tuple[str, ...], stop: Callable[[], None]) -> Iterator[Any]:
        """Yield what shows the overlays of each source; nothing without --show."""
        from ovsdino.stream.output import OverlayWriter
        from ovsdino.stream.window import Window

        for source in self._sources() if self.show else ():
            window = Window(f"ovsdino: {redact(source)}", stop)
            yield OverlayWriter(window, names, fps=1.0, keep_all=False, legend=self.legend)

    def _writer(self, source: str, path: Path, names: tuple[str, ...], inputs: list[Path]) -> Any:
        from ovsdino.stream.output import OverlayWriter
        from ovsdino.stream.sources import playing_rate

        return OverlayWriter(
            path,
            names,
            fps=playing_rate(source, self._source_options(source)),
            keep_all=self.every_frame,
            inputs=inputs,
            legend=self.legend,
        )


def _of_camera(takers: list[Callable[[StreamResult], None]]) -> Callable[[StreamResult], None]:
    return lambda result: takers[result.camera or 0](result)


def _each(*takers: Callable[[StreamResult], None]) -> Callable[[StreamResult], None]:
    def take(result: StreamResult) -> None:
        for taker in takers:
            taker(result)

    return take


def _set_words(engines: list[Engine], readers: list[Callable[[str], TextBank]], text: str) -> None:
    """Give all engines other words, or none of them.

    Args:
        engines: Those of the stream.
        readers: See `StreamCommand._readers`.
        text: A class list.

    Raises:
        OVSDinoError: The words cannot be read.
    """
    if isinstance(engines[0].segmenter, _ZooSegmenter):
        engines[0].segmenter.set_words(text)
        return
    segmenters: list[Any] = [engine.segmenter for engine in engines]
    banks = [reader(text) for reader in readers]
    for segmenter, bank in zip(segmenters, banks, strict=True):
        segmenter.set_bank(bank)


class _ZooSegmenter:
    """A torch model behind the same call as `EdgeSegmenter`."""

    def __init__(self, options: SegmenterOptions, vocabulary: Vocabulary, settings: dict[str, Any]) -> None:
        self._average = vocabulary.average
        self._tracker = options.load().tracker(vocabulary, scores=False, **settings)
        self.names = vocabulary.names

    def set_words(self, text: str) -> None:
        self._tracker.set_classes(Vocabulary.of(text, self._average))

    def segment(self, image: np.ndarray) -> Any:
        if image.ndim == 2:
            from ovsdino.edge.pixels import nv12_to_rgb

            image = nv12_to_rgb(image)
        return self._tracker.segment(image)
