"""Settings: each is checked for type and range, its place is named, damaged YAML is one error, paths are anchored."""

import dataclasses
import os
import random
import shutil
import typing
from pathlib import Path

import pytest

from ovsdino.errors import OVSDinoError
from ovsdino.settings import read_yaml
from ovsdino.train.ablation import Ablation, load_ablation
from ovsdino.train.dense.config import DenseConfig
from ovsdino.train.initial import changed_model
from ovsdino.train.mixed.config import MixedConfig
from ovsdino.train.pretrain.config import SelfDistillConfig, load_settings
from ovsdino.train.start import load_config, train_config
from ovsdino.train.weak.config import WeakConfig

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
HOSTILE = (
    "nan",
    "inf",
    "-inf",
    "x",
    None,
    True,
    [],
    {},
    -(10**400),
    10**400,
    float("nan"),
    float("inf"),
    -1e30,
    "a\0b",
)


LAUGHS = b"x0: &x0 [1]\n"
for level in range(1, 12):  # 9^11 values in 400 bytes
    LAUGHS += b"x%d: &x%d [%s]\n" % (level, level, b",".join([b"*x%d" % (level - 1)] * 9))


def fields(kind, prefix=()):
    """(path, type) of every number of a configuration."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from fields(hint, (*prefix, name))
        elif hint in (int, float):
            yield (*prefix, name), hint


@pytest.mark.parametrize("kind", [DenseConfig, WeakConfig])
def test_a_number_takes_neither_other_types_nor_infinities(kind):
    supervision = "captions" if kind is WeakConfig else "labels"
    tried = 0
    for path, _ in fields(kind):
        for value in HOSTILE:
            tree = value
            for name in reversed(path):
                tree = {name: tree}
            with pytest.raises(OVSDinoError, match=rf"^{'.'.join(path)}: ") as caught:
                train_config({"supervision": supervision, **tree})
            assert len(str(caught.value)) < 300
            tried += 1
    assert tried > 300


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=-1", "optim.lr: expected a number in (0, 10], got -1.0"),
        ("optim.lr=0", "optim.lr: expected a number in (0, 10], got 0.0"),
        ("optim.lr=.nan", "optim.lr: expected a finite number, got nan"),
        ("optim.steps=-5", "optim.steps: expected a whole number in [1, 1e+09], got -5"),
        ("optim.steps=1.5", "optim.steps: expected int, got 1.5"),
        ("optim.warmup=-1", "optim.warmup: expected a whole number in [0, 1e+09], got -1"),
        ("optim.ema=2", "optim.ema: expected a number in [0, 1], got 2.0"),
        ("optim.decay=-0.1", "optim.decay: expected a number in [0, 1], got -0.1"),
        ("optim.clip=0", "optim.clip: expected a number in (0, 1e+06], got 0.0"),
        ("optim.accumulate=0", "optim.accumulate: expected a whole number in [1, 10000], got 0"),
        ("optim.weight_decay=-1", "optim.weight_decay: expected a number in [0, 10], got -1.0"),
        ("optim.bf16=1", "optim.bf16: expected bool, got 1"),
        ("data.mix=2", "data.mix: expected a number in [0, 1], got 2.0"),
        ("data.aspect=0", "data.aspect: expected a number in [1, 16], got 0.0"),
        ("data.colour=-1", "data.colour: expected a number in [0, 4], got -1.0"),
        ("data.selection=1", "data.selection: expected a number in [0, 0.9], got 1.0"),
        ("data.cache_mb=0", "data.cache_mb: expected a whole number in [1, 1e+06], got 0"),
        ("data.root=3", "data.root: expected str, got 3"),
        ('data.root="a\\0b"', "data.root: expected text without NUL and lone surrogates, got 'a\\x00b'"),
        ("seed=-1", "seed: expected a whole number in [0, 2.14748e+09], got -1"),
        ("threads=-2", "threads: expected a whole number in [0, 4096], got -2"),
        ("log_every=0", "log_every: expected a whole number in [1, 1e+09], got 0"),
        ("checkpoint_every=0", "checkpoint_every: expected a whole number in [1, 1e+09], got 0"),
        ("eval_every=-1", "eval_every: expected a whole number in [0, 1e+09], got -1"),
        ("output=", "output: expected 1 to 4096 entries, got 0"),
        ("stages=[{batch: 0}]", "stages[0].batch: expected a whole number in [1, 1e+09], got 0"),
        ("stages=[{until: 0}]", "stages[0].until: expected a number in (0, 1], got 0.0"),
        ("stages=[{area: 2}]", "stages[0].area: expected a number in (0, 1], got 2.0"),
        ("stages=[{neighbours: -1}]", "stages[0].neighbours: expected a number in [0, 1], got -1.0"),
        ("stages=[7]", "stages[0]: expected a mapping, got 7"),
        ("text.names={sky: []}", "text.names.sky: expected 1 to 1000 entries, got 0"),
        ('text.exclude=[""]', "text.exclude[0]: expected 1 to 1000 entries, got 0"),
        ("text.num_distractors=-1", "text.num_distractors: expected a whole number in [0, 100000], got -1"),
        ("text.distractor_max_cosine=2", "text.distractor_max_cosine: expected a number in [-1, 1], got 2.0"),
        ("loss.dice=-1", "loss.dice: expected a number in [0, 1e+06], got -1.0"),
        ("loss.class_power=.inf", "loss.class_power: expected a finite number, got inf"),
        ("loss=[]", "loss: expected a mapping, got []"),
        ("architecture=[]", "architecture: expected a mapping, got []"),
        ("? [a]: b", "is not key=value"),
        ("optim.lr=[", "override 'optim.lr=[': not a readable YAML value"),
        ("optim.lr=*a", "override 'optim.lr=*a': not a readable YAML value"),
        (f"seed={'9' * 5000}", "not a readable YAML value"),
        ("3=4", "unknown key '3'"),
        ("loss={null: 1}", "loss: unknown key None"),
        ("loss={3: 1}", "loss: unknown key 3"),
    ],
)
def test_a_setting_that_is_wrong_is_named_with_its_value_and_range(override, message):
    with pytest.raises(OVSDinoError) as caught:
        load_config(ROOT / "configs/vit6.yaml", [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"smd": {"width": -5}}, "nano.smd.width: expected a whole number in [1, 65536], got -5"),
        ({"smd": {"gate": 3}}, "nano.smd.gate: expected output or none, got 3"),
        ({"short_side": "x"}, "nano.short_side: expected int, got 'x'"),
        ({"std": [0, 1, 1]}, "nano.std[0]: expected a number in (0, 10], got 0.0"),
        ({"sae": {"blocks": [1]}}, "nano.sae.blocks: expected 3 to 3 entries, got 1"),
        ({"smd": {"gate": {}}}, "nano.smd.gate: expected a value like 'output', got an empty mapping"),
        ({"backbone": {"taps": [5]}}, "nano.backbone.taps: expected blocks from 0 to 4, got [5]"),
        ({"backbone": {"timm_name": "x"}}, "makes no model: Unknown model (x)"),
    ],
)
def test_a_change_to_the_model_is_checked_alike(architecture, message):
    with pytest.raises(OVSDinoError) as caught:
        changed_model(train_config({"architecture": architecture}))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: nano\n".encode("utf-16"), "UTF-16"),
        (b"model: \xff\xfe", "not a readable YAML configuration"),
        (b"- 1\n", "expected a mapping at the top"),
        (b"a: &a [*a]\n", "nested more than 32 levels deep"),
        (b"[" * 200 + b"]" * 200, "not a readable YAML configuration"),
        (LAUGHS, "more than 100000 values"),
        (b"a: " + b"9" * 5000, "not a readable YAML configuration"),
        (b"a: 2020-99-99\n", "not a readable YAML configuration"),
        (b"#" * 1_000_001, "more than a configuration has"),
    ],
    ids=["utf16", "binary", "list", "recursive", "deep", "billion laughs", "digits", "date", "large"],
)  # fmt: skip
def test_a_damaged_configuration_is_one_error_that_names_the_file(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(OVSDinoError, match=r"c\.yaml: ") as caught:
        read_yaml(path)
    assert message in str(caught.value)


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: nano\n")
    assert read_yaml(path) == {"model": "nano"}
    path.write_bytes(b"")
    assert read_yaml(path) == {}


def test_damaged_yaml_loads_or_is_one_error(tmp_path):
    rng, refused = random.Random(0), 0
    whole = [path.read_bytes() for path in CONFIGS if path.name in ("nano.yaml", "weak_vit6.yaml")]
    path = tmp_path / "c.yaml"
    for turn in range(150):
        data = bytearray(whole[turn % 2])
        for _ in range(rng.randint(1, 4)):
            place, kind = rng.randrange(len(data)), rng.randrange(4)
            if kind == 0:
                data[place] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del data[place : place + rng.randint(1, 40)]
            elif kind == 2:
                data[place:place] = rng.choice([b"[", b"{", b"*a ", b"&a ", b"\t", b"\0", b": ", b"- ", b"!!python/x "])
            else:
                data[place:place] = data[:place][-rng.randint(1, 60) :]
        path.write_bytes(bytes(data))
        try:
            load_config(path)
        except OVSDinoError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 50 < refused < 150


# -- paths ------------------------------------------------------------------------------------------------------------


def test_every_shipped_configuration_loads_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ROOT / "data"  # may be a link, so it is not resolved
    for path in CONFIGS:
        tree = read_yaml(path)
        if "base" in tree:
            study, _ = load_ablation(path)
            changes = study.variants.get("full, 30 % of the masks corrupted")
            if changes is not None:
                assert Path(os.path.normpath(changes["data"]["masks"])) == ROOT / "runs/weak/{set}/masks_corrupt30"
            continue
        if "images" in tree:
            images = load_settings(path).images
            assert [Path(os.path.normpath(p)) for p in images] == [
                data / "camvid_train.zip",
                data / "bsds500_train.zip",
            ]
            continue
        config = load_config(path)
        assert config.output == tree["output"]  # a result goes to where the user stands
        if isinstance(config, DenseConfig):
            assert Path(os.path.normpath(config.data.root)) == data and Path(config.text.vocabulary).samefile(
                ROOT / "configs/words.txt"
            )
        elif isinstance(config, MixedConfig):
            for part in config.labels.values():
                assert Path(os.path.normpath(part.root)) == data
                assert Path(part.text.vocabulary).samefile(ROOT / "configs/words.txt")
            if config.only_words:
                continue
            assert Path(os.path.normpath(config.pictures.root)) == data / "words.zip"
            assert Path(os.path.normpath(config.edges.root)) == data
            assert Path(config.teacher.head).samefile(ROOT / "configs/weights/lite2_aligned.safetensors")
        elif config.data.kind == "jsonl":
            assert Path(os.path.normpath(config.data.annotations)) == ROOT / "runs/weak/camvid/captions.jsonl"
            shipped = config.projection or config.backbone_weights  # lite2's head; vit6's backbone
            assert Path(shipped).parent.samefile(ROOT / "configs/weights") and Path(shipped).is_file()
        else:
            assert config.data.annotations == "train2014"  # of COCO, no path
            assert Path(os.path.normpath(config.data.root)) == ROOT / "data/coco"
    assert len(CONFIGS) == 11


def test_a_path_of_the_command_line_is_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    shutil.copy(ROOT / "configs/vit6.yaml", "there/c.yaml")
    assert load_config("there/c.yaml").text.vocabulary == "there/words.txt"
    assert load_config("there/c.yaml", ["text.vocabulary=mine.txt"]).text.vocabulary == "mine.txt"
    (tmp_path / "there/s.yaml").write_text("base: c.yaml\nvariants: {a: {}, b: {text: {vocabulary: b.txt}}}\n")
    study, base = load_ablation("there/s.yaml", ("variants.a.text.vocabulary=a.txt",))
    assert base["text"]["vocabulary"] == "there/words.txt"
    assert [study.variants[name]["text"]["vocabulary"] for name in "ab"] == ["a.txt", "there/b.txt"]
    assert isinstance(study, Ablation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps=0", "steps: expected a whole number in [1, 1e+09], got 0"),
        ("warmup=0", "warmup: expected a whole number in [1, 1e+09], got 0"),
        ("large_area=[0.5]", "large_area: expected 2 to 2 entries, got 1"),
        ("small_area=[0.5, 0.1]", "small_area: expected the least first, got [0.5, 0.1]"),
        ("mask_ratio=[0, 2]", "mask_ratio[1]: expected a number in [0, 1], got 2.0"),
        ("images=[]", "images: expected 1 to 1000 entries, got 0"),
        ("stages=[{batch: 1}]", "stages[0].batch: expected a whole number in [2, 1e+06], got 1"),
    ],
)
def test_settings_of_self_distillation_are_checked_alike(change, message):
    with pytest.raises(OVSDinoError) as caught:
        load_settings(ROOT / "configs/self_distill.yaml", [change])
    assert message in str(caught.value)


def test_defaults_pass_their_own_checks():
    for kind in (DenseConfig, WeakConfig, MixedConfig):
        tree = dataclasses.asdict(kind())
        assert train_config(tree) == kind()
    assert SelfDistillConfig().images == ()


def test_a_null_key_is_unknown_like_any_other():
    for tree, message in (({None: 1}, "unknown key None"), ({"optim": {None: 1}}, "optim: unknown key None")):
        with pytest.raises(OVSDinoError, match=message):
            train_config(tree)
