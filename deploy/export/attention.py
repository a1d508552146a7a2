"""Attention of timm's ViTs with q, k and v as three products, for graphs that TensorRT quantizes.

Of one product for all three TensorRT dequantizes the int8 weights at every inference, since the result is cut up before
the attention; of three it runs each in int8, and the attention stays fused.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["SplitAttention", "split_attention"]


class SplitAttention(nn.Module):
    """The explicit form of timm's `Attention`, MatMul, Softmax, MatMul with the scale in q.

    Args:
        attention: A `timm.layers.Attention` in eval mode, without gate.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        fused = attention.qkv
        assert isinstance(fused, nn.Linear)
        width = fused.out_features // 3
        for index, name in enumerate(("q", "k", "v")):
            part, rows = nn.Linear(fused.in_features, width, bias=fused.bias is not None), slice(index * width, None)
            part.weight = nn.Parameter(fused.weight[rows][:width].detach().clone(), requires_grad=False)
            if fused.bias is not None:
                part.bias = nn.Parameter(fused.bias[rows][:width].detach().clone(), requires_grad=False)
            setattr(self, name, part)
        self.q_norm, self.k_norm, self.norm, self.proj = (
            attention.q_norm,
            attention.k_norm,
            attention.norm,
            attention.proj,
        )
        self.heads, self.scale = attention.num_heads, attention.scale

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Map tokens (B, N, D) to (B, N, D).

        Raises:
            ValueError: A mask is given.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("a mask is given: the exported attention sees all tokens")
        q, k, v = (getattr(self, name)(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in "qkv")
        q, k = self.q_norm(q), self.k_norm(k)
        mixed = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        out: Tensor = self.proj(self.norm(mixed.transpose(1, 2).flatten(2)))
        return out


def split_attention(model: nn.Module) -> int:
    """Replace timm's plain attentions in a model, in place, and return how many there were."""
    from timm.layers import Attention

    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is Attention and child.gate is None:
                setattr(parent, name, SplitAttention(child))
                count += 1
    return count
