"""Trains the model pairs of the delta benchmark: a small picture classifier, and what fine-tuning makes of it.

Needs torch, onnx, onnxruntime and safetensors, so `scripts/bench_delta.py` runs it in an environment of its own; with
litert-torch there too, TFLite pairs are made as well. Written are `NAME.old.EXT` and `NAME.new.EXT`, named by how the
model was changed and how its numbers are stored:

    train_delta_pairs.py FOLDER [--only NAME...]

The task is drawn, not photographed (ten shapes in noise), so nothing is downloaded; the weights are really trained.
Everything is seeded; another machine's arithmetic may differ in the last digits, and so may a few bytes of any size.
"""

import argparse
import copy
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

SIDE = 48
CLASSES = 10
BATCH = 32
BASE_STEPS = 240
EXAMPLE = (1, 3, SIDE, SIDE)
TOLD_EVERY_S = 20.0


# The task


def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures float32 [count, 3, 48, 48] about 0 +- 1, and their classes int64 [count]."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi, (count, 1, 1)).astype(np.float32)
    size = rng.uniform(0.35, 0.8, (count, 1, 1)).astype(np.float32)
    cx, cy = rng.uniform(-0.3, 0.3, (2, count, 1, 1)).astype(np.float32)
    u = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) / size
    v = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) / size
    radius, turn = np.hypot(u, v), np.arctan2(v, u)
    square = np.maximum(abs(u), abs(v))
    shapes = [
        radius < 1,
        square < 0.8,
        (radius < 1) & (radius > 0.6),
        (square < 1) & (np.minimum(abs(u), abs(v)) < 0.25),
        (v > -0.5) & (v < 1 - 1.8 * abs(u)),
        (square < 0.9) & (np.sin(9 * u) > 0),
        (square < 0.9) & (np.sin(9 * u) * np.sin(9 * v) > 0),
        radius < 0.6 + 0.35 * np.sin(5 * turn),
        np.minimum(np.hypot(u - 0.55, v), np.hypot(u + 0.55, v)) < 0.4,
        (radius < 1) & (np.sin(12 * radius) > 0),
    ]
    label = rng.integers(0, CLASSES, count)
    shape = np.choose(label[:, None, None], shapes)[:, None]
    back, front = rng.uniform(-1, 1, (2, count, 3, 1, 1)).astype(np.float32)
    picture = np.where(shape, front, back) + rng.normal(0, 0.35, (count, 3, SIDE, SIDE)).astype(np.float32)
    return picture.astype(np.float32), label


# The model


class Block(nn.Module):
    """An inverted residual block: widen, filter each channel, narrow."""

    def __init__(self, inside: int, outside: int, stride: int, widen: int) -> None:
        super().__init__()
        wide = inside * widen
        parts = [] if widen == 1 else [*_conv(inside, wide, 1)]
        parts += [*_conv(wide, wide, 3, stride, groups=wide), nn.Conv2d(wide, outside, 1, bias=False)]
        self.body = nn.Sequential(*parts, nn.BatchNorm2d(outside))
        self.adds = stride == 1 and inside == outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def _conv(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outside), nn.ReLU6()]


class Classifier(nn.Module):
    """MobileNetV2 with ten classes: 2.24 million parameters."""

    PLAN = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    GROWN = 11  # where the changed architecture has one block more

    def __init__(self) -> None:
        super().__init__()
        body: list[nn.Module] = _conv(3, 32, 3, 2)
        inside = 32
        for widen, outside, repeats, stride in self.PLAN:
            for n in range(repeats):
                body.append(Block(inside, outside, stride if n == 0 else 1, widen))
                inside = outside
        body += _conv(inside, 1280, 1)
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(1280, CLASSES)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(picture).mean((2, 3)))

    def grown(self) -> "Classifier":
        """A copy with one more block of 64 channels: every later layer gets another name and number."""
        other = copy.deepcopy(self)
        parts = list(other.body)
        other.body = nn.Sequential(*parts[: self.GROWN], Block(64, 64, 1, 6), *parts[self.GROWN :])
        return other


# Training


