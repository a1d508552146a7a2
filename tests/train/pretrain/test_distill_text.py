"""Distilling nano's text tower, from a teacher that gives each word a random place."""

import signal
import zlib

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ovsdino.models.config import TextConfig
from ovsdino.models.zoo import build_text_tower
from ovsdino.train.config import CommonConfig
from ovsdino.train.pretrain import distill_text
from ovsdino.train.pretrain.distill_text import main, make_tower, text_space
from ovsdino.train.pretrain.hypernyms import Hypernyms
from ovsdino.train.pretrain.phrases import Phrase, phrase_list
from ovsdino.train.pretrain.text_distiller import BATCH, TextDistiller, misspelt

SYNSETS = {"n1": ("tabby", "tabby cat"), "n2": ("cat",), "n3": ("fire engine",), "n4": ("truck",)}
DEFINITIONS = {"n1": "a cat with a coat", "n2": "a small animal", "n3": "any large truck", "n4": "a vehicle"}
VOCABULARY = ["cat", "truck", "fire", "small", "large", "trucks", "running", "animal", "wheel"]


def place(text):
    """Return a row that a text shares in part with the others of its words."""
    words = text.split()
    rows = [torch.randn(400, generator=torch.Generator().manual_seed(zlib.crc32(word.encode()))) for word in words]
    return torch.stack(rows).mean(0)


def encode(texts):
    return F.normalize(torch.stack([*map(place, texts)]), dim=-1)


def load_tower(path):
    """Return the tower that the command wrote with a width of 16 and 32 columns."""
    state = load_file(path)
    sizes = {"entries": len(state["keys"]), "common": 0, "kept": len(state["kept_keys"])}
    tower = build_text_tower(32, TextConfig(kind="lexicon", width=16, buckets=4096, **sizes))
    tower.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return tower


def synsets():
    return Hypernyms(("n1", "n3"), SYNSETS, {"n1": "n2", "n3": "n4"})


@pytest.fixture(autouse=True)
def teacher(monkeypatch):
    monkeypatch.setattr(distill_text, "load_teacher", lambda: (encode, VOCABULARY))
    monkeypatch.setattr(distill_text, "imagenet_hypernyms", synsets)
    monkeypatch.setattr(distill_text, "imagenet_definitions", lambda: DEFINITIONS)
    monkeypatch.setattr("ovsdino.train.pretrain.phrases.COMPOSED", 200)


def run(output, *more):
    return main(["--output", str(output), "--steps", "2", "--embed-dim", "32", "--width", "16", *more])


def small():
    """Return phrases, rows and an untrained tower."""
    phrases = phrase_list(VOCABULARY, synsets(), DEFINITIONS.values(), ["zebra crossing"], 0)
    raw = encode([phrase.read for phrase in phrases])
    center, basis = text_space(raw, 16)
    rows = F.normalize((raw - center) @ basis, dim=-1)
    torch.manual_seed(0)
    return phrases, rows, make_tower(phrases, rows, 12, 64)


def test_one_command_writes_the_phrases_the_space_and_the_tower(tmp_path, capsys):
    (tmp_path / "extra.txt").write_text("# remark\nzebra crossing: crosswalk\n\n")
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert run(tmp_path / f"{name}.safetensors", "--seed", seed, "--extra", str(tmp_path / "extra.txt")) == 0
    assert "core: " in capsys.readouterr().out
    listed = [line.split("\t") for line in (tmp_path / "a.phrases.txt").read_text().splitlines()]
    assert ["core", "zebra crossing"] in listed and ["core", "crosswalk"] in listed
    towers = [load_file(tmp_path / f"{name}.safetensors") for name in "abc"]
    assert all(torch.equal(towers[0][key], towers[1][key]) for key in towers[0])
    assert not torch.equal(towers[0]["out.weight"], towers[2]["out.weight"])

    tower = load_tower(tmp_path / "a.safetensors")
    space = load_file(tmp_path / "a.space.safetensors")
    target = F.normalize((encode(["zebra crossing"]) - space["center"]) @ space["basis"], dim=-1)
    assert (F.normalize(tower.encode(["Zebra crossing"]), dim=-1) * target).sum() > 0.999


def test_a_given_space_is_taken_and_the_teacher_is_asked_once(tmp_path, monkeypatch):
    space = {"center": torch.zeros(400), "basis": torch.eye(400)[:, :32].contiguous()}
    from safetensors.torch import save_file

    save_file(space, tmp_path / "space.safetensors")
    assert run(tmp_path / "a.safetensors") == 0
    monkeypatch.setattr(distill_text, "load_teacher", lambda: (None, VOCABULARY))
    assert run(tmp_path / "a.safetensors", "--space", str(tmp_path / "space.safetensors")) == 0
    assert torch.equal(load_file(tmp_path / "a.space.safetensors")["basis"], space["basis"])


def test_a_glossary_says_what_a_phrase_means(tmp_path):
    (tmp_path / "glossary.json").write_text('{"lorry": ["truck"], "felis": ["cat", "small animal"]}')
    assert run(tmp_path / "a.safetensors", "--glossary", str(tmp_path / "glossary.json")) == 0
    tower, space = load_tower(tmp_path / "a.safetensors"), load_file(tmp_path / "a.space.safetensors")
    said = torch.stack([encode(["truck"])[0], encode(["cat", "small animal"]).mean(0)])
    target = F.normalize((said - space["center"]) @ space["basis"], dim=-1)
    assert ((F.normalize(tower.encode(["lorry", "felis"]), dim=-1) * target).sum(1) > 0.999).all()
    assert tower.reading("lorries").words == ("lorry",)


