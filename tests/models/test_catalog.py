"""The catalog of models needs no torch."""

from __future__ import annotations

import subprocess
import sys

from ovsdino.models.catalog import CONFIGS, list_models


def test_models_are_listed_without_torch() -> None:
    code = "import sys, ovsdino; ovsdino.list_models(); print(sorted({'torch', 'numpy', 'timm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
    assert [row.name for row in list_models()] == list(CONFIGS)


def test_nothing_heavy_is_imported_before_a_line_is_parsed() -> None:
    code = (
        "import sys\nfrom ovsdino.cli import main\ncode = main(['segment', '--no-such-option'])\n"
        "print(code, sorted({'torch', 'numpy', 'timm', 'torchvision', 'PIL', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "2 []\n"


def test_nano_is_loaded_without_timm_torchvision_and_dynamo() -> None:
    code = (
        "import sys, ovsdino\novsdino.load('nano', 'cpu')\n"
        "print(sorted({'timm', 'torchvision', 'torch._dynamo', 'sympy', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
