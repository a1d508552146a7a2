"""Facts of a board, read from the answers of its tools and from its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovsdino.benchmarks.lib import board


def test_the_answers_of_tools_are_read() -> None:
    nano = (
        "11-22-2026 RAM 3000/7620MB CPU [5%@729] VDD_IN 5123mW/5000mW VDD_CPU_GPU_CV 800mW/790mW VDD_SOC 1400mW/1390mW"
    )
    agx = "GR3D_FREQ 99% VDD_GPU_SOC 12000mW/11000mW VDD_CPU_CV 3500mW/3400mW VIN_SYS_5V0 4000mW/4000mW"
    assert board.parse_tegrastats(nano) == pytest.approx(5.123)
    assert board.parse_tegrastats(agx) == pytest.approx(19.5)
    assert board.parse_tegrastats("RAM 3000/7620MB") is None
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
    found = board.board_facts(tmp_path)
    assert found["board"] == "NVIDIA Jetson Orin Nano" and found["gpu_mhz"] == 1020