def test_a_name_is_half_its_definition_unless_images_taught_it(tmp_path, monkeypatch):
    monkeypatch.setattr(distill_text, "grounded_phrases", lambda: {"truck": True})
    assert run(tmp_path / "a.safetensors") == 0
    tower, space = load_tower(tmp_path / "a.safetensors"), load_file(tmp_path / "a.space.safetensors")

    def projected(text):
        return F.normalize((encode([text])[0] - space["center"]) @ space["basis"], dim=-1)

    rows = F.normalize(tower.encode(["fire engine", "truck"]), dim=-1)
    halves = F.normalize(projected("fire engine") + projected("any large truck"), dim=-1)
    assert rows[0] @ halves > 0.99 and rows[1] @ projected("truck") > 0.99
    assert distill_text.definitions_of([Phrase("tabby  cat", "Tabby_Cat", "core")], ()) == {
        "Tabby_Cat": ["a cat with a coat"]
    }
    assert distill_text.definitions_of([Phrase("x", "ta bby", "core")], ()) == {"ta bby": ["a cat with a coat"]}
    assert distill_text.definitions_of([Phrase("x", "tabby", "core")], {"tabby"}) == {}
    composed = Phrase("wet cat", "wet cat", "composed")
    assert distill_text.definitions_of([composed], ()) == {"wet cat": ["a small animal"]}
    assert distill_text.definitions_of([composed], {"cat"}) == {}


@pytest.mark.parametrize("content", ["[]", '{"lorry": "truck"}', '{"lorry": []}', "{"])
def test_a_glossary_of_another_form_is_refused(tmp_path, content, capsys):
    (tmp_path / "glossary.json").write_text(content)
    assert run(tmp_path / "a.safetensors", "--glossary", str(tmp_path / "glossary.json")) == 2
    assert "glossary" in capsys.readouterr().err


def test_the_lexicon_keeps_the_core_and_leaves_out_what_it_can_derive():
    phrases, rows, tower = small()
    assert tower._kept("zebra crossing") is not None and tower._kept("tabby") is not None
    assert tower.knows("running") and not tower.knows("trucks") and tower.reading("trucks").words == ("truck",)
    at = [phrase.text for phrase in phrases].index("running")
    stored = tower.row("running")
    assert F.cosine_similarity(stored, rows[at, :12], dim=0) > 0.8
    # a misspelling means a kept phrase or one of the first entries
    assert tower.reading("runing").words == ("running",)


def test_training_brings_the_network_nearer_to_the_teacher(tmp_path):
    phrases, rows, tower = small()
    config = CommonConfig(output=str(tmp_path / "run"), device="cpu")
    trainer = TextDistiller(config, 60, tower, phrases, rows)
    before = trainer.agreement()
    trainer.run()
    after = trainer.agreement()
    composed = trainer.members["composed"]
    assert after[composed].mean() > before[composed].mean() + 0.02


def test_a_resumed_run_takes_the_steps_that_it_would_have_taken(tmp_path):
    def trainer(name):
        phrases, rows, tower = small()
        config = CommonConfig(output=str(tmp_path / name), checkpoint_every=2, device="cpu")
        return TextDistiller(config, 4, tower, phrases, rows)

    whole = trainer("whole")
    whole.run()
    cut = trainer("cut")
    for batch in cut.batches(0, 2):
        cut.train_step(batch)
        cut.step += 1
    cut.save()
    continued = trainer("cut")
    assert continued.resume() and continued.step == 2
    continued.run()
    ours, theirs = continued.tower.state_dict(), whole.tower.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_batches_are_a_function_of_the_step(tmp_path):
    phrases, rows, tower = small()
    it = TextDistiller(CommonConfig(output=str(tmp_path / "run"), device="cpu"), 5, tower, phrases, rows)
    batches = [*it.batches(0, 5)]
    assert all(torch.equal(a, b) for a, b in zip(batches[3:], it.batches(3, 5), strict=True))
    assert all(len(batch) == BATCH and batch.max() < len(phrases) for batch in batches)


def test_ctrl_c_leaves_a_checkpoint_and_the_tower_as_it_is(tmp_path, capsys, monkeypatch):
    step = TextDistiller.train_step

    def interrupted(it, batch):
        signal.raise_signal(signal.SIGINT)
        return step(it, batch)

    monkeypatch.setattr(TextDistiller, "train_step", interrupted)
    assert run(tmp_path / "a.safetensors") == 130
    assert "stopped by SIGINT at step 1; the same command continues" in capsys.readouterr().err
    assert (tmp_path / "a.safetensors").exists() and (tmp_path / "a.run/checkpoint.pt").exists()


def test_a_misspelling_is_one_slip_away():
    import random

    rng = random.Random(0)
    assert misspelt("cat", rng) == "cat"
    assert all(abs(len(misspelt("bicycle", rng)) - 7) <= 1 for _ in range(50))


@pytest.mark.parametrize(("words", "shown"), [(["--output", "a", "--steps", "x"], "--steps"), ([], "--output")])
def test_a_mistake_is_one_line(capsys, words, shown):
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert shown in error and "\n" not in error


def test_a_space_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"center": torch.zeros(4)}, tmp_path / "space.safetensors")
    assert run(tmp_path / "a.safetensors", "--space", str(tmp_path / "space.safetensors")) == 2


def test_phrases_read_as_plain_english_are_listed_as_they_are_written():
    assert Phrase("wall-brick", "brick wall", "core") in small()[0]
