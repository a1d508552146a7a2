"""Every command of README and docs/: run where it can run here, parsed where it cannot, or named with the reason."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ovsdino.errors import OVSDinoError
from tests.docs.commands import ROOT, Command, check_options, commands, pages, run

IMAGES = 4

# What is only parsed, so that its options are right, and why it is not run.
PARSED = [
    (r"cpu_backends\.py", "minutes of quiet cores: tests/deploy"),
    (
        r"quantize .*--images 16",
        "int8 of this test's export at 64 by 64 is refused, and 16 images are minutes",
    ),
    (r"--dataset cityscapes", "needs Cityscapes and the hub's weights"),
    (r"ovsdino ablate", "hours"),
    (r"ovsdino train configs/nano(_words)?\.yaml", "needs ImageNet's networks and the text tower: tests/train/mixed"),
    (r"runs/vit6/last\.safetensors", "needs the run of configs/vit6.yaml"),
    (r"ovsdino train configs/weak_vit6\.yaml", "needs the captions and masks that make weak-data writes"),
    (r"--generator sam", "needs SAM's weights and COCO"),
    (
        r"--model lite2|pretrain\.(align|distill_text)",
        "needs ImageNet's network and a sentence encoder: tests/train/pretrain/test_align.py",
    ),
    (r"torchrun", "needs several processes"),
    (
        r"runs/weak_b14",
        "needs the run of configs/weak_b14.yaml: tests/train/weak/test_paper_recipe.py runs it in small",
    ),
    (r"runs/recipe|\$SMALL", "minutes: tests/train/weak/test_paper_recipe.py runs the same with less"),
    (r"deploy/export_trt\.py|export engine", "minutes, or a GPU: tests/deploy/test_export_trt.py builds an engine"),
    (r"sm87|/dev/video0 .*--width|\$CSI|ovsdino stream 0", "needs a board with TensorRT, or a camera"),
    (r"b14_text|export text", "needs the hub's weights: tests/deploy/export/test_tower.py"),
    (r"docs/jetson\.md: python deploy/", "the same exports as in docs/edge.md"),
    (r"nano_fp16|--precision float16", "a second export: tests/deploy does it"),
    (r"mugs/|own\.safetensors", "needs labelled images of one's own: tests/commands/test_adapt.py"),
    (r"studies/words\.py", "minutes: tests/benchmarks/studies/test_words.py runs it in small"),
    (r"\bmine\b", "needs labeled images of one's own: tests/train/test_template.py"),
    (r"ovsdino (demo|serve)", "runs until it is ended: tests/serve/test_commands.py"),
    (r"benchmarks/latency\.py", "a benchmark: tests/benchmarks/test_latency.py runs it in small"),
]
# What belongs to another machine or another program.
SKIPPED = [
    (r"^make (demo|test)$", "the environment that runs this test was made by it"),
    (r"^make ", "checked by test_every_make_target_is_there"),
    (r"^(pip|sudo|git clone|scp|ls|head|echo|mkdir|python3|tegrastats) ?", "the system's, or an installation"),
    (r"^OVSDINO_CUDA=1", "an installation: make test-install"),
    (r"build/cpp/ovsdino_stream", "needs the program in C++: tests/deploy/test_cpp_stream.py"),
    (r"^(cd|cmake) ", "a build on another machine, or for one"),
    (r"^(CSI|USB|RTSP|weights|SMALL)=", "a variable of a later command"),
    (r"tests\.support\.recipe", "writes 700 MB: tests/train/weak/test_paper_recipe.py writes less"),
    (r"^for (name|file) in", "a loop over data sets, or over a robot's pictures: tests/cli runs what is in it"),
    (r"ovsdino\.train\.package", "writes into the package"),
    (r"^curl |urllib\.request", "asks a running server: tests/serve/test_commands.py"),
    (r"push_to_hub", "needs a login at the hub"),
    (r"segment_on_device", "needs a GPU: tests/edge/test_device_memory.py"),
    (r"scripts\.reliability", "minutes: tests/test_reliability.py runs a part of it"),
]
# What makes a command quick, added to it.
QUICK = [
    (r"ovsdino eval|ovsdino probe", "--limit 1 --short-side 64"),
    (r"ovsdino segment", "--short-side 64"),
    (r"export_onnx|export onnx", "--height 64 --width 64 --limit 1"),
    (r"ovsdino stream", "--frames 1"),
    (r"ovsdino train", "optim.steps=1 eval_every=0 checkpoint_every=1 stages=[{height:\t64,width:\t64,batch:\t1}]"),
    (r"quantize", "--images 2"),
]
# Paths that a reader has and a test has not.
PLACES = [("/dev/video0", "frames"), ("FOLDER", "frames")]
CODES = [(r"data check cityscapes", 2)]  # it says what is missing


def reason(table: list[tuple[str, str]], command: Command) -> str | None:
    """Return what a table says of a command."""
    line = command.text.strip()
    return next(
        (why for pattern, why in table if re.search(pattern, line) or re.search(pattern, f"{command.page}: {line}")),
        None,
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Lay out a reader's checkout: the scripts, street.jpg, drive.mp4, and data/ laid out as README says."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("configs", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    (folder / "deploy").symlink_to(ROOT / "deploy")
    try:
        root = Path(request.getfixturevalue("data_root"))
    except pytest.skip.Exception:
        root = folder / "none"
    for split in ("train", "val"):
        lay_out(root / f"camvid_{split}.zip", folder / "data" / "camvid" / split)
        if (root / f"bsds500_{split}.zip").is_file():
            (folder / "data" / f"bsds500_{split}.zip").symlink_to(root / f"bsds500_{split}.zip")
    first = min((folder / "data/camvid/val/images").iterdir())
    (folder / "frames").mkdir()
    shutil.copy(first, folder / "frames")
    Image.open(first).save(folder / "street.jpg")
    frame = np.asarray(Image.open(first).convert("RGB"))[..., ::-1]
    clip = cv2.VideoWriter(str(folder / "drive.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 15, frame.shape[1::-1])
    for _ in range(3):
        clip.write(np.ascontiguousarray(frame))
    clip.release()
    return folder


@pytest.fixture(scope="module")
def done() -> set[str]:
    """Return the commands that ran."""
    return set()


def lay_out(archive: Path, folder: Path) -> None:
    """Unpack the first images of CamVid and their labels, or make noise where the archive is not at hand."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    if archive.is_file():
        with zipfile.ZipFile(archive) as files:
            names = sorted(name for name in files.namelist() if name.startswith("images/"))[:IMAGES]
            for name in names:
                label = name.replace("images/", "labels/").replace(".jpg", ".png")
                for inside in (name, label):
                    (folder / inside).write_bytes(files.read(inside))
        return
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (96, 128, 3), np.uint8)).save(folder / "images" / f"{index}.jpg")
        Image.fromarray(rng.integers(0, 12, (96, 128), np.uint8)).save(folder / "labels" / f"{index}.png")


