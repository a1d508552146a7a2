"""SAM's encoder: official checkpoints, the reference package's numbers, preprocessing."""

from functools import partial

import pytest
import torch

from ovsdino.errors import OVSDinoError
from ovsdino.models.sae import SAMAlignment, sam_alignment_loss
from ovsdino.models.sam import SAMEncoder

SIDE = 256  # a quarter of SAM's own: the same network on a 16 x 16 grid, quick enough for every run


@pytest.fixture(scope="module")
def reference():
    """segment-anything's own vit_b image encoder, seeded random weights, relative positions included."""
    modeling = pytest.importorskip("segment_anything.modeling", reason="needs segment-anything")
    torch.manual_seed(0)
    encoder = modeling.ImageEncoderViT(
        depth=12,
        embed_dim=768,
        img_size=SIDE,
        mlp_ratio=4,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        num_heads=12,
        patch_size=16,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=[2, 5, 8, 11],
        window_size=14,
        out_chans=256,
    ).eval()
    for name, parameter in encoder.named_parameters():
        if "pos" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return encoder


def test_official_checkpoint_gives_the_reference_embedding(reference, tmp_path):
    path = tmp_path / "sam_vit_b.pth"
    state = {f"image_encoder.{k}": v for k, v in reference.state_dict().items()}
    torch.save({**state, "mask_decoder.iou_token.weight": torch.zeros(1, 256)}, path)
    ours = SAMEncoder("vit_b", img_size=SIDE)
    ours.load(path)
    x = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(ours.encoder.forward_features(x), reference(x), rtol=1e-4, atol=1e-4)


def test_preprocessing_keeps_the_ratio_and_pads_right_and_bottom():
    encoder = SAMEncoder("vit_b", img_size=SIDE)
    grey = torch.tensor([123.675, 116.28, 103.53])[:, None, None].expand(1, 3, 30, 60) + 57.0
    x, filled = encoder.preprocess(grey)
    assert filled == (128, 256)
    assert x.shape == (1, 3, SIDE, SIDE)
    assert (x[:, :, 128:] == 0).all()
    torch.testing.assert_close(x[0, 0, 5, 5].item(), 57.0 / 58.395, rtol=1e-4, atol=1e-4)


def test_embedding_covers_the_image_whatever_its_shape():
    encoder = SAMEncoder("vit_b", img_size=SIDE)
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 40, 80) * 255).shape == (1, 256, 64, 64)


def test_another_networks_file_is_refused(tmp_path):
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 16, 16, 768)}, tmp_path / "part.pth")
    with pytest.raises(OVSDinoError, match="keys missing"):
        SAMEncoder("vit_b", img_size=SIDE).load(tmp_path / "part.pth")
    with pytest.raises(OVSDinoError, match="unknown SAM variant"):
        SAMEncoder("vit_x")


def test_structure_tokens_are_aligned_at_sams_resolution():
    torch.manual_seed(0)
    align = SAMAlignment(32)
    tokens = torch.randn(2, 32, 5, 7, requires_grad=True)
    predicted = align(tokens)
    assert predicted.shape == (2, 256, 64, 64)
    sam_alignment_loss(predicted, torch.randn(2, 256, 64, 64)).backward()
    assert tokens.grad is not None and tokens.grad.abs().sum() > 0
