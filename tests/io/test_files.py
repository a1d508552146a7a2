"""Files appear whole or not at all; a damaged one is named in one line; a folder has one writer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import (
    atomic_path,
    atomic_write,
    lock_folder,
    read_json,
    read_text,
    reading,
    refuse_inputs,
    remove_orphans,
    sha256_of,
)


def limited(code: str, blocks: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where no file may grow beyond ``blocks`` KiB: what a full disk does, without filling one."""
    return run(["bash", "-c", f'ulimit -f {blocks}; exec "$0" -c "$1"', sys.executable, code], folder)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, timeout=120)


def test_jpeg_on_a_full_disk_raises_and_gets_no_name(tmp_path: Path) -> None:
    code = (
        "import numpy as np\nfrom PIL import Image\nfrom ovsdino.io.files import atomic_write\n"
        "pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)\n"
        "with atomic_write('a.jpg') as file: Image.fromarray(pixels).save(file, 'JPEG', quality=90)\n"
    )
    done = limited(code, 8, tmp_path)
    assert done.returncode == 1 and "OVSDinoError: a.jpg: cannot write" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "npy", "torch"])
def test_every_writer_in_use_writes_what_it_would_write_to_a_plain_file(kind: str, tmp_path: Path) -> None:
    import torch

    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)

    def save(file: object) -> None:
        if kind == "npy":
            np.save(file, pixels)  # type: ignore[call-overload]
        elif kind == "torch":
            torch.save(torch.from_numpy(pixels), file)  # type: ignore[arg-type]
        else:
            Image.fromarray(pixels).save(file, kind)  # type: ignore[arg-type]

    with open(tmp_path / "plain", "wb") as plain:
        save(plain)
    with atomic_write(tmp_path / "whole") as whole:
        save(whole)
    if kind == "torch":  # its archive carries the name of the file it was written to
        assert torch.equal(torch.load(tmp_path / "whole"), torch.from_numpy(pixels))
    else:
        assert (tmp_path / "whole").read_bytes() == (tmp_path / "plain").read_bytes()


def test_a_failed_body_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyError("stop")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_the_next_writer_removes_what_a_killed_one_left_and_not_what_a_living_one_writes(tmp_path: Path) -> None:
    code = "import os\nfrom ovsdino.io.files import atomic_path\nwith atomic_path('a.bin'): os.kill(os.getpid(), 9)"
    run([sys.executable, "-c", code], tmp_path)
    (left,) = tmp_path.iterdir()
    os.utime(left, (time.time() - 3600,) * 2)
    with atomic_path(tmp_path / "a.bin") as living:
        os.utime(living, (time.time() - 3600,) * 2)
        assert not left.exists()
        with atomic_write(tmp_path / "a.bin") as second:
            second.write(b"second")
        assert living.exists()
        living.write_bytes(b"first")
    assert (tmp_path / "a.bin").read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_pipe_a_device_or_a_folder_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    for name, what in (("pipe", "a pipe"), ("null", "a device"), ("folder", "is a folder")):
        with pytest.raises(OVSDinoError, match=f"{name}: cannot write: .*{what}"), atomic_write(tmp_path / name):
            raise AssertionError("opened")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "null", "pipe"] and os.path.exists("/dev/null")


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.txt").symlink_to("there/real.txt")  # which does not exist yet
    for text in (b"one", b"two"):
        with atomic_write(tmp_path / "link.txt") as file:
            file.write(text)
        assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "there" / "real.txt").read_bytes() == text


@pytest.mark.parametrize("name", ["空" * 80 + ".png", "x" * 255, "a." + "b" * 250, "\udce9" * 200 + ".png"])
def test_every_name_that_a_file_can_have_can_be_written(name: str, tmp_path: Path) -> None:
    with atomic_write(tmp_path / name) as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["x" * 256, "loop"])
def test_a_name_that_no_file_can_have_is_one_line_before_the_work(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OVSDinoError, match="cannot write"), atomic_write(tmp_path / name):
        raise AssertionError("opened")


def test_a_second_process_is_refused_a_locked_folder(tmp_path: Path) -> None:
    code = "from ovsdino.io.files import lock_folder\nwith lock_folder('.', 'training'): print('in')"
    with lock_folder(tmp_path, "training"):
        refused = run([sys.executable, "-c", code], tmp_path)
        assert "another training is writing to this folder" in refused.stderr and refused.stdout == ""
    assert run([sys.executable, "-c", code], tmp_path).stdout == "in\n"
    assert not list(tmp_path.iterdir())


