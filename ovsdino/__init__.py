"""Open-vocabulary segmentation: an image and words in, a mask for each word out.

    import ovsdino

    result = ovsdino.segment("street.jpg", ["road", "car", "sky"])
    result.overlay().save("street_overlay.png")

Names are loaded on first use, so ``import ovsdino`` imports neither torch nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovsdino.errors import OVSDinoError
    from ovsdino.models.catalog import list_models
    from ovsdino.pipeline import Segmenter, load, segment
    from ovsdino.results import Segmentation

    __version__: str

__all__ = ["OVSDinoError", "Segmentation", "Segmenter", "__version__", "list_models", "load", "segment"]

_HOMES = {
    "OVSDinoError": "ovsdino.errors",
    "Segmentation": "ovsdino.results",
    "Segmenter": "ovsdino.pipeline",
    "list_models": "ovsdino.models.catalog",
    "load": "ovsdino.pipeline",
    "segment": "ovsdino.pipeline",
}


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ovsdino")
    except PackageNotFoundError:
        return "0.0.0+source"


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
