"""The TensorRT side cannot run without a GPU: every name that it takes from the bindings is looked up in them."""

from __future__ import annotations

import ast
import ctypes
import importlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ovsdino.edge import cuda_memory
from ovsdino.edge import tensorrt_graph as runtime_tensorrt
from ovsdino.edge.cuda_memory import Buffer
from ovsdino.edge.labels import Wish
from ovsdino.edge.onnx_graph import OnnxGraph
from ovsdino.timing import Clock
from tests.support import device, tiny
from tests.support.device import Cuda

TREE = ast.parse("\n".join(Path(str(module.__file__)).read_text() for module in (cuda_memory, runtime_tensorrt)))
BACKENDS = [name for name in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(name)]

# The name of a value in the source: the type that the bindings give it.
TYPES = {"engine": "ICudaEngine", "_engine": "ICudaEngine", "context": "IExecutionContext"}
TYPES |= {"_context": "IExecutionContext", "_runtime": "Runtime", "config": "IRuntimeConfig"}


def chains() -> Iterator[tuple[str, list[str]]]:
    """(root, names after it) of every a.b.c in the source, "self" left out."""
    for node in ast.walk(TREE):
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and names:
            names = [node.id, *names]
            yield (names[1], names[2:]) if names[0] == "self" and len(names) > 2 else (names[0], names[1:])


def resolve(start: Any, names: list[str]) -> None:
    for name in names:
        assert hasattr(start, name), f"{start} has no {name}"
        start = getattr(start, name)


def test_every_name_of_cuda_python_is_there() -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime")
    used = [names for root, names in chains() if root in ("cuda", "_cuda")]
    assert len({names[0] for names in used}) > 20
    for names in used:
        resolve(cuda, names)


def test_every_call_of_cuda_python_has_its_number_of_arguments() -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime")
    seen = 0
    for node in ast.walk(TREE):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("cuda"):
            signature = re.match(r"\w+\((.*)\)", getattr(cuda, node.func.attr).__doc__.strip().splitlines()[0])
            assert signature is not None and not node.keywords
            expected = len([part for part in signature[1].split(",") if part.strip()])
            assert len(node.args) == expected, f"{node.func.attr} takes {signature[1]!r}"
            seen += 1
    assert seen > 20


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_name_of_tensorrt_is_there(backend: str) -> None:
    trt = importlib.import_module(backend)
    seen = set()
    for root, names in chains():
        if root == "trt" and "DynamicShapesKernelSpecializationStrategy" in names and backend == "tensorrt":
            continue  # asked for on TensorRT-RTX alone
        if root == "trt":
            resolve(trt, names)
        elif root in TYPES and not (backend == "tensorrt" and names == ["create_runtime_config"]):
            if backend == "tensorrt" and root == "config":
                continue
            resolve(getattr(trt, TYPES[root]), names[:1])
        else:
            continue
        seen.add(names[0])
    assert {
        "deserialize_cuda_engine",
        "execute_async_v3",
        "set_tensor_address",
        "get_tensor_shape",
        "get_tensor_profile_shape",
    } <= seen


@pytest.mark.parametrize("names", [[], ["create_runtime_config"]], ids=["10.3", "11.4"])
def test_tensorrt_needs_no_runtime_config(names: list[str]) -> None:
    """TensorRT 10.3 has no `create_runtime_config`; 11.4 has one, without the strategies of TensorRT-RTX."""
    engine = SimpleNamespace(create_execution_context=lambda *rest: ("context", *rest), **dict.fromkeys(names))
    assert runtime_tensorrt._context(ModuleType("tensorrt"), engine) == ("context",)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensorrt_logs_to_our_log(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    trt = importlib.import_module(backend)
    logger = runtime_tensorrt._logger(trt)
    with caplog.at_level(logging.DEBUG, "ovsdino"):
        logger.log(trt.ILogger.Severity.WARNING, "two\nlines")
        logger.log(trt.ILogger.Severity.VERBOSE, "chatter")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("WARNING", "TensorRT: two lines")]