@pytest.mark.parametrize("page", pages())
def test_every_command_of_a_page_runs_or_is_named_with_the_reason_why_not(
    page: str, workplace: Path, done: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("OVSDINO_OFFLINE", "1")
    monkeypatch.delenv("OVSDINO_DATA", raising=False)
    failed = [problem for command in commands(page) if (problem := tried(command, done)) is not None]
    assert failed == []


def tried(command: Command, done: set[str]) -> str | None:
    """Run, parse or skip a command, each only once; returns what went wrong."""
    line = command.text.strip()
    for place, ours in PLACES:
        line = line.replace(place, ours)
    if reason(SKIPPED, command) is not None:
        return None
    if command.python:
        try:
            exec(compile(line, command.page, "exec"), {"__name__": "page"})
        except Exception as error:
            return f"{line}: {type(error).__name__}: {error}"
        return None
    if reason(PARSED, command) is not None:
        try:
            check_options(command.words)
        except (OVSDinoError, KeyError) as error:
            return f"{line}: {error}"
        return None
    if "bsds500" in line and not Path("data/bsds500_val.zip").exists():
        return None
    extra = [word.replace("\t", " ") for word in (reason(QUICK, command) or "").split(" ") if word]
    words = [*Command(command.page, line).words, *extra]
    key = " ".join(words).replace("/ ", " ")
    if key in done:
        return None
    code, printed = run(words)
    done.add(key)
    if "--json" in words and "eval" in words:  # the page's `ovsdino report results/*.json` reads it
        Path("results").mkdir(exist_ok=True)
        Path("results/eval.json").write_text(printed)
    expected = next((number for pattern, number in CODES if re.search(pattern, line)), 0)
    return None if code == expected else f"{line}: exit code {code}, expected {expected}"


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_loads_from_any_folder(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovsdino.settings import build_config, read_yaml
    from ovsdino.train.ablation import load_ablation
    from ovsdino.train.pretrain.config import SelfDistillConfig
    from ovsdino.train.start import load_config

    monkeypatch.chdir(tmp_path)
    tree = read_yaml(file)
    if "variants" in tree:
        study, _ = load_ablation(str(file), [])
        assert study.seeds and len(study.variants) >= 2
    elif "images" in tree:
        assert build_config(SelfDistillConfig, tree, "").steps > 0
    else:
        assert load_config(file).optim.steps > 0


def test_every_make_target_is_there() -> None:
    named = {
        word
        for page in pages()
        for word in re.findall(r"`?\bmake ([a-z][a-z0-9-]+)", (ROOT / page).read_text(encoding="utf-8"))
        if word not in ("it", "sure", "an", "bad", "another", "what")
    }
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"demo", "test", "weak-data"} <= named <= targets | {"setup"}
    done = subprocess.run(["make", "-n", *sorted(named)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", pages())
def test_every_option_that_a_sentence_names_is_there(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    wrong = []
    for line in re.findall(r"`(ovsdino [a-z]+ [^`]*)`", text):
        try:
            check_options(shlex.split(line))
        except OVSDinoError as error:
            if str(error).startswith(("no such", "unexpected")):  # an argument may be left out in a sentence
                wrong.append(f"{line}: {error}")
    assert wrong == []


@pytest.mark.parametrize("page", pages())
def test_every_link_and_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", text)
    files = re.findall(r"`((?:ovsdino|deploy|benchmarks|configs|docs|scripts|tests|csrc)/[\w/.-]+\.\w+)`", text)
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    missing += [file for file in files if not (ROOT / file).exists()]
    assert missing == []


def test_no_page_names_a_path_that_only_its_authors_have() -> None:
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert "../shared" not in text and f"{ROOT.parent}/" not in text, page


def test_loops_and_continued_lines_are_one_command(tmp_path: Path) -> None:
    from tests.docs import commands as module

    body = "a --x \\\n  --y  # why\n\nfor n in 1 2; do\n  b $n\ndone\nC='one\n two'\n# only a comment\nd\n"
    lines = list(module._lines(body))
    assert [line.split()[0] for line in lines] == ["a", "for", "C='one", "d"]
    assert Command("p", lines[0]).words == ["a", "--x", "--y"]
