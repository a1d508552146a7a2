"""The table of measured choices: how rows come from results, how files are merged, and what "auto" takes from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ovsdino.errors import OVSDinoError
from ovsdino.ops import dispatch, measured, structure_attention, use_backend
from ovsdino.ops.dispatch import OP_BACKENDS
from tests.ops.test_structure_attention import draw

OP = "structure_attention"
CARD = "Some Card 3"


def result(size: int, backend: str, ours: float, sdpa: float, gradient: bool = False, dtype: str = "float16") -> dict:
    times = {"backend": backend, "ours_ms": ours, "baseline_ms": sdpa, "rival": "sdpa"}
    return {"op": OP, "dtype": dtype, "size": size, "gradient": gradient, **times}


def row(**change: Any) -> dict[str, Any]:
    fields = {"device": CARD, "op": OP, "dtype": "float16", "gradient": False, "at_least": 0, "below": None}
    return {**fields, "backend": "triton", **change}


def bounds_of(rows: tuple[measured.Row, ...]) -> list[tuple[str, bool, int, int | None, str]]:
    return [(x.dtype, x.gradient, x.at_least, x.below, x.backend) for x in rows]


def test_the_fastest_backend_of_each_size_wins_and_bounds_are_geometric_means() -> None:
    results = [
        result(1000, "triton", 1.0, 3.0),
        result(1000, "cuda", 2.0, 3.1),
        result(4000, "triton", 2.0, 3.0),
        result(4000, "cuda", 1.5, 3.0),
        result(16000, "triton", 9.0, 7.0),
        result(16000, "cuda", 8.0, 7.0),
        result(1000, "triton", 5.0, 4.0, gradient=True),
        result(256, "triton", 0.5, 0.6, dtype="float32"),
        {"op": OP, "dtype": "float16", "ours_ms": 0.1, "backend": "triton", "baseline_ms": 9.0},  # no backend's rival
    ]
    assert bounds_of(measured.rows_from(results, CARD, OP_BACKENDS)) == [
        ("float16", False, 0, 2000, "triton"),
        ("float16", False, 2000, 8000, "cuda"),
        ("float16", False, 8000, None, "sdpa"),
        ("float16", True, 0, None, "sdpa"),
        ("float32", False, 0, None, "triton"),
    ]


def test_rows_of_a_backend_that_no_op_has_are_refused() -> None:
    with pytest.raises(OVSDinoError, match=r"no backend 'flash' of 'structure_attention'"):
        measured.rows_from([result(10, "flash", 1.0, 2.0)], CARD, OP_BACKENDS)


def test_merging_replaces_the_rows_of_a_card_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    for device, backend in (("A", "triton"), ("B", "cuda"), ("A", "sdpa")):
        measured.merge(path, measured.checked([row(device=device, backend=backend)], OP_BACKENDS, "test"), OP_BACKENDS)
    assert [(x.device, x.backend) for x in measured.read(path, OP_BACKENDS)] == [("A", "sdpa"), ("B", "cuda")]
    assert len(path.read_text().splitlines()) == 4  # a row for each line: readable differences


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ([row(backend="fast")], "row 0: there is no backend 'fast' of 'structure_attention'"),
        ([row(op="attention")], "no backend 'triton' of 'attention'"),
        ([row(backend="cpu")], "no backend 'cpu' of 'structure_attention'"),
        ([row(), row(device="B", dtype="float64")], "row 1: unknown dtype 'float64'"),
        ([row(device="")], "device ''"),
        ([row(at_least=-1)], "no size is from -1"),
        ([row(at_least=8, below=8)], "no size is from 8 to below 8"),
        ([row(at_least=True)], "at_least cannot be True"),
        ([row(at_least=1.5)], "at_least cannot be 1.5"),
        ([row(gradient=1)], "gradient cannot be 1"),
        ([row(extra=1)], "expected the fields"),
        ([{"op": OP}], "expected the fields"),
        ([[1]], "expected the fields"),
        ([row(below=10), row(at_least=9)], "two rows for structure_attention of size 9"),
        ([row(), row(at_least=9, below=12)], "two rows for structure_attention of size 9"),
    ],
)
def test_a_malformed_or_foreign_row_is_refused_in_one_line(rows: list[Any], shown: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(before := json.dumps({"format": 1, "rows": rows}))
    good = measured.checked([row(device="other")], OP_BACKENDS, "test")
    for call in (lambda: measured.read(path, OP_BACKENDS), lambda: measured.merge(path, good, OP_BACKENDS)):
        with pytest.raises(OVSDinoError) as caught:
            call()
        assert shown in str(caught.value) and str(path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert path.read_text() == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 2, "rows": []}', "\x00"])
def test_a_damaged_table_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(OVSDinoError, match="run make gpu-check again"):
        measured.read(path, OP_BACKENDS)


def test_the_shipped_table_is_valid_and_as_the_writer_writes_it(tmp_path: Path) -> None:
    rows = measured.read(measured.FILE, OP_BACKENDS)
    assert rows and {x.op for x in rows} == {OP, "mask_pool"}
    measured.merge(tmp_path / "again.json", rows, OP_BACKENDS)
    assert (tmp_path / "again.json").read_text() == measured.FILE.read_text()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device called `CARD`, with rows in the table; nothing is launched on it."""
    rows = [
        row(below=100),
        row(at_least=100, below=1000, backend="cuda"),
        row(at_least=5000, backend="triton"),
        row(gradient=True, backend="sdpa"),
        row(device="Another Card", dtype="bfloat16"),
    ]
    monkeypatch.setattr(dispatch, "TABLE", measured.checked(rows, OP_BACKENDS, "test"))
    monkeypatch.setattr(dispatch, "_card", lambda index: CARD)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dispatch, "has_triton", True)
    monkeypatch.setattr(dispatch, "native_cuda", dispatch.native is not None)
    dispatch._choices.cache_clear()
    yield
    dispatch._choices.cache_clear()


