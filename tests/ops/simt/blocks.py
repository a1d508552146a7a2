"""The CUDA kernels of mask_pool, upsample_argmax and guided_upsample on emulated threads (simt.h)."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ovsdino.ops.upsample_argmax import label_dtype
from tests.ops.simt.emulator import DTYPES, SCHEDULES, Options, Report, compile_objects, link

SOURCES = ("tests/ops/simt/simt.cpp", "tests/ops/simt/blocks.cpp")
CODES = {**DTYPES, "uint8": 3, "bool": 3}  # ovsdino::DType


class MaskPool(ctypes.Structure):
    """ovsdino::MaskPool."""

    _fields_ = (
        ("features", ctypes.c_void_p),
        ("features_dtype", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("batch", "tokens", "channels")),
        *((name, ctypes.c_int64) for name in ("features_stride_b", "features_stride_n")),
        ("masks", ctypes.c_void_p),
        ("masks_dtype", ctypes.c_int32),
        ("mask_count", ctypes.c_int64),
        *((name, ctypes.c_int64) for name in ("masks_stride_b", "masks_stride_m", "masks_stride_n")),
        ("means", ctypes.c_void_p),
        ("areas", ctypes.c_void_p),
    )


class UpsampleArgmax(ctypes.Structure):
    """ovsdino::UpsampleArgmax."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("logits_dtype", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("batch", "classes", "in_h", "in_w")),
        *((name, ctypes.c_int64) for name in ("stride_b", "stride_k", "stride_y", "stride_x")),
        *((name, ctypes.c_int64) for name in ("out_h", "out_w")),
        ("labels", ctypes.c_void_p),
        ("labels_dtype", ctypes.c_int32),
        ("confidence", ctypes.c_void_p),
        ("has_threshold", ctypes.c_bool),
        ("threshold", ctypes.c_float),
    )


class View(ctypes.Structure):
    """ovsdino::GuidedUpsample::View."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        *((f"stride_{axis}", ctypes.c_int64) for axis in "bcyx"),
    )

    @classmethod
    def of(cls, x: Tensor) -> View:
        return cls(x.data_ptr(), CODES[str(x.dtype)[6:]], *x.stride())


class GuidedUpsample(ctypes.Structure):
    """ovsdino::GuidedUpsample."""

    _fields_ = (
        *((name, View) for name in ("logits", "guide_lo", "guide_hi")),
        *((name, ctypes.c_int64) for name in ("batch", "classes", "channels", "h", "w", "scale")),
        ("beta", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


class BlockEmulator:
    """The shared library, compiled into a folder."""

    def __init__(self, folder: Path) -> None:
        objects = compile_objects(folder, SOURCES, "-O2")
        self.library = ctypes.CDLL(str(link(objects, folder / "blocks.so", "-shared")))
        for name in ("simt_mask_pool", "simt_upsample_argmax", "simt_guided_upsample"):
            getattr(self.library, name).restype = ctypes.c_bool

    def mask_pool(
        self, features: Tensor, masks: Tensor, *, schedule: str = "random", fault: int = 0
    ) -> tuple[Tensor, Tensor, Report]:
        """Return means, areas and what the emulator saw; `masks` bool, uint8 or float32."""
        batch, tokens, channels = features.shape
        means = torch.full((batch, masks.shape[1], channels), float("nan"), dtype=features.dtype)
        areas = torch.full(masks.shape[:2], float("nan"))
        op = MaskPool(
            features.data_ptr(), CODES[str(features.dtype)[6:]], batch, tokens, channels, *features.stride()[:2],
            masks.data_ptr(), CODES[str(masks.dtype)[6:]], masks.shape[1], *masks.stride(),
            means.data_ptr(), areas.data_ptr(),
        )  # fmt: skip
        return means, areas, self._launch(self.library.simt_mask_pool, op, schedule, fault)

    def upsample_argmax(
        self,
        logits: Tensor,
        size: tuple[int, int],
        *,
        confidence: bool = False,
        schedule: str = "random",
        fault: int = 0,
    ) -> tuple[Tensor, Tensor | None, Report]:
        """Return labels, confidence and what the emulator saw; at most 256 classes."""
        batch, classes, h, w = logits.shape
        assert label_dtype(classes) == torch.uint8
        labels = torch.full((batch, *size), 255, dtype=torch.uint8)
        sure = torch.full((batch, *size), float("nan")) if confidence else None
        op = UpsampleArgmax(
            logits.data_ptr(), CODES[str(logits.dtype)[6:]], batch, classes, h, w, *logits.stride(), *size,
            labels.data_ptr(), CODES["uint8"], None if sure is None else sure.data_ptr(), False, 0.0,
        )  # fmt: skip
        return labels, sure, self._launch(self.library.simt_upsample_argmax, op, schedule, fault)

    def guided_upsample(
        self, logits: Tensor, low: Tensor, high: Tensor, beta: float, *, schedule: str = "random", fault: int = 0
    ) -> tuple[Tensor, Report]:
        """Return the fine logits by the kernel on tensor cores, and what the emulator saw; 16-bit tensors."""
        batch, classes, h, w = logits.shape
        factor = torch.tensor(beta)
        out = torch.full((batch, classes, *high.shape[2:]), float("nan"), dtype=logits.dtype)
        sizes = (batch, classes, low.shape[1], h, w, high.shape[2] // h)
        op = GuidedUpsample(*map(View.of, (logits, low, high)), *sizes, factor.data_ptr(), out.data_ptr())
        return out, self._launch(self.library.simt_guided_upsample, op, schedule, fault)

    def _launch(self, function: ctypes._NamedFuncPointer, op: ctypes.Structure, schedule: str, fault: int) -> Report:
        report = Report()
        options = Options(fault, SCHEDULES.index(schedule), 1, 0)
        if not function(ctypes.byref(op), ctypes.byref(options), ctypes.byref(report)):
            raise ValueError(report.first_fault.decode())
        return report
