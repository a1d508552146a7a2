"""The schema of every op, once: the library definition, the tests and the documentation read them from here."""

from __future__ import annotations

import torch

NAMESPACE = "ovsdino"

SCHEMAS: dict[str, str] = {
    "structure_attention": (
        "(Tensor q, Tensor k, Tensor v, Tensor e, Tensor lam, Tensor? gate, float scale, str backend='', "
        "Tensor? key_e=None) -> Tensor"
    ),
    "structure_attention_triton": (
        "(Tensor q, Tensor k, Tensor v, Tensor e, Tensor lam, Tensor? gate, float scale, bool keep, "
        "Tensor? key_e=None) -> (Tensor, Tensor, Tensor)"
    ),
    "structure_attention_triton_backward": (
        "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor e, Tensor lam, Tensor? gate, float scale, Tensor plain, "
        "Tensor level, Tensor? key_e=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "mask_pool": "(Tensor features, Tensor masks) -> (Tensor, Tensor)",
    "mask_pool_backward": "(Tensor grad, Tensor masks, SymInt tokens) -> Tensor",
    "upsample_argmax": "(Tensor logits, SymInt[2] size, float? threshold) -> Tensor",
    "upsample_argmax_confidence": "(Tensor logits, SymInt[2] size, float? threshold) -> (Tensor, Tensor)",
    "guided_upsample": "(Tensor logits, Tensor guide_lo, Tensor guide_hi, Tensor beta) -> Tensor",
    "guided_upsample_backward": (
        "(Tensor grad, Tensor logits, Tensor guide_lo, Tensor guide_hi, Tensor beta) -> "
        "(Tensor, Tensor, Tensor, Tensor)"
    ),
    "preprocess": (
        "(Tensor image, SymInt[2] size, float[] mean, float[] std, bool antialias, ScalarType dtype) -> Tensor"
    ),
}

LIBRARY = torch.library.Library(NAMESPACE, "DEF")
for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))


def qualified(name: str) -> str:
    """Return the name torch.library knows the op by, e.g. ``ovsdino::mask_pool``."""
    return f"{NAMESPACE}::{name}"