def chosen(size: int, dtype: torch.dtype = torch.float16, gradient: bool = False, device: str = "cuda") -> str:
    with use_backend("auto"):
        return dispatch.resolve(OP, torch.device(device), dtype, size=size, gradient=gradient)


def test_auto_takes_what_was_measured_on_the_card(card: None) -> None:
    kernel = "cuda" if dispatch.native is not None else "sdpa"
    assert [chosen(size) for size in (1, 99, 100, 999, 5000, 10**6)] == [
        "triton", "triton", kernel, kernel, "triton", "triton"
    ]  # fmt: skip
    assert chosen(50, gradient=True) == "sdpa"


def test_auto_takes_the_plain_fallback_where_nothing_was_measured(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(2000) == "sdpa"  # between two rows
    assert chosen(50, torch.bfloat16) == "sdpa"  # another card's row
    assert chosen(50, torch.float64) == "sdpa"
    assert chosen(50, device="cpu") == "sdpa"
    monkeypatch.setattr(dispatch, "_card", lambda index: "Unknown Card")
    assert chosen(50) == "sdpa"


def test_auto_takes_the_plain_fallback_where_the_build_lacks_the_measured_backend(
    card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "native_cuda", False)
    monkeypatch.setattr(dispatch, "has_triton", False)
    assert chosen(50) == chosen(500) == "sdpa"


def test_a_backend_asked_for_by_name_is_not_looked_up(card: None) -> None:
    with use_backend("reference"):
        assert dispatch.resolve(OP, torch.device("cuda"), torch.float16, size=50) == "reference"


def test_auto_chooses_by_a_symbolic_size_in_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.compiler.assume_constant_result
    def choices(*_: Any) -> tuple:
        return (0, 50, "reference"), (50, None, "sdpa")

    monkeypatch.setattr(dispatch, "measured_choices", choices)
    taken: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list) -> Any:
        names = {str(node.target) for node in graph.graph.nodes}
        taken.append("sdpa" if any("scaled_dot_product" in name for name in names) else "reference")
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(structure_attention, fullgraph=True, dynamic=True, backend=backend)
    with use_backend("auto"):
        for tokens in (20, 30, 60, 70, 40):
            inputs = draw(1, 2, tokens, 8, 16, 3, torch.float32)
            torch.testing.assert_close(compiled(*inputs), structure_attention(*inputs))
    assert taken == ["reference", "sdpa"]  # one compilation on each side of the bound


@pytest.mark.gpu
def test_auto_on_this_card_is_the_row_of_the_shipped_table() -> None:
    name, device = torch.cuda.get_device_name(), torch.device("cuda")
    for size in (64, 1024, 4096, 65536):
        found = [x for x in dispatch.TABLE if x.key == (name, OP, "float16", False)]
        fits = [x.backend for x in found if x.at_least <= size and (x.below is None or size < x.below)]
        with use_backend("auto"):
            assert dispatch.resolve(OP, device, torch.float16, size=size) == (fits[0] if fits else "sdpa")