@dataclass(frozen=True)
class Tuning:
    """One way to go on from a trained model."""

    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    steps: int
    seed: int
    head_only: bool = False
    statistics: bool = False  # whether batch normalisation goes on measuring


def train(net: nn.Module, tuning: Tuning) -> nn.Module:
    """Trains in place and returns the model, ready to infer."""
    rng = np.random.default_rng(tuning.seed)
    torch.manual_seed(tuning.seed)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not tuning.head_only or name.startswith("head"))
    optimizer = tuning.optimizer([parameter for parameter in net.parameters() if parameter.requires_grad])
    net.train(tuning.statistics)
    loss = torch.zeros(())
    told = time.monotonic()
    for step in range(tuning.steps):
        if time.monotonic() - told > TOLD_EVERY_S:
            told = time.monotonic()
            say(f"  {step} of {tuning.steps} steps")
        picture, label = draw(rng, BATCH)
        loss = functional.cross_entropy(net(torch.from_numpy(picture)), torch.from_numpy(label))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    say(f"  {tuning.steps} steps, last loss {loss.item():.3f}")
    return net.eval()


def trained_anew(seed: int) -> Classifier:
    torch.manual_seed(seed)
    net = Classifier()
    train(net, Tuning(lambda p: torch.optim.AdamW(p, lr=2e-3), BASE_STEPS, seed, statistics=True))
    # A second half at a lower rate lets the statistics settle, as at the end of any schedule.
    train(net, Tuning(lambda p: torch.optim.AdamW(p, lr=2e-4), BASE_STEPS // 2, seed + 1, statistics=True))
    return net


TUNINGS = {
    "head": Tuning(lambda p: torch.optim.Adam(p, lr=1e-3), 40, 11, head_only=True),
    "small": Tuning(lambda p: torch.optim.SGD(p, lr=1e-4), 20, 12),
    "medium": Tuning(lambda p: torch.optim.AdamW(p, lr=1e-5), 40, 13),
    "mediumstat": Tuning(lambda p: torch.optim.AdamW(p, lr=1e-5), 40, 14, statistics=True),
    "long": Tuning(lambda p: torch.optim.AdamW(p, lr=3e-4), 80, 15, statistics=True),
    "arch": Tuning(lambda p: torch.optim.AdamW(p, lr=1e-5), 40, 16),
}


# Files


def to_onnx(net: nn.Module, path: Path, opset: int = 17) -> None:
    torch.onnx.export(net, (torch.zeros(EXAMPLE),), str(path), dynamo=False, opset_version=opset)


def to_half_onnx(net: nn.Module, path: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    to_onnx(net, path)
    onnx.save(convert_float_to_float16(onnx.load(path)), path)


def _to_int8_onnx(net: nn.Module, path: Path, *, per_channel: bool) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            pictures, _ = draw(np.random.default_rng(99), 32)
            self.left = iter([{name: picture[None]} for picture in pictures])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain.onnx"
        to_onnx(net, plain)
        name = onnx.load(plain).graph.input[0].name
        quantize_static(plain, path, Reader(name), quant_format=QuantFormat.QDQ, per_channel=per_channel)


def to_int8_onnx(net: nn.Module, path: Path) -> None:
    _to_int8_onnx(net, path, per_channel=True)


def to_int8_tensorwise_onnx(net: nn.Module, path: Path) -> None:
    _to_int8_onnx(net, path, per_channel=False)


def _to_safetensors(net: nn.Module, path: Path, kind: torch.dtype) -> None:
    from safetensors.torch import save_file

    weights = {
        name: (value.to(kind) if value.is_floating_point() else value).contiguous()
        for name, value in net.state_dict().items()
    }
    save_file(weights, path)


def to_bf16_safetensors(net: nn.Module, path: Path) -> None:
    _to_safetensors(net, path, torch.bfloat16)


def to_fp32_safetensors(net: nn.Module, path: Path) -> None:
    _to_safetensors(net, path, torch.float32)


def to_tflite(net: nn.Module, path: Path) -> None:
    import litert_torch

    litert_torch.convert(net.eval(), (torch.zeros(EXAMPLE),)).export(str(path))


def to_int8_tflite(net: nn.Module, path: Path) -> None:
    from ai_edge_quantizer import quantizer, recipe

    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain.tflite"
        to_tflite(net, plain)
        pictures, _ = draw(np.random.default_rng(99), 8)
        work = quantizer.Quantizer(str(plain), recipe.static_wi8_ai8())
        ranges = work.calibrate({"serving_default": [{"args_0": picture[None]} for picture in pictures]})
        path.write_bytes(work.quantize(ranges).quantized_model)


Write = Callable[[nn.Module, Path], None]
FORMATS: dict[str, tuple[str, Write]] = {
    "fp32": (".onnx", to_onnx),
    "fp16": (".onnx", to_half_onnx),
    "int8": (".onnx", to_int8_onnx),
    "int8tensorwise": (".onnx", to_int8_tensorwise_onnx),
    "bf16": (".safetensors", to_bf16_safetensors),
    "fp32st": (".safetensors", to_fp32_safetensors),
    "fp32tflite": (".tflite", to_tflite),
    "int8tflite": (".tflite", to_int8_tflite),
}
PAIRS: dict[str, tuple[str, ...]] = {
    "small": ("fp32", "fp16", "int8"),
    "medium": ("fp32", "fp16", "int8", "bf16", "fp32st", "int8tensorwise", "fp32tflite", "int8tflite"),
    "long": ("fp32", "int8", "fp16", "bf16"),
    "head": ("fp32", "int8"),
    "mediumstat": ("fp32", "fp16"),
    "arch": ("fp32",),
    "scratch": ("fp32", "fp16", "bf16", "int8"),
    "reexport": ("fp32",),
}


def write_pair(folder: Path, name: str, old: nn.Module, new: nn.Module, kind: str) -> None:
    """Writes both files under names of their own first, so that nobody sees half a pair."""
    suffix, write = FORMATS[kind]
    for side, net in (("old", old), ("new", new)):
        unfinished = folder / f".{name}.{side}.part{suffix}"
        if name.startswith("reexport"):
            to_onnx(net, unfinished, opset=13 if side == "old" else 18)
        else:
            write(net, unfinished)
        unfinished.rename(folder / f"{name}.{side}{suffix}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def changed(base: Classifier, tuning: str) -> nn.Module:
    """What became of the base model."""
    if tuning == "reexport":
        return base
    if tuning == "scratch":
        return trained_anew(700)
    if tuning == "arch":
        torch.manual_seed(16)
        return train(base.grown(), TUNINGS[tuning])
    return train(copy.deepcopy(base), TUNINGS[tuning])


def make(folder: Path, only: list[str]) -> list[str]:
    """Trains and writes what is asked for.

    Returns:
        What could not be made, with the reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        tuning: [kind for kind in kinds if not only or f"{tuning}-{kind}" in only] for tuning, kinds in PAIRS.items()
    }
    wanted = {tuning: kinds for tuning, kinds in wanted.items() if kinds}
    failed: list[str] = []
    say("the base model")
    base = trained_anew(1)
    for number, (tuning, kinds) in enumerate(wanted.items(), 1):
        say(f"{tuning}, {number} of {len(wanted)}: {', '.join(kinds)}")
        net = changed(base, tuning)
        for kind in kinds:
            name = f"{tuning}-{kind}"
            try:
                write_pair(folder, name, base, net, kind)
            except Exception as error:  # a converter that is missing or fails costs its pair only
                failed.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return failed


def main(arguments: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    known = [f"{tuning}-{kind}" for tuning, kinds in PAIRS.items() for kind in kinds]
    parser.add_argument("--only", nargs="+", choices=known, default=[], metavar="NAME")
    asked = parser.parse_args(arguments)
    logging.disable(logging.WARNING)  # the quantiser's advice on graphs that these are not
    # The same numbers on any count of cores; and threads that wait for each other spin, ten times slower beside others.
    torch.set_num_threads(1)
    failed = make(asked.folder, asked.only)
    for line in failed:
        say(f"failed: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
