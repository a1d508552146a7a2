"""Official weight files: the authors' key layouts load, and compute what the reference packages compute with them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from ovsdino.errors import OVSDinoError
from ovsdino.models import text, zoo
from ovsdino.models.backbone import Backbone, build_backbone
from ovsdino.models.text import ClipTextTower, read_clip, read_projection
from tests.support import official

S14, S16V3 = zoo.get_config("s14").backbone, zoo.get_config("s16v3").backbone


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """dinov2.pth, dinov3.pth (ViT-S) and clip.pth, as their authors publish them."""
    folder = tmp_path_factory.mktemp("official")
    torch.save(official.dinov2(384, 12), folder / "dinov2.pth")
    torch.save(official.dinov3(384, 12, 6), folder / "dinov3.pth")
    torch.save(official.clip(), folder / "clip.pth")
    yield folder
    for file in folder.iterdir():
        file.unlink()  # 600 MB


@pytest.fixture(scope="module")
def dinov2(files: Path) -> Backbone:
    backbone = build_backbone(S14).eval()
    backbone.load(files / "dinov2.pth")
    return backbone


@pytest.fixture(scope="module")
def dinov3(files: Path) -> Backbone:
    backbone = build_backbone(S16V3).eval()
    backbone.load(files / "dinov3.pth")
    return backbone


def by_timm(name: str, path: Path) -> torch.nn.Module:
    """Return the model as timm itself loads that file."""
    return timm.create_model(
        name, pretrained=True, num_classes=0, dynamic_img_size=True, pretrained_cfg_overlay={"file": str(path)}
    ).eval()


@pytest.mark.parametrize("which", ["dinov2", "dinov3"])
def test_meta_file_gives_timms_tokens(files: Path, which: str, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(which)
    reference = by_timm(backbone.config.timm_name, files / f"{which}.pth")
    p = backbone.config.patch_size
    image = torch.randn(2, 3, 9 * p, 12 * p)
    with torch.no_grad():
        tokens, _ = backbone(image)
        expected = reference.forward_features(image)[:, reference.num_prefix_tokens :]
    assert expected.std() > 0.5
    torch.testing.assert_close(tokens.flatten(2).transpose(1, 2), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("key", "prefix"), [("teacher", "backbone."), ("state_dict", "module."), (None, "model.")])
def test_a_backbone_inside_a_larger_file_is_found(
    files: Path, dinov2: Backbone, tmp_path: Path, key: str | None, prefix: str
) -> None:
    state = torch.load(files / "dinov2.pth", weights_only=True)
    wrapped = {**{prefix + k: v for k, v in state.items()}, "head.mlp.0.weight": torch.zeros(2)}
    torch.save({key: wrapped, "epoch": 3} if key else wrapped, tmp_path / "whole.pth")
    other = build_backbone(S14).eval()
    other.load(tmp_path / "whole.pth")
    own = other.state_dict()
    assert all(torch.equal(own[k], v) for k, v in dinov2.state_dict().items())


@pytest.mark.parametrize("which", ["dinov2", "dinov3"])
def test_class_attention_is_the_last_blocks(which: str, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(which)
    attention = backbone.vit.blocks[-1].attn
    seen = []
    handle = attention.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    fused, attention.fused_attn = attention.fused_attn, False  # timm's own softmax(q k^T) passes through the dropout
    p = backbone.config.patch_size
    image = torch.randn(2, 3, 5 * p, 7 * p)
    with torch.no_grad():
        features, taps, logits = backbone.with_attention(image)
        plain, plain_taps = backbone(image)
    handle.remove()
    attention.fused_attn = fused
    expected = seen[0][:, :, 0, 5:]  # class token and four registers first
    assert logits.shape == (2, 6, 35) and torch.equal(seen[0], seen[1])
    torch.testing.assert_close(logits.softmax(-1), expected / expected.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert torch.equal(features, plain)
    assert all(torch.equal(a, b) for a, b in zip(taps, plain_taps, strict=True)) and len(taps) == 4


def test_attention_needs_a_class_token() -> None:
    with pytest.raises(OVSDinoError, match="small_vit has no class token: background cleaning needs one"):
        zoo.build_model("vit6").encode_with_attention(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"register_tokens": None}, "has no register tokens"),
        ({"blocks.0.ls1.gamma": None}, r"1 keys missing, 0 unknown, e.g. 'blocks\.0\.ls1\.gamma'"),
        ({"blocks.3.mlp.fc1.weight": torch.zeros(8, 384)}, r"blocks\.3\.mlp\.fc1\.weight is \(8, 384\)"),
        ({"patch_embed.proj.weight": torch.zeros(768, 3, 14, 14)}, r"has \(384, 3, 14, 14\)"),
        ({"patch_embed.proj.weight": None}, r"patch_embed\.proj\.weight is missing"),
        ({"pos_embed": torch.zeros(1, 1370, 5)}, "not the weights of vit_small_patch14"),
        ({"extra.weight": torch.zeros(1)}, "1 unknown, e.g. 'extra.weight'"),
    ],
)
def test_another_networks_file_is_refused(
    files: Path, dinov2: Backbone, tmp_path: Path, change: dict, message: str
) -> None:
    state = {**torch.load(files / "dinov2.pth", weights_only=True), **change}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "file.pth")
    with pytest.raises(OVSDinoError, match=rf"file\.pth.*{message}"):
        dinov2.load(tmp_path / "file.pth")


def test_dinov3_with_attention_biases_is_refused(
    files: Path, dinov3: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = torch.load(files / "dinov3.pth", weights_only=True)
    state["blocks.4.attn.qkv.bias"][384:768] = 1.0  # the keys' part is masked out
    torch.save(state, tmp_path / "keys.pth")
    dinov3.load(tmp_path / "keys.pth")
    state["blocks.4.attn.qkv.bias"][0] = 1.0
    torch.save(state, tmp_path / "queries.pth")
    with pytest.raises(OVSDinoError, match=r"blocks\.4\.attn\.qkv\.bias is not zero"):
        dinov3.load(tmp_path / "queries.pth")
    assert capsys.readouterr().out == ""  # stdout belongs to --json


@pytest.mark.parametrize("which", ["dinov2", "dinov3"])
def test_any_tensor_of_another_shape_is_an_error_that_names_the_file(
    files: Path, which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone: Backbone = request.getfixturevalue(which)
    good = torch.load(files / f"{which}.pth", weights_only=True)
    unread = ("mask_token", "rope_embed.periods", "qkv.bias_mask", *(("qkv.bias",) if which == "dinov3" else ()))
    for key in [k for k in good if not k.startswith("blocks.") or k.startswith("blocks.7.")]:
        for shape in ((), (0,), (1, 2)):
            # 100 files of 90 MB would only test the disk
            monkeypatch.setattr(
                "ovsdino.models.backbone.read_foreign", lambda _, k=key, s=shape: {**good, k: torch.zeros(s)}
            )
            if key.endswith(unread):
                backbone.load("file.pth")
                continue
            with pytest.raises(OVSDinoError, match=r"file\.pth"):
                backbone.load("file.pth")


@pytest.fixture(scope="module")
def reference_clip(files: Path) -> torch.nn.Module:
    """open_clip's own reading of OpenAI's state dict."""
    state = torch.load(files / "clip.pth", weights_only=True)
    return open_clip.model.build_model_from_openai_state_dict(state, cast_dtype=torch.float32).float().eval()


@pytest.fixture(scope="module")
def tower(files: Path) -> ClipTextTower:
    tower = ClipTextTower(384, weights=files / "clip.pth").eval()
    tower.load_state_dict(official.projection(384))
    return tower


def test_openais_file_gives_open_clips_embeddings_and_talk2dinos_formula(
    reference_clip: torch.nn.Module, tower: ClipTextTower
) -> None:
    names, templates = ["cat", "traffic light"], ["a photo of the large {}.", "art of the {}."]
    tokens = open_clip.get_tokenizer("ViT-B-16")(
        [
            "a photo of the large cat.",
            "art of the cat.",
            "a photo of the large traffic light.",
            "art of the traffic light.",
        ]
    )
    w = official.projection(384)
    with torch.no_grad():
        embedded = reference_clip.encode_text(tokens)
        rows = torch.stack([(embedded[0] + embedded[1]) / 2, (embedded[2] + embedded[3]) / 2])
        first = rows @ w["linear_layer.weight"].T + w["linear_layer.bias"]
        expected = first.tanh() @ w["hidden_layers.0.weight"].T + w["hidden_layers.0.bias"]
        raw = torch.cat([tower.clip[0].encode_text(tokens[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(raw, embedded, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1 and (expected[0] - expected[1]).abs().max() > 0.1
    torch.testing.assert_close(tower.encode(names, templates), expected, rtol=1e-5, atol=1e-5)


def test_the_seven_templates_are_talk2dinos(tower: ClipTextTower) -> None:
    seven = [
        "itap of a {}.",
        "a bad photo of a {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ]
    assert torch.equal(tower.encode(["bed "]), tower.encode(["bed "], seven))
    with pytest.raises(OVSDinoError, match=r"'a photo' has no \{\}"):
        tower.encode(["cat"], ["a photo"])


@pytest.mark.parametrize("form", ["open_clip.safetensors", "module.pth", "talk2dino.safetensors"])
def test_every_form_of_clips_state_dict_reads_alike(files: Path, tmp_path: Path, form: str) -> None:
    state = torch.load(files / "clip.pth", weights_only=True)
    expected = read_clip(files / "clip.pth")
    assert len(expected) == 3 + 2 + 12 * 12 + 1  # three embeddings, the last norm, the blocks, the temperature
    state = {k: v for k, v in state.items() if not k.startswith("visual.transformer")}  # 170 MB that are not read
    if form == "open_clip.safetensors":  # timm/vit_base_patch16_clip_224.openai: no scalars, all float32
        scalars = ("input_resolution", "context_length", "vocab_size")
        save_file({k: v.float() for k, v in state.items() if k not in scalars}, tmp_path / form)
    elif form == "module.pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 1}, tmp_path / form)
    else:
        save_file(
            {"proj.linear_layer.bias": torch.zeros(1), **{f"clip_model.{k}": v for k, v in state.items()}},
            tmp_path / form,
        )
    found = read_clip(tmp_path / form)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k].float(), v.float()) for k, v in expected.items())


def test_a_torchscript_archive_is_read_only_if_it_is_openais(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Module()
    module.token_embedding = torch.nn.Embedding(4, 2)
    path = tmp_path / "ViT-B-16.pt"
    torch.jit.script(module).save(str(path))
    with pytest.raises(OVSDinoError, match=r"ViT-B-16\.pt: a TorchScript archive .* and not OpenAI's"):
        read_clip(path)
    monkeypatch.setattr(text, "CLIP_ARCHIVE_SHA256", text.sha256_of(path))
    assert torch.equal(read_clip(path)["token_embedding.weight"], module.token_embedding.weight)


def test_a_prompt_beyond_clips_77_tokens_is_said_to_be_cut(
    tower: ClipTextTower, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ovsdino"):
        tower.encode(["cat " * 74], ["{}"])  # 74 words, start and end: 76 tokens
        assert not caplog.records
        tower.encode(["cat " * 80], ["{}"])
    assert [record.getMessage()[:45] for record in caplog.records] == ["longer than the 77 tokens that CLIP reads, cu"]


def test_files_without_clip_or_projection_are_refused(files: Path) -> None:
    with pytest.raises(OVSDinoError, match=r"dinov2\.pth: no CLIP text encoder in it"):
        read_clip(files / "dinov2.pth")
    with pytest.raises(OVSDinoError, match=r"clip\.pth: no Talk2DINO projection in it"):
        read_projection(files / "clip.pth")


def test_projection_in_both_published_forms(tmp_path: Path, data_root: Path) -> None:
    own = read_projection(data_root / "talk2dino_vitb_mlp_infonce.pth")
    assert {k: tuple(v.shape) for k, v in own.items()} == {
        "linear_layer.weight": (768, 512),
        "linear_layer.bias": (768,),
        "hidden_layers.0.weight": (768, 768),
        "hidden_layers.0.bias": (768,),
    }
    whole = {f"proj.{k}": v for k, v in own.items()} | {"model.cls_token": torch.zeros(1), "logit_scale": torch.ones(1)}
    save_file(whole, tmp_path / "model.safetensors")  # the hub's: the whole of Talk2DINO in one file
    torch.save(whole, tmp_path / "pytorch_model.bin")
    for form in ("model.safetensors", "pytorch_model.bin"):
        found = read_projection(tmp_path / form)
        assert found.keys() == own.keys() and all(torch.equal(found[k], v) for k, v in own.items())


def test_a_baseline_of_official_files_says_what_it_is(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(official.projection(384), tmp_path / "projection.pth")
    given = {"projection": tmp_path / "projection.pth", "clip_weights": files / "clip.pth"}
    with caplog.at_level(logging.WARNING, "ovsdino"):
        model = zoo.create_model("s14", backbone_weights=files / "dinov2.pth", **given)
    assert [r.getMessage() for r in caplog.records] == ["s14: no decoder weights given; this is the Talk2DINO baseline"]
    assert not model.has_decoder and not model.decoder_trained
    image, bank = torch.randn(1, 3, 42, 56), model.encode_text(["cat", "dog"])
    features, attention = model.encode_with_attention(image)
    cosine = torch.cosine_similarity(features.tokens[:, None], bank[None, :, :, None, None], dim=2)
    assert attention.shape == (1, 6, 12)
    torch.testing.assert_close(model.cosine(features, bank), cosine, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(image, bank), 20 * cosine, rtol=1e-5, atol=1e-5)


def test_a_projection_of_another_width_is_named(files: Path, data_root: Path) -> None:
    path = data_root / "talk2dino_vitb_mlp_infonce.pth"
    with pytest.raises(OVSDinoError, match=r"infonce\.pth \(text projection of s14\): .* expected \(384"):
        zoo.create_model("s14", backbone_weights=files / "dinov2.pth", projection=path)
