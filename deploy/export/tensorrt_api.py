"""Build engines: the one place where TensorRT 10.3 to 11 and TensorRT-RTX differ.

| | TensorRT | TensorRT-RTX |
|---|---|---|
| builds for | the GPU it runs on | compute capabilities by number, with no GPU at all |
| typing | STRONGLY_TYPED; from 11 on every network is, and the flag is ignored | the same |
| timing cache | makes a second build fast | nothing is timed; kernels are tuned on the device, into a runtime cache |
| DLA | on Orin with JetPack 6 (none in TensorRT 10.8 to 11.3) | none |

All else has one form in every version. `tests/deploy/export/test_tensorrt_api.py` checks every name used here against
the bindings of 10.3, 10.16 and 11.4, and against the tensorrt_rtx that is installed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ovsdino.deploy.export.options import BuildOptions
from ovsdino.edge.sidecar import release_of
from ovsdino.edge.tensorrt_graph import PACKAGES, device_sm, tensorrt_module
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write

__all__ = ["Built", "Layer", "build", "known_fault", "resolve_target", "version_of"]

DINOV3 = ("s16v3", "b16v3")
CAPABILITY = re.compile(r"sm\d{2,3}")
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # least, usual, most


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of an engine.

    Attributes:
        name: Its name.
        kind: TensorRT's word for it: "gemm"; "kgen" for what is generated of small ops.
        nodes: Names of the nodes of the ONNX graph that went into it.
        reads: Types of the tensors that it reads, constants left out: "Int8", "Half".
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    reads: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Built:
    """A serialized engine.

    Attributes:
        data: The engine.
        seconds: Duration of the build.
        version: Version of TensorRT.
        layers: Layers in the order they run; () where neither the log nor the device tells.
        source: Where the layers come from: "engine inspector", or "builder log" where no device can open the engine.
    """

    data: bytes
    seconds: float
    version: str
    layers: tuple[Layer, ...]
    source: str


def version_of(backend: str) -> str:
    """Return the version of an installed backend.

    Raises:
        OVSDinoError: It is not installed, or is older than 10.3 (tensorrt).
    """
    version = str(tensorrt_module(backend).__version__)
    if backend == "tensorrt" and release_of(version) < (10, 3):
        raise OVSDinoError(f"tensorrt is {version}: expected 10.3 (JetPack 6.1) or newer")
    return version


def known_fault(backend: str, version: str, model: str) -> str | None:
    """Return a warning on a fault that others have reported of a release of TensorRT and a model, or None.

    Args:
        backend: "tensorrt" or "tensorrt_rtx".
        version: Its version.
        model: Name of the zoo model.
    """
    if backend != "tensorrt" or release_of(version)[:2] not in ((10, 3), (10, 4)) or model not in DINOV3:
        return None
    return (
        f"{model} is a DINOv3 model, and for those engines of TensorRT 10.3 and 10.4 that give wrong results have been "
        "reported, in float32 and float16 (github.com/NVIDIA/TensorRT issues 4723, 4558, 4742): do not use this engine "
        "unless it was compared with its graph on the device, or try a newer release (JetPack 7.2 has 10.16)"
    )


def resolve_target(backend: str, target: str) -> str:
    """Return the GPU architectures to build for, checked against those that the backend can build for here.

    Args:
        backend: "tensorrt" or "tensorrt_rtx".
        target: "current", "sm86", or for tensorrt_rtx several with commas between.

    Returns:
        "sm86" or "sm80,sm86".

    Raises:
        OVSDinoError: It is unknown, not among the backend's, or not here; the message names the way that works.
    """
    if backend not in PACKAGES:
        raise OVSDinoError(f"unknown backend {backend!r}: expected one of {', '.join(PACKAGES)}")
    wanted = target.split(",")
    if target != "current" and not all(CAPABILITY.fullmatch(one) for one in wanted):
        raise OVSDinoError(f"target is {target!r}: expected current, or an architecture such as sm86 or sm87")
    trt = tensorrt_module(backend)
    if backend == "tensorrt":
        here = device_sm(0)
        if target not in ("current", here):
            raise OVSDinoError(
                f"tensorrt builds for the GPU it runs on, {here} here, not for {target}: run this on the {target} "
                "device with --target current"
            )
        return here
    known = [name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    wanted = [device_sm(0)] if target == "current" else wanted
    for one in wanted:
        if one not in known:
            raise OVSDinoError(
                f"tensorrt_rtx {trt.__version__} has no target {one}, it builds for {', '.join(known)}: run "
                "--backend tensorrt --target current on the device itself (Jetson Orin is sm87)"
            )
    return ",".join(sorted(set(wanted), key=lambda one: int(one[2:])))


def build(onnx: bytes, settings: BuildOptions, target: str, shapes: Mapping[str, Shapes]) -> Built:
    """Parse an ONNX graph and build a strongly typed engine: each tensor has the type that the graph gives it.

    Args:
        onnx: Content of the .onnx file.
        settings: How it is built.
        target: "sm86", or several for tensorrt_rtx: "sm86,sm89" (`resolve_target`).
        shapes: Least, usual and most shape of each dynamic input, by its name.

    Raises:
        OVSDinoError: The graph cannot be parsed, no engine can be built, or a setting is not for this backend.
    """
    backend = settings.backend
    trt = tensorrt_module(backend)
    if not 0 <= settings.workspace <= 1 << 20:
        raise OVSDinoError(f"workspace is {settings.workspace}: expected 0 to {1 << 20} MiB")
    if settings.effort is not None and not 0 <= settings.effort <= 5:
        raise OVSDinoError(f"effort is {settings.effort}: expected 0 to 5")
    if backend == "tensorrt_rtx" and settings.timing_cache is not None:
        raise OVSDinoError("tensorrt_rtx times nothing while it builds: leave out --timing-cache")
    logger = _logger(trt)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # pybind11's error where a factory returned nothing
        raise OVSDinoError(f"{backend} cannot start: {logger.reason()}") from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        found = [one_line(parser.get_error(index).desc(), 200) for index in range(parser.num_errors)]
        raise OVSDinoError(f"{backend} {trt.__version__} cannot parse the graph: {'; '.join(found[:2])}")
    config = _config(trt, builder, settings, target, shapes)
    started = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - started
    if plan is None:
        raise OVSDinoError(f"{backend} {trt.__version__} built no engine: {logger.reason()}")
    if settings.timing_cache is not None:
        with atomic_write(settings.timing_cache) as file:
            file.write(memoryview(config.get_timing_cache().serialize()))
    data = bytes(memoryview(plan))
    layers, source = _inspected(trt, logger, data), "engine inspector"
    if not layers:
        layers, source = _logged(logger.layers), "builder log"
    return Built(data=data, seconds=seconds, version=str(trt.__version__), layers=layers, source=source)


def _config(trt: Any, builder: Any, settings: BuildOptions, target: str, shapes: Mapping[str, Shapes]) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace << 20)
    if settings.effort is not None:
        config.builder_optimization_level = settings.effort
    if shapes:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, least, usual, most)
        config.add_optimization_profile(profile)
    if settings.backend == "tensorrt_rtx":
        targets = target.split(",")
        config.num_compute_capabilities = len(targets)
        for index, one in enumerate(targets):
            config.set_compute_capability(trt.ComputeCapability.__members__[one.upper()], index)
    if settings.dla is not None:
        cores = int(builder.num_DLA_cores)
        if not 0 <= settings.dla < cores:
            raise OVSDinoError(
                f"dla is {settings.dla}: this device and {settings.backend} {trt.__version__} have "
                f"{f'cores 0 to {cores - 1}' if cores else 'no DLA core'}; leave out --dla to use the GPU"
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = settings.dla
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if settings.timing_cache is not None:
        known = settings.timing_cache.read_bytes() if settings.timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    return config


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keep errors, and the table of layers among the verbose messages."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.layers: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif "LayerType: " in message:
                self.layers = message.splitlines()

        def reason(self) -> str:
            return one_line(self.errors[0] if self.errors else "it gives no reason", 300)

    return Logger()


def _inspected(trt: Any, logger: Any, data: bytes) -> tuple[Layer, ...]:
    """Return the layers of an engine that this machine can open; () without its device."""
    try:
        device_sm(0)
    except OVSDinoError:
        return ()
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:  # built for another device
        return ()
    inspector = engine.create_engine_inspector()
    found = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    layers = []
    for one in found.get("Layers", []):
        if isinstance(one, dict):
            name, kind = str(one.get("Name", "")), str(one.get("LayerType", ""))
            inputs = [entry for entry in one.get("Inputs", []) if isinstance(entry, dict)]
            reads = tuple(str(entry.get("Datatype", entry.get("Format/Datatype", ""))) for entry in inputs)
            layers.append(Layer(name=name, kind=kind, nodes=_nodes(str(one.get("Metadata", ""))), reads=reads))
        else:  # a version that tells names only
            layers.append(Layer(name=str(one), kind="", nodes=()))
    return tuple(layers)


def _logged(lines: list[str]) -> tuple[Layer, ...]:
    pattern = re.compile(
        r"Name: (?P<name>[^,]*), LayerType: (?P<kind>[^,]*), Inputs: (?P<inputs>\[.*?\]), (?:Constants: |Outputs: )"
        r".*Metadata: (?P<nodes>.*)"
    )
    found = (pattern.match(line) for line in lines)
    return tuple(
        Layer(
            name=m["name"],
            kind=m["kind"],
            nodes=_nodes(m["nodes"]),
            reads=tuple(re.findall(r"Datatype: (\w+)", m["inputs"])),
        )
        for m in found
        if m is not None
    )


def _nodes(metadata: str) -> tuple[str, ...]:
    """Return the names in "[ONNX Layer: a/MatMul][ONNX Layer: a/Softmax]": ("a/MatMul", "a/Softmax")."""
    return tuple(re.findall(r"\[ONNX Layer: ([^\]]*)\]", metadata))
