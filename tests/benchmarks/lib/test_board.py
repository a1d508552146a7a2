"""Facts of a board, read from the answers of its tools and from its files."""

from __future__ import annotations

from pathlib import Path

from ovsdino.benchmarks.lib import board


def test_the_answers_of_tools_are_read() -> None:
    assert board.parse_nvpmodel("NV Power Mode: MAXN_SUPER\n2") == "MAXN_SUPER" and board.parse_nvpmodel("") is None
    assert board.parse_l4t("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic") == "36.4.3"
    assert board.parse_smi("1980 MHz, 2619 MHz, [N/A], 580.95\n") == {
        "clocks.sm": "1980 MHz",
        "clocks.mem": "2619 MHz",
        "driver_version": "580.95",
    }
    assert board.parse_smi("") == {}


def test_facts_that_a_board_lacks_are_absent(tmp_path: Path) -> None:
    found = board.board_facts(tmp_path)
    assert not {"board", "l4t", "cpu_mhz", "gpu_mhz", "governor"} & found.keys() and all(found.values())
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin Nano\0")
    clock = tmp_path / "sys/class/devfreq/17000000.ga10b/cur_freq"
    clock.parent.mkdir(parents=True)
    clock.write_text("1020000000\n")
    for name, value in (("min", "306000000\n"), ("max", "1020000000\n")):
        (clock.parent / f"{name}_freq").write_text(value)
    found = board.board_facts(tmp_path)
    assert found["board"] == "NVIDIA Jetson Orin Nano" and found["gpu_mhz"] == 1020
    assert found["gpu_mhz_range"] == [306, 1020]


def test_what_makes_figures_doubtful_is_said_with_the_remedy() -> None:
    best = {"governor": "schedutil", "cpu_mhz_range": [1728, 1728], "gpu_mhz_range": [1020, 1020], "load_average": 0.1}
    assert board.doubts({**best, "nvpmodel": "MAXN_SUPER"}, 6) == [] == board.doubts({}, 2)
    slow = {"governor": "schedutil", "cpu_mhz_range": [729, 1728], "gpu_mhz_range": [306, 1020], "nvpmodel": "15W"}
    found = board.doubts({**slow, "load_average": 3.2}, 6)
    assert [line.split(":")[0] for line in found] == [
        "governor is schedutil",
        "nvpmodel is 15W",
        "jetson_clocks is off",
        "load average 3.2 before the first call",
    ]
    assert "729 to 1728 MHz" in found[0] and "306 to 1020 MHz" in found[2]
