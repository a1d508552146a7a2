"""Rewrite an exported ONNX graph: names by module, patterns that the runtimes fuse, 16 bits with float32 norms."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import ml_dtypes
import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, defs, helper, numpy_helper, shape_inference

from ovsdino.errors import OVSDinoError

__all__ = [
    "attribute",
    "constants",
    "consumers",
    "drop_unused",
    "name_by_module",
    "order_gelu",
    "replace",
    "simplify",
    "to_16_bits",
]

# Sums over many values, and exponentials: their float16 forms overflow or lose their precision.
FLOAT32_OPS = {
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "Softmax", "Exp", "Log", "Softplus"),
    *("ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "Pow", "Sqrt", "Reciprocal", "Clip"),
}
# Ops between a product and the softmax over it stay in float32 with it.
BEFORE_SOFTMAX = {"Add", "Sub", "Mul", "Div", "Where", "Neg", "Reshape", "Transpose", "Gather", "Unsqueeze", "Squeeze"}
BROADCASTING = {"Add", "Sub", "Mul", "Div", "Pow", "Where"}
# Differences of squares of several hundred, where float16 has steps of 0.25.
FLOAT32_MODULES = ("decoder.score_attention",)
BFLOAT16_OPSET = 22  # the first whose Conv takes bfloat16; it changes no op that opset 18 has otherwise
NARROW = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
UNTOUCHED = {"Resize": (1, 2)}  # inputs (roi, scales) that the standard fixes as float32


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Return the nodes that read each tensor, each node once."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Return the stored tensors by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def attribute(node: NodeProto, name: str) -> int:
    """Return an integer attribute of a node, 0 where it has none of that name."""
    return next((one.i for one in node.attribute if one.name == name), 0)


def name_by_module(model: ModelProto) -> None:
    """Name nodes `module.path/Op` (`Op_2`, ...) after the torch module they come from, and drop the tracer's notes.

    The notes hold stack traces with the paths of this machine, and are larger than the graph.
    """
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        name = f"{scopes[-2] if len(scopes) > 1 else ''}/{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        del node.metadata_props[:]
        node.doc_string = ""
    for part in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del model.graph.metadata_props[:]
    del model.metadata_props[:]


def order_gelu(model: ModelProto) -> int:
    """Rewrite x * (0.5 * (1 + erf)) as (x * (1 + erf)) * 0.5, the order that ONNX Runtime fuses to one Gelu.

    nano on one thread: 149 -> 143 ms of processor time. Returns how many were rewritten.
    """
    users, known, count = consumers(model.graph), constants(model.graph), 0
    for node in model.graph.node:
        if node.op_type != "Erf":
            continue
        chain = [node]
        for kind in ("Add", "Mul", "Mul"):
            after = users.get(chain[-1].output[0], [])
            if len(after) != 1 or after[0].op_type != kind:
                break
            chain.append(after[0])
        if len(chain) != 4:
            continue
        _, add, inner, outer = chain
        half = [name for name in inner.input if name != add.output[0]]
        x = [name for name in outer.input if name != inner.output[0]]
        if len(half) == 1 and half[0] in known and len(x) == 1:
            inner.input[:] = [x[0], add.output[0]]
            outer.input[:] = [inner.output[0], half[0]]
            count += 1
    return count


def simplify(model: ModelProto) -> None:
    """Take the branch of a Where whose condition is one constant, and leave out Expand before a broadcasting op."""
    graph = model.graph
    known, users, outputs = constants(graph), consumers(graph), {value.name for value in graph.output}
    renamed: dict[str, str] = {}
    for node in list(graph.node):
        if node.op_type == "Where" and node.input[0] in known and node.output[0] not in outputs:
            condition = numpy_helper.to_array(known[node.input[0]])
            if condition.size == 1:
                renamed[node.output[0]] = node.input[1 if condition.item() else 2]
        elif node.op_type == "Expand" and node.output[0] not in outputs:
            after = users.get(node.output[0], [])
            if after and all(user.op_type in BROADCASTING and _same_rank(model, user, node) for user in after):
                renamed[node.output[0]] = node.input[0]
    for node in graph.node:
        for index, name in enumerate(node.input):
            while name in renamed:
                name = renamed[name]
            node.input[index] = name
    drop_unused(graph)


def _same_rank(model: ModelProto, user: NodeProto, expand: NodeProto) -> bool:
    """Tell whether another input of `user` already has the shape that `expand` makes."""
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*model.graph.value_info, *model.graph.input)}
    wanted = shapes.get(expand.output[0])
    others = [shapes.get(name) for name in user.input if name != expand.output[0]]
    return wanted is not None and any(other is not None and list(other) == list(wanted) for other in others)


def drop_unused(graph: GraphProto) -> None:
    """Remove nodes, weights and shape notes that no output depends on."""
    while True:
        needed = {value.name for value in graph.output} | {name for node in graph.node for name in node.input}
        kept = [node for node in graph.node if any(name in needed for name in node.output)]
        if len(kept) == len(graph.node):
            break
        replace(graph.node, kept)
    replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])
    made = {name for node in graph.node for name in node.output}
    replace(graph.value_info, [value for value in graph.value_info if value.name in made])


def replace(field: Any, items: Iterable[Any]) -> None:
    """Replace the items of a repeated field."""
    kept = list(items)
    del field[:]
    field.extend(kept)


def _element_types(model: ModelProto) -> dict[str, int]:
    inferred = shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _in_float32(graph: GraphProto, untyped: set[str]) -> set[str]:
    """Return the nodes that compute in float32.

    These are FLOAT32_OPS, those that only feed them through BEFORE_SOFTMAX, all of FLOAT32_MODULES themselves, and
    `untyped`, the ops that have no form in 16 bits.
    """
    users = consumers(graph)
    chosen = {
        node.name
        for node in graph.node
        if node.op_type in FLOAT32_OPS | untyped or node.name.rpartition("/")[0] in FLOAT32_MODULES
    }
    for node in reversed(graph.node):
        after = [user for name in node.output for user in users.get(name, [])]
        softmax = bool(after) and all(user.op_type == "Softmax" or user.name in chosen for user in after)
        if node.op_type in BEFORE_SOFTMAX and softmax and _reaches_softmax(node, users):
            chosen.add(node.name)
    return chosen


def _without(graph: GraphProto, precision: Literal["float16", "bfloat16"]) -> set[str]:
    """Return the ops of a graph for which the standard has no form of this precision: Einsum has none in bfloat16."""
    if precision == "float16":
        return set()
    schemas = {node.op_type: defs.get_schema(node.op_type, BFLOAT16_OPSET) for node in graph.node}
    return {
        name
        for name, schema in schemas.items()
        if not any("tensor(bfloat16)" in one.allowed_type_strs for one in schema.type_constraints)
    }


def _reaches_softmax(node: NodeProto, users: dict[str, list[NodeProto]]) -> bool:
    after = [user for name in node.output for user in users.get(name, [])]
    return any(
        user.op_type == "Softmax" or (user.op_type in BEFORE_SOFTMAX and _reaches_softmax(user, users))
        for user in after
    )


def to_16_bits(model: ModelProto, precision: Literal["float16", "bfloat16"]) -> None:
    """Set weights and arithmetic to 16 bits, in place; inputs and outputs of the graph stay float32.

    Norms, sums, exponentials, everything between a product and its softmax, and the quotient of a float32 norm stay in
    float32. The result is strongly typed: every op sees one float type, with Casts where it changes.

    Args:
        model: A float32 graph with typed tensors.
        precision: float16 overflows beyond 65504; bfloat16 has float32's range, and 8 bits of a number in place of 11.

    Raises:
        OVSDinoError: A weight is too large for float16, or an op's type is not known.
    """
    narrow = NARROW[precision]
    graph = model.graph
    types, wide, known = _element_types(model), _in_float32(graph, _without(graph, precision)), constants(graph)
    current = {name: kind for name, kind in types.items() if kind == TensorProto.FLOAT}
    made: dict[tuple[str, int], str] = {}
    nodes: list[NodeProto] = []
    weights: dict[str, TensorProto] = {t.name: t for t in graph.initializer if t.data_type != TensorProto.FLOAT}

    def wanted(name: str, kind: int) -> str:
        if name in known:
            suffix = "" if kind == TensorProto.FLOAT else f"_{precision}"
            if name + suffix not in weights:
                weights[name + suffix] = known[name] if not suffix else _narrowed(known[name], name + suffix, precision)
            return name + suffix
        if current[name] == kind:
            return name
        if (name, kind) not in made:
            made[name, kind] = f"{name}_{'float32' if kind == TensorProto.FLOAT else precision}"
            nodes.append(helper.make_node("Cast", [name], [made[name, kind]], f"{made[name, kind]}/Cast", to=kind))
        return made[name, kind]

    for node in graph.node:
        inputs = [name for name in node.input if name in current and name not in known]
        quotient = node.op_type == "Div" and any(current[name] == TensorProto.FLOAT for name in inputs[1:])
        kind = TensorProto.FLOAT if node.name in wide or quotient else narrow
        for index, name in enumerate(node.input):
            if types.get(name) != TensorProto.FLOAT:
                continue
            fixed = index in UNTOUCHED.get(node.op_type, ())
            node.input[index] = wanted(name, TensorProto.FLOAT if fixed else kind)
        for name in node.output:
            if name not in types:
                raise OVSDinoError(f"{node.name}: the type of {name} is not known; {precision} needs a typed graph")
            if types[name] == TensorProto.FLOAT:
                current[name] = kind
        nodes.append(node)
    for value in graph.output:
        if current.get(value.name) == narrow:
            inner = f"{value.name}_{precision}"
            for node in nodes:
                node.input[:] = [inner if name == value.name else name for name in node.input]
                node.output[:] = [inner if name == value.name else name for name in node.output]
            nodes.append(helper.make_node("Cast", [inner], [value.name], f"{value.name}/Cast", to=TensorProto.FLOAT))
    replace(graph.node, nodes)
    replace(graph.initializer, weights.values())
    del graph.value_info[:]
    drop_unused(graph)
    if precision == "bfloat16":
        (opset,) = (one for one in model.opset_import if one.domain == "")
        opset.version = max(opset.version, BFLOAT16_OPSET)


def _narrowed(tensor: TensorProto, name: str, precision: Literal["float16", "bfloat16"]) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    if precision == "bfloat16":
        return numpy_helper.from_array(values.astype(ml_dtypes.bfloat16), name)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > float(np.finfo(np.float16).max):
        raise OVSDinoError(f"{tensor.name}: a weight of {largest:g} is too large for float16; use --precision bfloat16")
    return numpy_helper.from_array(values.astype(np.float16), name)
