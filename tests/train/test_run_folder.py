"""The folder of a run: what a kill, a full disk, a flipped bit and a second run cost; the log has each step once."""

import io
import json
import resource
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import lock_folder
from ovsdino.models.zoo import create_model
from ovsdino.train.__main__ import main
from ovsdino.train.run_folder import Board, RunFolder
from ovsdino.train.stopping import Stopped
from tests.support.weak_folder import curve, make_folder, trainer, write_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("weak") / "data")


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A run of two steps."""
    output = tmp_path_factory.mktemp("finished") / "run"
    assert main([write_config(folder, output, optim={"steps": 2})]) == 0
    return output


def test_a_kill_before_the_first_checkpoint_leaves_each_step_once(folder, tmp_path):
    path = write_config(folder, tmp_path / "run", optim={"steps": 4}, checkpoint_every=100)

    def kill(step, *_):
        if step == 3:
            raise KeyboardInterrupt

    it = trainer(path)
    it.record("config")
    with pytest.raises(KeyboardInterrupt):
        it.run(kill)
    assert (tmp_path / "run/log.jsonl").read_text().count("\n") == 3 and not (tmp_path / "run/checkpoint.pt").exists()
    assert main([path]) == 0
    assert sorted(curve(tmp_path / "run")) == [1, 2, 3, 4]  # curve() refuses a step that is there twice
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert kinds == ["config", "train", "train", "train", "train"]


def test_the_log_keeps_what_the_checkpoint_covers(tmp_path):
    run = RunFolder(tmp_path)
    for kind, step in (("config", 0), ("train", 1), ("train", 2), ("config", 2), ("train", 3)):
        run.append({"kind": kind, "step": step})
    with run.log.open("a") as file:
        file.write('{"kind": "train", "st')  # cut off
    run.forget_after(2)
    rows = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert [(row["kind"], row["step"]) for row in rows] == [("config", 0), ("train", 1), ("train", 2)]


def test_a_flipped_bit_of_a_checkpoint_is_found_on_resuming(folder, finished, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    data = bytearray((finished / "checkpoint.pt").read_bytes())
    data[len(data) // 2] ^= 4
    (run / "checkpoint.pt").write_bytes(data)
    with pytest.raises(OVSDinoError, match=r"checkpoint\.pt: damaged .*; remove it to begin anew"):
        trainer(write_config(folder, run, optim={"steps": 2})).resume()


@pytest.mark.parametrize("name", ["last.safetensors"])
def test_a_flipped_bit_of_trained_weights_is_found_on_loading(finished, tmp_path, name):
    data = bytearray((finished / name).read_bytes())
    assert create_model("vit6", checkpoint=finished / name).decoder_trained
    data[-1000] ^= 1  # a mantissa's last bit
    (tmp_path / name).write_bytes(data)
    with pytest.raises(OVSDinoError, match=r"last\.safetensors: damaged"):
        create_model("vit6", checkpoint=tmp_path / name)


def test_files_of_before_that_carry_no_hash_still_load(folder, finished, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    torch.save(state, run / "checkpoint.pt")
    it = trainer(write_config(folder, run, optim={"steps": 3}))
    assert it.resume() and it.step == 2
    save_file(load_file(finished / "last.safetensors"), tmp_path / "old.safetensors")
    assert create_model("vit6", checkpoint=tmp_path / "old.safetensors").decoder_trained


@pytest.mark.parametrize("content", [b"", b"no zip", {"step": 3}, {"step": "x"}, [1]])
def test_a_file_that_is_not_a_checkpoint_is_one_error(folder, tmp_path, content):
    run = tmp_path / "run"
    run.mkdir()
    if not isinstance(content, bytes):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        content = buffer.getvalue()
    (run / "checkpoint.pt").write_bytes(content)
    with pytest.raises(OVSDinoError, match=r"checkpoint\.pt: .*remove it to begin anew"):
        trainer(write_config(folder, run)).resume()


def test_two_runs_in_one_folder_are_refused(folder, finished, capsys):
    path = write_config(folder, finished, optim={"steps": 2})
    with lock_folder(finished, "training"):
        before = (finished / "log.jsonl").read_bytes()
        assert main([path]) == 2
    assert "another training is writing to this folder" in capsys.readouterr().err
    assert (finished / "log.jsonl").read_bytes() == before
    assert main([path]) == 0


def test_ctrl_c_while_the_data_is_read_is_one_line_and_130(folder, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ovsdino.train.weak.trainer.open_captions", interrupted)
    assert main([write_config(folder, tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_ctrl_c_in_the_last_step_ends_a_study_and_not_only_its_run(folder, tmp_path):
    it = trainer(write_config(folder, tmp_path / "run", optim={"steps": 2}))
    with pytest.raises(Stopped) as stopped:
        it.run(lambda step, steps, _: step == steps and signal.raise_signal(signal.SIGINT))
    assert stopped.value.signal == signal.SIGINT
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["step"] == 2


def test_memory_that_runs_out_is_one_line(folder, tmp_path, capsys, monkeypatch):
    path = write_config(folder, tmp_path / "run")
    monkeypatch.setattr("ovsdino.train.weak.trainer.WeakTrainer.losses", lambda *_: torch.empty(1 << 50))
    assert main([path]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: out of memory: ") and "can't allocate" in error


# -- TensorBoard ------------------------------------------------------------------------------------------------------


def test_tensorboard_reads_the_scalars_and_hides_what_was_done_again(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = Board(tmp_path, 0)
    for step in (1, 2, 3):
        board.add("train", {"loss": float(step), "lr": 0.5}, step)
    board.close()
    again = Board(tmp_path, 2)
    again.add("train", {"loss": 30.0, "lr": 0.5}, 3)
    again.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_disk_that_fills_up_under_tensorboard_is_one_error(tmp_path):
    pytest.importorskip("tensorboard")
    board = Board(tmp_path, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OVSDinoError, match=r"tfevents.*: cannot write: File too large"):
            for step in range(1000):
                board.add("train", {"loss": 1.0}, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    board.close()


def test_a_tensorboard_that_cannot_be_written_is_one_line(folder, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/tensorboard").write_text("a file where the folder should be")
    assert main([write_config(folder, tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "tensorboard" in error and "cannot write" in error


def test_the_same_command_twice_changes_nothing(folder, finished):
    before = (finished / "last.safetensors").read_bytes()
    assert main([write_config(folder, finished, optim={"steps": 2})]) == 0
    assert (finished / "last.safetensors").read_bytes() == before
