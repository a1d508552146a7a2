"""SAM's encoder: official checkpoints, the reference package's numbers, preprocessing."""

from functools import partial

import pytest
import timm
import torch

from ovsdino.errors import OVSDinoError
from ovsdino.models.sam import VARIANTS, SAMEncoder
from ovsdino.ops.compat import unpickles_safely

SIDE = 256  # a quarter of SAM's own: the same network on a 16 x 16 grid, quick enough for every run
SHAPES = {  # embed_dim, depth, heads, blocks with global attention: segment-anything's build_sam.py
    "vit_b": (768, 12, 12, [2, 5, 8, 11]),
    "vit_l": (1024, 24, 16, [5, 11, 17, 23]),
    "vit_h": (1280, 32, 16, [7, 15, 23, 31]),
}


def official_encoder(variant: str, side: int) -> torch.nn.Module:
    """segment-anything's own image encoder."""
    modeling = pytest.importorskip("segment_anything.modeling", reason="needs segment-anything")
    dim, depth, heads, global_blocks = SHAPES[variant]
    return modeling.ImageEncoderViT(
        depth=depth,
        embed_dim=dim,
        img_size=side,
        mlp_ratio=4,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        num_heads=heads,
        patch_size=16,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=global_blocks,
        window_size=14,
        out_chans=256,
    )


def test_official_checkpoint_gives_the_reference_embedding(tmp_path):
    torch.manual_seed(0)
    reference = official_encoder("vit_b", SIDE).eval()
    for name, parameter in reference.named_parameters():
        if "pos" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    path = tmp_path / "sam_vit_b.pth"
    state = {f"image_encoder.{k}": v for k, v in reference.state_dict().items()}
    torch.save({**state, "mask_decoder.iou_token.weight": torch.zeros(1, 256)}, path)
    ours = SAMEncoder("vit_b", img_size=SIDE)
    ours.load(path)
    x = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        # In double precision nothing hides behind rounding.
        expected = reference.double()(x.double())
        torch.testing.assert_close(ours.encoder.double().forward_features(x.double()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", sorted(SHAPES))
def test_keys_and_shapes_are_the_official_ones_at_full_size(variant):
    with torch.device("meta"):
        official = official_encoder(variant, 1024)
        ours = timm.create_model(VARIANTS[variant], num_classes=0, img_size=1024)
    expected = {k.replace("mlp.lin", "mlp.fc"): v.shape for k, v in official.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected


def test_preprocessing_keeps_the_ratio_and_pads_right_and_bottom():
    encoder = SAMEncoder("vit_b", img_size=SIDE)
    gray = torch.tensor([123.675, 116.28, 103.53])[:, None, None].expand(1, 3, 30, 60) + 57.0
    x, filled = encoder.preprocess(gray)
    assert filled == (128, 256)
    assert x.shape == (1, 3, SIDE, SIDE)
    assert (x[:, :, 128:] == 0).all()
    torch.testing.assert_close(x[0, 0, 5, 5].item(), 57.0 / 58.395, rtol=1e-4, atol=1e-4)


def test_embedding_covers_the_image_whatever_its_shape():
    encoder = SAMEncoder("vit_b", img_size=SIDE)
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 40, 80) * 255).shape == (1, 256, 64, 64)


@pytest.mark.skipif(not unpickles_safely(), reason="this torch reads no pickled weights")
def test_another_networks_file_is_refused(tmp_path):
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 16, 16, 768)}, tmp_path / "part.pth")
    with pytest.raises(OVSDinoError, match="keys missing"):
        SAMEncoder("vit_b", img_size=SIDE).load(tmp_path / "part.pth")
    with pytest.raises(OVSDinoError, match="unknown SAM variant"):
        SAMEncoder("vit_x")
