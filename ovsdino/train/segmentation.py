"""Training of a segmentation model: its frozen parts, the running average of its weights, its validation.

Little is trained behind a frozen ViT (vit6 1.9 M parameters, b14 3.6 M), so every process holds all of it and its
optimizer's state: sharding them (FSDP) would save some 40 MB a device and cost a collective a layer.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.distributed import add_up, join
from ovsdino.eval.metrics import Confusion
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
from ovsdino.models.smd import SHUT, SMDBlock
from ovsdino.models.zoo import OWN_KEYS
from ovsdino.ops import upsample_argmax
from ovsdino.pipeline import Segmenter
from ovsdino.train.config import RunConfig
from ovsdino.train.initial import changed_model, load_weights
from ovsdino.train.run_folder import Board
from ovsdino.train.trainer import Log, Trainer, follow

TEMPERATURES = ("log_scale", "mask_scale")  # logarithms of factors of cosines
MAX_LOG_SCALE = math.log(100.0)  # CLIP's bound (Radford et al. 2021, section 2.5): beyond it training is unstable


class SegmentationTrainer(Trainer):
    """The part that runs on labels and runs on captions share.

    The module given to `prepare` has the model as its attribute `model`, and what the losses alone need.
    """

    config: RunConfig
    memory_format = torch.channels_last  # of the convolutions

    def __init__(self, config: RunConfig, log: Log) -> None:
        super().__init__(config, config.optim, log, join())
        self.model = changed_model(config)
        load_weights(self.model, config)
        self.best = -1.0

    @abstractmethod
    def measured(self) -> dict[str, tuple[SegmentationDataset, Tensor]]:
        """Return labeled images and the text of their classes (K, D), measured along the way.

        Returns:
            "val", which chooses nothing, and "selection", whose best result is kept as `best.safetensors`; either may
            be missing.
        """

    def prepare(self, module: nn.Module, parameters: dict[str, nn.Parameter] | None = None) -> None:
        module = module.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        super().prepare(module, parameters)
        self.temperatures = [p for k, p in self.trained.items() if k.rpartition(".")[2] in TEMPERATURES]
        self.ema = {k: p.detach().clone() for k, p in self.trained.items()}
        self.watched = watch(self.model)
        if self.config.compile:
            self.objective = torch.compile(self.module)
        if self.ranks.size > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.objective = DistributedDataParallel(self.objective, devices, find_unused_parameters=True)

    def own_rates(self) -> dict[nn.Parameter, float]:
        """Return the rates of the gate and of the change that it lets through, where the gate is slowed."""
        smd = self.model.decoder.smd if self.model.decoder is not None else None
        if smd is None or smd.config.gate != "output" or not self.optim.gate_rate:
            return {}
        change = dict.fromkeys(smd.out.parameters(), 1 / torch.tensor(SHUT).sigmoid().item())
        return change | dict.fromkeys(smd.gate.parameters(), self.optim.gate_rate)

    def after_update(self) -> None:
        for parameter in self.temperatures:
            parameter.data.clamp_(max=MAX_LOG_SCALE)
        decay = min(self.optim.ema, (1 + self.step) / (10 + self.step))
        follow(self.ema.values(), self.trained.values(), decay)

    def figures(self) -> dict[str, float]:
        """Return the gate's mean in the last step, and lambda E|e_i - e_j|^2 of each block, the mean over heads."""
        found = {name: value.item() for name, value in self.watched.items()}
        smd = self.model.decoder.smd if self.model.decoder is not None else None
        for index, block in enumerate(smd.blocks if smd is not None else ()):
            if isinstance(block, SMDBlock) and block.config.structure:
                found[f"structure_{index}"] = 2 * block.strength().mean().item()
        return found

    # -- state ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "trained": {k: p.detach() for k, p in self.trained.items()}, "ema": self.ema}

    def take_up(self, state: dict[str, Any]) -> None:
        own = {k: tuple(p.shape) for k, p in self.trained.items()}
        if any({k: tuple(v.shape) for k, v in state[part].items()} != own for part in ("trained", "ema")):
            raise self.foreign()
        self._load_parameters(state["trained"])
        for name, value in state["ema"].items():
            self.ema[name].copy_(value)
        self.best = float(state["best"])

    def save_weights(self, name: str) -> None:
        """Write the averaged weights in float16: the file that a model loads. An official backbone is left out.

        The first process writes.
        """
        if not self.ranks.first:
            return
        weights = self.model.state_dict()
        weights.update({k.removeprefix("model."): v for k, v in self.ema.items() if k.startswith("model.")})
        if not self.model.config.text.stored:
            weights = {k: v for k, v in weights.items() if k.startswith(OWN_KEYS)}
        self.folder.save_weights(name, weights)

    def use_average(self) -> None:
        """Put the averaged weights into the model for good: the last thing done with a trainer."""
        self._load_parameters(self.ema)

    def _load_parameters(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.trained.items():
            parameter.data.copy_(values[name])

    # -- validation ----------------------------------------------------------------------------------------------

    def after_step(self, board: Board | None) -> dict[str, Any] | None:
        every = self.config.eval_every
        if every and (self.step % every == 0 or self.step == self.optim.steps):
            return self.validate(board)
        return None

    def validate(self, board: Board | None) -> dict[str, Any]:
        """Measure the averaged weights, each process its part of the images; choose the best by the selection images.

        Returns:
            The result on the validation images.
        """
        self.module.eval()
        found = {kind: self.evaluate(*images) for kind, images in self.measured().items()}
        self.train_mode()
        for kind, result in found.items():
            self.record(kind, **result)
            if self.ranks.first:
                self.log(f"step {self.step}: {kind} mIoU {result['miou']:.4f}")
            if board is not None:
                board.add(kind, {"miou": result["miou"]}, self.step)
        chosen = found.get("selection")
        if chosen and chosen["miou"] > self.best:
            self.best = chosen["miou"]
            self.save_weights("best.safetensors")
        return found.get("val", {})

    @torch.no_grad()
    def evaluate(self, dataset: SegmentationDataset, text: Tensor) -> dict[str, Any]:
        """Return the mIoU of the averaged weights as `ovsdino eval` measures it: whole images at the default size.

        Each process takes every n-th image, so none waits for another longer than for an image.

        Args:
            dataset: Images with labels.
            text: (K, D), of its classes.
        """
        segmenter, confusion = Segmenter(self.model), Confusion(len(dataset.names), dataset.ignore_index)
        live = {k: p.detach().clone() for k, p in self.trained.items()}
        self.use_average()
        try:
            for index in self.ranks.indices(len(dataset)):
                sample = dataset[index]
                logits = segmenter.decode(segmenter.encode_image(sample.image), text)
                confusion.update(upsample_argmax(logits, sample.label.shape)[0].cpu().numpy(), sample.label)
        finally:
            self._load_parameters(live)
        add_up([confusion.counts])
        iou = dict(zip(dataset.names, confusion.iou().tolist(), strict=True))
        return {
            "miou": confusion.miou() or 0.0,
            "iou": {name: None if math.isnan(value) else round(value, 4) for name, value in iou.items()},
        }


def watch(model: OVSDINO) -> dict[str, Tensor]:
    """Return a mapping that holds "gate", the gate's mean, after each forward of a decoder in training."""
    seen: dict[str, Tensor] = {}

    def note(module: nn.Module, _: Any, logits: Tensor) -> None:
        if module.training:
            seen["gate"] = logits.detach().float().sigmoid().mean()

    smd = model.decoder.smd if model.decoder is not None else None
    if smd is not None and smd.config.gate == "output":
        smd.gate.register_forward_hook(note)
    return seen


def normalized(model: OVSDINO, images: Tensor, memory_format: torch.memory_format = torch.channels_last) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] as the model takes them, in the memory layout of its convolutions."""
    mean = torch.tensor(model.config.mean, device=images.device)[:, None, None]
    std = torch.tensor(model.config.std, device=images.device)[:, None, None]
    return ((images - mean) / std).contiguous(memory_format=memory_format)


def encode(model: OVSDINO, images: Tensor, bf16: bool) -> ImageFeatures:
    """Return the features of images in [0, 1]: computed in bf16, handed on in float32, in which all losses are."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        features = model.encode_image(normalized(model, images))
    return features.float()
