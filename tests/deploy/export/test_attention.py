"""q, k and v as three products are the same attention, and what a float16 graph holds."""

from __future__ import annotations

import onnx
import torch

from ovsdino.deploy.export.attention import SplitAttention, split_attention
from tests.support.graphs import exported
from tests.support.small import small_model


def test_three_products_are_the_attention() -> None:
    model = small_model()
    expected, tokens = model.backbone.vit.blocks[0].attn, torch.randn(2, 12, 32)
    with torch.no_grad():
        whole = expected(tokens)
        assert split_attention(model) == 2
        split = model.backbone.vit.blocks[0].attn
        assert isinstance(split, SplitAttention)
        torch.testing.assert_close(split(tokens), whole)


def test_graphs_in_float16_hold_three_products_and_those_in_float32_one() -> None:
    half = exported(decoder=False, precision="float16")
    for graph, products in ((half, {"q", "k", "v"}), (exported(decoder=False), {"qkv"})):
        names = [node.name for node in onnx.load_model_from_string(graph.data).graph.node if node.op_type == "MatMul"]
        inner = {name.split("/")[0].rpartition(".")[2] for name in names if ".blocks.0.attn." in name}
        assert inner - {"proj"} == products