def test_parts_of_one_work_share_a_folder_and_nothing_else_does(tmp_path: Path) -> None:
    code = "import sys\nfrom ovsdino.io.files import lock_folder\nwith lock_folder('.', 'run', {}): print('in')"

    def enters(part: tuple[int, int] | None) -> bool:
        return run([sys.executable, "-c", code.format(part)], tmp_path).stdout == "in\n"

    with lock_folder(tmp_path, "run", (0, 2)):
        assert [enters(part) for part in ((0, 2), (1, 2), None, (0, 1))] == [False, True, False, False]
    with lock_folder(tmp_path, "run", (0, 1)):
        assert not enters((1, 2))
    assert enters(None)


def test_what_a_killed_writer_left_is_swept_and_nothing_of_anyone_else(tmp_path: Path) -> None:
    code = (
        "import os\nfrom ovsdino.io.files import atomic_path\n"
        "with atomic_path('a.bin') as t:\n    t.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    run([sys.executable, "-c", code], tmp_path)
    for name in (".bashrc.tmp", ".a.tmp.txt", ".a.1.tmp"):
        (tmp_path / name).write_text("mine")
    with atomic_path(tmp_path / "b.bin") as living:
        living.write_bytes(b"b")
        remove_orphans(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.1.tmp", ".a.tmp.txt", ".bashrc.tmp", "b.bin"]


def test_an_empty_file_of_a_writer_that_was_just_killed_is_swept_too(tmp_path: Path) -> None:
    code = "import os\nfrom ovsdino.io.files import atomic_path\nwith atomic_path('a.bin'): os.kill(os.getpid(), 9)"
    run([sys.executable, "-c", code], tmp_path)
    (left,) = tmp_path.iterdir()
    assert left.stat().st_size == 0
    remove_orphans(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_file_that_was_swept_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    lock, swept = fcntl.flock, []

    def sweep_first(handle: int, how: int) -> None:
        if not swept:
            (found,) = tmp_path.iterdir()
            found.unlink()
            swept.append(found)
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    with atomic_write(tmp_path / "a.bin") as file:
        file.write(b"whole")
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"] and (tmp_path / "a.bin").read_bytes() == b"whole"


def test_text_is_read_with_or_without_a_byte_order_mark_and_from_files_only(tmp_path: Path) -> None:
    (tmp_path / "mark.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_text(tmp_path / "mark.json", "text") == '{"a": 1}'
    assert read_json(tmp_path / "mark.json", "JSON") == {"a": 1}
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "lines.txt").write_bytes(b"a\r\nb\rc\n")
    assert read_text(tmp_path / "lines.txt", "text") == "a\nb\nc\n"
    (tmp_path / "powershell.yaml").write_bytes("a: 1\n".encode("utf-16"))
    with pytest.raises(OVSDinoError, match="UTF-16 where UTF-8 text is expected; save the file as UTF-8"):
        read_text(tmp_path / "powershell.yaml", "text")
    os.mkfifo(tmp_path / "pipe")
    for name in ("latin.txt", "deep.json", "pipe", "missing", "."):
        with pytest.raises(OVSDinoError, match=r"no such file|not a readable list"):
            read_json(tmp_path / name, "list")


@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
def test_an_output_that_is_an_input_by_any_name_is_refused(link: str, tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    source.write_bytes(b"x")
    output = source if link == "same" else tmp_path / "b.png"
    if link == "symbolic":
        output.symlink_to(source)
    elif link == "hard":
        output.hardlink_to(source)
    with pytest.raises(OVSDinoError, match="would replace an input"):
        refuse_inputs([tmp_path / "new.png", output], [source])
    refuse_inputs([tmp_path / "new.png"], [source, tmp_path / "missing"])


@pytest.mark.parametrize(
    "raised, message",
    [
        (KeyError("size"), "a.json: not a readable mask file: 'size'; make it again"),
        (RecursionError("too\n deep"), "a.json: not a readable mask file: too deep; make it again"),
        (MemoryError(), "a.json: not a readable mask file: MemoryError; make it again"),
        (FileNotFoundError(2, "x"), "a.json: no such file; make it again"),
        (OVSDinoError("as it is"), "as it is"),
    ],
)
def test_reading_turns_what_a_parser_throws_into_one_line(raised: Exception, message: str) -> None:
    with pytest.raises(OVSDinoError) as caught, reading("a.json", "mask file", "make it again"):
        raise raised
    assert str(caught.value) == message


def test_reading_lets_an_interruption_through() -> None:
    with pytest.raises(KeyboardInterrupt), reading("a.json", "mask file"):
        raise KeyboardInterrupt


def test_sha256_is_the_published_value_of_abc(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