def test_the_kernels_of_the_device_take_what_the_runtime_gives() -> None:
    """preprocess_cuda and upsample_argmax_cuda have the arguments of their host twins, and a stream after the last."""
    native = runtime_tensorrt.native
    if native is None:
        pytest.skip("ovsdino._C is missing")
    calls = {
        node.func.attr: len(node.args) + sum(1 for arg in node.args if isinstance(arg, ast.Starred))
        for node in ast.walk(TREE)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.endswith("_cuda")
    }
    for name in ("preprocess", "upsample_argmax"):
        arguments = re.findall(r"arg\d+", getattr(native, f"{name}_host").__doc__)
        assert calls[f"{name}_cuda"] == len(arguments) + 1


def test_a_buffer_that_stays_on_the_device_has_no_pinned_twin() -> None:
    cuda = Cuda()
    buffer = Buffer(cuda, 16)
    assert cuda.kinds == ["device"]
    buffer.host[:4] = 7
    assert cuda.kinds == ["device", "pinned"]
    buffer.upload(4, None)
    assert ctypes.string_at(buffer.device, 4) == b"\7" * 4 and cuda.copies == ["up"]
    buffer.fit(32)
    assert cuda.kinds == ["device"]  # the twin comes back when it is asked for
    buffer.download(32, None)
    assert cuda.copies == ["up", "down"] and len(buffer.host) == 32
    buffer.free()
    assert cuda.kinds == [] and buffer.host.size == 0


def test_where_memory_is_shared_a_buffer_is_one_piece_and_nothing_is_copied() -> None:
    cuda = Cuda()
    buffer = Buffer(cuda, 16, mapped=True)
    buffer.host[:3] = (1, 2, 3)
    buffer.upload(3, None)
    assert ctypes.string_at(buffer.device, 3) == b"\1\2\3"
    buffer.download(3, None)
    buffer.fit(64)
    assert cuda.kinds == ["mapped"] and cuda.copies == []
    buffer.free()
    assert cuda.kinds == []


@pytest.mark.parametrize("integrated", [False, True])
def test_frames_of_several_cameras_go_through_one_launch(
    integrated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RGB and NV12 of three sizes in one batch: what each gives alone, and ONNX Runtime's labels."""
    if runtime_tensorrt.native is None:
        pytest.skip("ovsdino._C is missing")
    path, bank = tiny.graph(tmp_path / "tiny.onnx", batch=(1, 3)), tiny.bank("a", "b", "c")
    sidecar = tiny.sidecar(path, input=(3, 3, tiny.HEIGHT, tiny.WIDTH))
    cuda = Cuda(integrated=integrated)
    monkeypatch.setattr(runtime_tensorrt, "cuda_runtime", lambda: cuda)
    monkeypatch.setattr(runtime_tensorrt, "native", device.kernels())
    engines = [device.Engine(cuda, 3) for _ in range(2)]
    graph, single = (runtime_tensorrt.TensorRTGraph(device.tensorrt(one), b"", sidecar, 0) for one in engines)
    peer = OnnxGraph(path.read_bytes(), sidecar, 1)
    for each in (graph, single, peer):
        each.set_text(bank.text)
    draw = np.random.default_rng(0).integers
    frames = [draw(0, 256, shape, dtype=np.uint8) for shape in ((31, 45, 3), (36, 50), (48, 64, 3))]
    sizes, wish = [(31, 45), (24, 50), (48, 64)], Wish(confidence=True)
    engines[0].batches.clear()
    for count in (1, 3, 2):
        found = graph.run(frames[:count], sizes[:count], wish, Clock())
        for place, own in enumerate(found):
            frame = frames[place : place + 1], sizes[place : place + 1], wish, Clock()
            (alone,), (other,) = single.run(*frame), peer.run(*frame)
            np.testing.assert_array_equal(own.labels, alone.labels)
            np.testing.assert_array_equal(own.confidence, alone.confidence)
            assert own.labels.shape == sizes[place] and (own.labels == other.labels).mean() > 0.98
    assert engines[0].batches == [1, 3, 3, 3]  # one for the recording of three; two are filled up
    assert ("up" in cuda.copies) is not integrated
    graph.close()
    single.close()
    assert cuda.kinds == []
