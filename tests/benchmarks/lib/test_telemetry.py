"""Samples of a machine: lines of tegrastats as JetPack 4 to 7 write them, files of /sys, and what they say of a run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ovsdino.benchmarks.lib import telemetry
from ovsdino.benchmarks.lib.telemetry import Watch, parse_tegrastats, slowdowns, summary, sys_sample, throttle_counts

NANO_4 = (  # JetPack 4, Nano: two cores off, rails without a unit, EMC's load without its clock
    "RAM 1904/3964MB (lfb 60x4MB) SWAP 12/1982MB (cached 1MB) IRAM 0/252kB(lfb 252kB) CPU [35%@1428,41%@1428,off,off] "
    "EMC_FREQ 11% GR3D_FREQ 87%@844 VIC_FREQ 0%@192 APE 25 PLL@41C CPU@44.5C iwlwifi@45C PMIC@100C GPU@42C AO@50.5C "
    "thermal@43.25C POM_5V_IN 7204/6890 POM_5V_GPU 2533/2410 POM_5V_CPU 1240/1180"
)
XAVIER_4 = (
    "RAM 5120/31919MB (lfb 5000x4MB) SWAP 0/15959MB (cached 0MB) CPU [3%@1190,0%@1190,off,off] EMC_FREQ 0%@2133 "
    "GR3D_FREQ 99%@1377 APE 150 AUX@38C CPU@39.5C thermal@38.9C AO@38C GPU@41C Tboard@39C PMIC@100C GPU 9011/8900 "
    "CPU 1236/1200 SOC 3100/3050 CV 0/0 VDDRQ 1082/1050 SYS5V 2820/2810"
)
AGX_5 = (  # JetPack 5, AGX Orin: a clock for each of two GPCs, -256C where a block is off
    "11-02-2026 09:15:01 RAM 4100/30592MB (lfb 6100x4MB) SWAP 0/15296MB (cached 0MB) CPU [12%@2201,0%@2201,4%@729,off] "
    "EMC_FREQ 21%@3199 GR3D_FREQ 96%@[1300,1294] VIC_FREQ 729 APE 174 CV0@-256C CPU@55.4C SOC2@51.1C SOC0@52C "
    "CV1@-256C GPU@57.625C tj@57.625C SOC1@51C CV2@-256C VDD_GPU_SOC 15100mW/14020mW VDD_CPU_CV 2400mW/2350mW "
    "VIN_SYS_5V0 4300mW/4280mW NC 0mW/0mW VDDQ_VDD2_1V8AO 1200mW/1180mW NC 0mW/0mW"
)
NANO_6 = (  # JetPack 6, Orin Nano: no clock of the GPU without root, lower-case sensors
    "11-22-2026 10:00:00 RAM 2948/7620MB (lfb 2x4MB) SWAP 7/3810MB (cached 0MB) CPU [3%@729,100%@1728,0%@729,0%@729,"
    "off,off] GR3D_FREQ 64% cpu@48.7C soc2@47.8C soc0@48.1C gpu@49.375C tj@49.375C soc1@47.9C VDD_IN 5123mW/5000mW "
    "VDD_CPU_GPU_CV 800mW/790mW VDD_SOC 1400mW/1390mW"
)
THOR_7 = (  # JetPack 7, Thor: no load in GR3D_FREQ, a rail that is calibrated below zero, the input of the board
    "11-23-2026 08:00:00 RAM 9000/125772MB (lfb 100x4MB) CPU [1%@2601,0%@972] EMC_FREQ 0%@4266 "
    "GR3D_FREQ @[1574,1574,1575] VIC off cpu@41.1C tj@42.5C soc012@42.5C VDD_GPU -392mW/0mW "
    "VDD_CPU_SOC_MSS 6510mW/6400mW VIN_SYS_5V0 6520mW/6500mW VIN 23800mW/23500mW"
)


def test_a_whole_line_of_tegrastats_is_read() -> None:
    assert parse_tegrastats(NANO_6) == {
        "ram_mb": 2948, "swap_mb": 7, "cpu_percent": 25.8, "cpu_mhz": 1728, "gpu_percent": 64,
        "celsius cpu": 48.7, "celsius soc2": 47.8, "celsius soc0": 48.1, "celsius gpu": 49.375, "celsius tj": 49.375,
        "celsius soc1": 47.9,
        "watts VDD_IN": 5.123, "watts VDD_CPU_GPU_CV": 0.8, "watts VDD_SOC": 1.4, "watts": 5.123,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "expected", "absent"),
    [
        (
            NANO_4,
            {"cpu_percent": 38, "cpu_mhz": 1428, "emc_percent": 11, "gpu_percent": 87, "gpu_mhz": 844, "watts": 7.204}
            | {"celsius cpu": 44.5, "celsius thermal": 43.25, "watts POM_5V_GPU": 2.533, "swap_mb": 12},
            {"celsius pmic", "emc_mhz", "watts SWAP", "watts RAM"},
        ),
        (
            XAVIER_4,
            {"gpu_mhz": 1377, "emc_mhz": 2133, "watts GPU": 9.011, "celsius gpu": 41, "watts": 17.249},
            {"watts RAM", "watts IRAM"},
        ),
        (
            AGX_5,
            {"cpu_mhz": 2201, "gpu_mhz": 1300, "gpu_percent": 96, "emc_mhz": 3199, "emc_percent": 21, "watts": 23.0}
            | {"celsius tj": 57.625, "watts VDD_CPU_CV": 2.4},
            {"celsius cv0", "watts NC", "watts APE"},
        ),
        (
            THOR_7,
            {"gpu_mhz": 1575, "watts": 23.8, "watts VDD_GPU": -0.392, "cpu_mhz": 2601, "celsius soc012": 42.5},
            {"gpu_percent", "swap_mb"},
        ),
    ],
    ids=["nano 4", "xavier 4", "agx orin 5", "thor 7"],
)
def test_lines_of_other_boards_are_read(line: str, expected: dict[str, float], absent: set[str]) -> None:
    found = parse_tegrastats(line)
    assert {name: found.get(name) for name in expected} == pytest.approx(expected)
    assert not absent & found.keys()


@pytest.mark.parametrize("line", ["", "Missing tegrastats", "RAM x/yMB CPU [off,off] GR3D_FREQ", NANO_6[:37]])
def test_a_line_that_is_cut_or_none_of_it_gives_what_it_has(line: str) -> None:
    found = parse_tegrastats(line)
    assert found.keys() <= {"ram_mb"} and found.get("ram_mb", 2948) == 2948


def test_the_numbers_of_nvidia_smi_are_read() -> None:
    line = "312.40, 1980, 2619, 54, 97, 1820"
    expected = {"watts": 312.4, "gpu_mhz": 1980, "emc_mhz": 2619, "celsius gpu": 54, "gpu_percent": 97}
    assert telemetry.parse_smi_line(line) == expected | {"gpu_memory_mb": 1820}
    assert telemetry.parse_smi_line("[N/A], 1410, [N/A], 40, 0, 12") == {
        "gpu_mhz": 1410, "celsius gpu": 40, "gpu_percent": 0, "gpu_memory_mb": 12,
    }  # fmt: skip


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_clocks_temperatures_and_cooling_come_from_sys(tmp_path: Path) -> None:
    assert sys_sample(tmp_path) == {}
    write(tmp_path, **{
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1190400\n",
        "sys/devices/system/cpu/cpu3/cpufreq/scaling_cur_freq": "2201600\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n", "sys/class/thermal/thermal_zone0/temp": "48625\n",
        "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n", "sys/class/thermal/thermal_zone1/temp": "-256000\n",
        "sys/class/thermal/thermal_zone2/type": "x86_pkg_temp\n", "sys/class/thermal/thermal_zone2/temp": "61000\n",
        "sys/class/thermal/cooling_device0/type": "pwm-fan\n", "sys/class/thermal/cooling_device0/cur_state": "3\n",
        "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
        "sys/class/thermal/cooling_device1/cur_state": "2\n",
    })  # fmt: skip
    assert sys_sample(tmp_path) == {
        "cpu_mhz": 2202, "celsius cpu": 48.625, "celsius x86_pkg_temp": 61, "cooling cpufreq-cpu0": 2,
    }  # fmt: skip


def test_events_between_two_counts_are_slowdowns(tmp_path: Path) -> None:
    hwmon = "sys/class/hwmon/hwmon3"
    write(tmp_path, **{f"{hwmon}/oc1_event_cnt": "0", f"{hwmon}/oc3_event_cnt": "37"})
    write(tmp_path, **{"sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "4"})
    before = throttle_counts(tmp_path)
    assert before == {"oc1": 0, "oc3": 37, "core thermal": 4}
    write(tmp_path, **{f"{hwmon}/oc3_event_cnt": "40"})
    assert slowdowns({}, before, throttle_counts(tmp_path)) == ["oc3: 3 events"]


def test_clocks_that_fall_while_timing_are_slowdowns() -> None:
    steady = [{"gpu_mhz": 1020.0, "cooling gpu": 0.0, "celsius gpu": 50.0}] * 10
    assert slowdowns(summary(steady), {}, {}) == []
    falling = [{"gpu_mhz": clock, "cooling gpu": float(clock < 900)} for clock in (1020.0,) * 5 + (612.0,) * 5]
    assert slowdowns(summary(falling), {}, {}) == [
        "gpu_mhz fell from 1020 to 612",
        "gpu was slowed down, state 1",
    ]


def test_summary_has_the_ends_and_the_fifths_of_each_number() -> None:
    numbers = summary([{"celsius cpu": float(value)} for value in range(10)] + [{"watts": 5.0}])
    assert numbers["celsius cpu"] == {"least": 0, "median": 4.5, "most": 9, "first": 0.5, "last": 8.5}
    assert numbers["watts"] == {"least": 5, "median": 5, "most": 5, "first": 5, "last": 5}


def test_a_watch_keeps_the_samples_of_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "tegrastats"
    write(tmp_path, **{"bin/tegrastats": f"#!/bin/sh\nwhile :; do echo '{AGX_5}'; sleep 0.1; done\n"})
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    write(tmp_path, **{"sys/class/thermal/thermal_zone0/temp": "40000", "proc/stat": "cpu  10 0 10 80 0 0 0 0 0 0\n"})
    start = time.monotonic()
    with Watch(tmp_path) as watch:
        while not {"watts", "celsius thermal_zone0"} <= {name for _, sample in watch.samples for name in sample}:
            assert time.monotonic() < start + 60
            time.sleep(0.05)
    assert watch.source == "tegrastats"
    numbers = summary(watch.between(start, time.monotonic()))
    assert numbers["watts"]["median"] == 23.0 and numbers["celsius thermal_zone0"]["most"] == 40.0
    assert watch.between(0.0, start) == []
