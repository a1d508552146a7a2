"""TensorRT's names checked against its bindings, and the targets of TensorRT-RTX."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ovsdino.deploy.export import tensorrt_api
from ovsdino.deploy.export.options import BuildOptions
from ovsdino.errors import OVSDinoError

RTX_ONLY = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to build for")


def used_names() -> set[str]:
    """Attributes that tensorrt_api.py takes of TensorRT's module and objects."""
    roots = {"trt", "builder", "network", "parser", "config", "profile", "runtime", "engine", "inspector"}

    def root(node: ast.AST) -> str:
        while isinstance(node, (ast.Attribute, ast.Call)):
            node = node.value if isinstance(node, ast.Attribute) else node.func
        return node.id if isinstance(node, ast.Name) else ""

    tree = ast.parse(Path(tensorrt_api.__file__).read_text())
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and root(node) in roots)
    return {node.attr for node in attributes if not node.attr.startswith("__")}


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1", "11.4.0"])
def test_every_name_is_in_the_bindings_of_each_tensorrt(version: str) -> None:
    table = json.loads((Path(__file__).parent / "tensorrt_names.json").read_text())["names"]
    used = used_names()
    assert {"STRONGLY_TYPED", "build_serialized_network", "set_timing_cache", "DLA_core", *RTX_ONLY} <= used
    assert not used - RTX_ONLY - set(table[version])
    assert not RTX_ONLY & set(table[version])  # which is why they stand behind the backend's name
    assert ("FP16" in table[version]) == (version < "11")  # a builder flag that went: types come from the graph


def test_every_name_is_in_the_installed_tensorrt_rtx(rtx: ModuleType) -> None:
    real = set(dir(rtx)) | {name for one in vars(rtx).values() if isinstance(one, type) for name in dir(one)}
    assert not used_names() - real


def test_targets_of_tensorrt_rtx(rtx: ModuleType) -> None:
    assert tensorrt_api.resolve_target("tensorrt_rtx", "sm86") == "sm86"
    assert tensorrt_api.resolve_target("tensorrt_rtx", "sm120,sm75") == "sm75,sm120"
    with pytest.raises(OVSDinoError, match=r"has no target sm87, it builds for sm75.*--backend tensorrt --target curr"):
        tensorrt_api.resolve_target("tensorrt_rtx", "sm87")
    with pytest.raises(OVSDinoError, match="has no target sm90"):
        tensorrt_api.resolve_target("tensorrt_rtx", "sm86,sm90")
    for wrong in ("orin", "sm", "86", "sm86,", ""):
        with pytest.raises(OVSDinoError, match="expected current, or an architecture"):
            tensorrt_api.resolve_target("tensorrt_rtx", wrong)
    with pytest.raises(OVSDinoError, match="unknown backend 'cuda'"):
        tensorrt_api.resolve_target("cuda", "sm86")


@no_gpu
def test_the_current_device_must_be_there(rtx: ModuleType) -> None:
    with pytest.raises(OVSDinoError) as caught:
        tensorrt_api.resolve_target("tensorrt_rtx", "current")
    assert "\n" not in str(caught.value)


def test_a_graph_that_is_none_is_refused(rtx: ModuleType) -> None:
    settings = BuildOptions(backend="tensorrt_rtx", target="sm86")
    with pytest.raises(OVSDinoError, match="cannot parse the graph") as caught:
        tensorrt_api.build(b"not a graph", settings, "sm86", {})
    assert "\n" not in str(caught.value)
