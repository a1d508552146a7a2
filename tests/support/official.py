"""State dicts as the authors publish them (same keys, same shapes, same number formats), with seeded random values.

Values are large enough that every tensor shows in the outputs, and small enough that float32 stays good to 1e-5.
"""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]


class Draw:
    """Seeded tensors: `draw(shape, std, mean)`."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, std: float = 0.02, mean: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * std + mean


def vit_blocks(draw: Draw, dim: int, depth: int) -> State:
    """Return the weights that DINOv2 and DINOv3 name alike: patch embedding, blocks, final norm."""
    state: State = {}

    def linear(name: str, out: int, inputs: int) -> None:
        state[f"{name}.weight"] = draw(out, inputs, std=inputs**-0.5)
        state[f"{name}.bias"] = draw(out, std=0.1)

    def norm(name: str) -> None:
        state[f"{name}.weight"] = draw(dim, std=0.1, mean=1.0)
        state[f"{name}.bias"] = draw(dim, std=0.1)

    for i in range(depth):
        block = f"blocks.{i}"
        norm(f"{block}.norm1")
        linear(f"{block}.attn.qkv", 3 * dim, dim)
        linear(f"{block}.attn.proj", dim, dim)
        state[f"{block}.ls1.gamma"] = draw(dim, std=0.1, mean=0.3)
        norm(f"{block}.norm2")
        linear(f"{block}.mlp.fc1", 4 * dim, dim)
        linear(f"{block}.mlp.fc2", dim, 4 * dim)
        state[f"{block}.ls2.gamma"] = draw(dim, std=0.1, mean=0.3)
    norm("norm")
    return state


def dinov2(dim: int, depth: int, seed: int = 0) -> State:
    """Return dinov2_vit*14_reg4_pretrain.pth: 518 pixels, class token with a position, four registers."""
    draw = Draw(seed)
    return {
        "cls_token": draw(1, 1, dim, std=0.5),
        "pos_embed": draw(1, 1 + 37 * 37, dim, std=0.5),
        "register_tokens": draw(1, 4, dim, std=0.5),
        "mask_token": draw(1, dim),
        "patch_embed.proj.weight": draw(dim, 3, 14, 14, std=0.05),
        "patch_embed.proj.bias": draw(dim, std=0.1),
        **vit_blocks(draw, dim, depth),
    }


def dinov3(dim: int, depth: int, heads: int, seed: int = 0) -> State:
    """Return dinov3_vit*16_pretrain_lvd1689m.pth: rotary positions, four storage tokens, attention biases all zero."""
    draw = Draw(seed)
    quarter = dim // heads // 4
    state = {
        "cls_token": draw(1, 1, dim, std=0.5),
        "storage_tokens": draw(1, 4, dim, std=0.5),
        "mask_token": draw(1, dim),
        "patch_embed.proj.weight": draw(dim, 3, 16, 16, std=0.05),
        "patch_embed.proj.bias": draw(dim, std=0.1),
        "rope_embed.periods": 100.0 ** (torch.arange(quarter) / quarter),
        **vit_blocks(draw, dim, depth),
    }
    for i in range(depth):
        state[f"blocks.{i}.attn.qkv.bias"] = torch.zeros(3 * dim)
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.zeros(3 * dim)
    return state


def clip(seed: int = 0) -> State:
    """Return the state dict of OpenAI's ViT-B-16.pt: linear layers in half precision, and three more scalars."""
    draw = Draw(seed)
    state: State = {
        "positional_embedding": draw(77, 512, std=0.1),
        "text_projection": draw(512, 512, std=0.05).half(),
        "logit_scale": torch.tensor(4.6052),
        "input_resolution": torch.tensor(224),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
        "token_embedding.weight": draw(49408, 512, std=0.1),
        "visual.class_embedding": draw(768),
        "visual.positional_embedding": draw(197, 768),
        "visual.proj": draw(768, 512).half(),
        "visual.conv1.weight": draw(768, 3, 16, 16).half(),
    }
    for name, dim in (("visual.ln_pre", 768), ("visual.ln_post", 768), ("ln_final", 512)):
        state[f"{name}.weight"] = draw(dim, std=0.1, mean=1.0)
        state[f"{name}.bias"] = draw(dim, std=0.1)
    for tower, dim in (("visual.transformer", 768), ("transformer", 512)):
        for i in range(12):
            block = f"{tower}.resblocks.{i}"
            for norm in ("ln_1", "ln_2"):
                state[f"{block}.{norm}.weight"] = draw(dim, std=0.1, mean=1.0)
                state[f"{block}.{norm}.bias"] = draw(dim, std=0.1)
            layers = (("attn.in_proj_", 3, 1), ("attn.out_proj.", 1, 1), ("mlp.c_fc.", 4, 1), ("mlp.c_proj.", 1, 4))
            for layer, out, inputs in layers:
                weight = draw(out * dim, inputs * dim, std=0.5 * (inputs * dim) ** -0.5)
                state[f"{block}.{layer}weight"] = weight.half()
                state[f"{block}.{layer}bias"] = draw(out * dim, std=0.1).half()
    return state


def projection(dim: int, seed: int = 0) -> State:
    """Talk2DINO's projection file."""
    draw = Draw(seed)
    return {
        "linear_layer.weight": draw(dim, 512, std=0.05),
        "linear_layer.bias": draw(dim),
        "hidden_layers.0.weight": draw(dim, dim, std=0.05),
        "hidden_layers.0.bias": draw(dim),
    }
