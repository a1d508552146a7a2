"""The zoo: names, shipped weights, damage, offline errors."""

import pytest
import torch
from safetensors.torch import save_file

from ovsdino.errors import OVSDinoError
from ovsdino.models import weights, zoo


def test_the_zoo_names_the_contracts_models():
    assert [m.name for m in zoo.list_models()] == ["nano", "s14", "b14", "l14", "s16v3", "b16v3"]
    assert zoo.get_config("b14").backbone.taps == (2, 5, 8, 11)
    assert zoo.get_config("l14").backbone.taps == (5, 11, 17, 23)


def test_shipped_nano_is_small_whole_and_segments():
    entry = weights.packaged("nano")
    assert entry is not None and entry.bytes <= 12_000_000 and entry.parameters <= 6_000_000
    model = zoo.create_model("nano")
    assert model.decoder_trained and not model.training
    logits = model(torch.randn(1, 3, 64, 96), model.encode_text(["road", "sky"]))
    assert logits.shape == (1, 2, 16, 24) and torch.isfinite(logits).all()


def test_unseen_words_lie_nearest_their_class():
    model = zoo.create_model("nano")
    classes = ["sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
    words = {"automobile": "car", "foliage": "tree", "asphalt": "road", "biker": "bicyclist", "edifice": "building"}
    similarity = model.encode_text(list(words)) @ model.encode_text(classes).T
    assert [classes[i] for i in similarity.argmax(1)] == list(words.values())


def test_flipped_bit_in_the_shipped_file_is_refused(tmp_path, monkeypatch):
    data = bytearray((weights.WEIGHTS / "nano.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "nano.safetensors").write_bytes(data)
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path)
    with pytest.raises(OVSDinoError, match="damaged"):
        zoo.create_model("nano")


def test_unknown_model_lists_the_known():
    with pytest.raises(OVSDinoError, match="unknown model 'b99'; available: nano, s14"):
        zoo.create_model("b99")


def test_hub_model_offline_names_the_file_to_fetch(monkeypatch, tmp_path):
    monkeypatch.setenv("OVSDINO_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        OVSDinoError, match=r"model\.safetensors of the hub repository timm/vit_base_patch16_dinov3.* by hand"
    ):
        zoo.create_model("b16v3")


def test_a_model_without_published_projection_says_so_before_it_loads_anything():
    with pytest.raises(OVSDinoError, match=r"s14: no text projection is published .* or use b14, l14, b16v3"):
        zoo.create_model("s14")


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 64, b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_broken_checkpoint_is_one_error_that_names_the_file(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(OVSDinoError, match=r"w\.safetensors"):
        zoo.create_model("nano", checkpoint=tmp_path / "w.safetensors")


def test_timms_own_file_loads_from_disk(tmp_path):
    import timm

    torch.manual_seed(0)
    source = timm.create_model("vit_small_patch14_reg4_dinov2.lvd142m", num_classes=0, dynamic_img_size=True).eval()
    path = tmp_path / "model.safetensors"
    save_file(source.state_dict(), path)
    projection = {
        "linear_layer.weight": torch.randn(384, 512),
        "linear_layer.bias": torch.zeros(384),
        "hidden_layers.0.weight": torch.randn(384, 384),
        "hidden_layers.0.bias": torch.zeros(384),
    }
    torch.save(projection, tmp_path / "projection.pth")
    model = zoo.create_model("s14", backbone_weights=path, projection=tmp_path / "projection.pth")
    image = torch.randn(1, 3, 126, 182)
    with torch.no_grad():
        tokens, _ = model.backbone(image)
        expected = source.forward_features(image)[:, source.num_prefix_tokens :]
    torch.testing.assert_close(tokens.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)
    assert not model.has_decoder


def test_a_file_of_a_backbone_alone_takes_the_shipped_text_tower(tmp_path):
    shipped = zoo.create_model("nano")
    torch.manual_seed(5)
    backbone = {
        k: v for k, v in zoo.build_model("nano").state_dict().items() if k.startswith(("backbone.", "log_scale"))
    }
    save_file(backbone, tmp_path / "w.safetensors")
    model = zoo.create_model("nano", checkpoint=tmp_path / "w.safetensors")
    assert not model.has_decoder and torch.equal(model.encode_text(["road"]), shipped.encode_text(["road"]))
    assert torch.equal(model.state_dict()["backbone.head.weight"], backbone["backbone.head.weight"])


@pytest.mark.parametrize("left_out", [{"detail": False}, {"guided": False, "smd": None}, {"smd": None}])
def test_a_checkpoint_of_a_smaller_decoder_says_by_its_keys_what_it_is(tmp_path, left_out):
    trained = zoo.build_model("nano", changes=left_out)
    save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, tmp_path / "w.safetensors")
    model = zoo.create_model("nano", checkpoint=tmp_path / "w.safetensors")
    assert model.state_dict().keys() == trained.state_dict().keys() and model.decoder_trained
    image, text = torch.rand(1, 3, 64, 80), torch.nn.functional.normalize(torch.randn(3, 192), dim=-1)
    trained.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(image, text), trained(image, text))
