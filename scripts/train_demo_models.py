"""Trains the demo's pest detectors on drawn leaves: 1.1.0, which fine-tunes the released 1.0.0, and 1.0.0 if asked.

Run it through `scripts/train-demo-models`, which makes a throw-away environment with torch and litert-torch. Neither
the demo nor the tests need one: the outcome is committed under `scripts/demo_models`. Written there are, for each
version, an ONNX file (float32), a TFLite file (int8, for LiteRT) and `metrics.json`, measured on held-out pictures
that no training saw. `scripts/make_demo_goldens.py` then lets the product's own runtimes say what their outputs are.

1.1.0 is made as people do it who have a model in the field and a season of new pictures: the released file is loaded,
its first layers stay as they are, the others go on learning at a low rate. So most of the file stays as it was.

Everything is seeded and runs on one core; another machine's arithmetic may still differ in the last digits, so a
second training gives equally good files and not the same ones.
"""

import argparse
import io
import json
import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from PIL import Image
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
from draw_leaves import LABELS, Box, draw_scene

SIDE = 128  # pixels of the model's square input
CELLS = 16
BATCH = 32
MEAN, STD = 0.5, 0.25
HELD_OUT_SEED = 900_000  # far from every training seed
HELD_OUT = 400

Batch = tuple[torch.Tensor, torch.Tensor]


class PestNet(nn.Module):
    """A small grid detector: 16 x 16 cells, each with objectness, offsets, log sizes and a logit for each class.

    Wide at an eighth and narrow at a sixteenth of the input, where most weights cost least; its float32 file is a
    little larger than one transfer segment, so that the demo shows a resumed download.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 24, 2), _conv(24, 48, 2), _conv(48, 64, 2), _conv(64, 64, 1))
        self.deep = nn.Sequential(_conv(64, 96, 2), _conv(96, 96, 1), _conv(96, 52, 1))
        self.join = nn.Sequential(_conv(64 + 52, 48, 1, kernel=1), _conv(48, 48, 1))
        self.head = nn.Conv2d(48, 5 + len(LABELS), 1)
        nn.init.constant_(self.head.bias[:1], -4.0)  # most cells are empty: start there

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        near = self.stem(image)
        far = functional.interpolate(self.deep(near), scale_factor=2.0, mode="nearest")
        return self.head(self.join(torch.cat([near, far], dim=1)))


def _conv(inside: int, outside: int, stride: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


# Pictures


@dataclass(frozen=True)
class Pictures:
    """Pictures as the model sees them, with boxes in its pixels."""

    images: np.ndarray  # uint8 [N, 128, 128, 3]
    boxes: list[list[Box]]


def draw_one(seed: int, height: int) -> tuple[np.ndarray, list[Box]]:
    """A picture through a camera's JPEG, shrunk to the model's input."""
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, width=height * 4 // 3, height=height)
    jpeg = io.BytesIO()
    scene.image.save(jpeg, "JPEG", quality=int(rng.integers(70, 95)))
    image = Image.open(jpeg).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    fx, fy = SIDE / scene.image.width, SIDE / scene.image.height
    return np.asarray(image), [Box(b.label, b.x0 * fx, b.y0 * fy, b.x1 * fx, b.y1 * fy) for b in scene.boxes]


def draw_many(first_seed: int, count: int, height: int = 240) -> Pictures:
    with ProcessPoolExecutor() as pool:
        drawn = list(pool.map(draw_one, range(first_seed, first_seed + count), [height] * count, chunksize=32))
    return Pictures(np.stack([image for image, _ in drawn]), [boxes for _, boxes in drawn])


def tensor_of(images: np.ndarray) -> torch.Tensor:
    """float32 [N, 3, 128, 128], as the release's preprocessing makes it."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0 - MEAN) / STD


def targets_of(boxes: list[list[Box]]) -> torch.Tensor:
    """float32 [N, 6, 16, 16]: objectness, offset x and y, log width and height in cells, class."""
    target = torch.zeros(len(boxes), 6, CELLS, CELLS)
    cell = SIDE / CELLS
    for n, there in enumerate(boxes):
        for box in there:
            x, y = (box.x0 + box.x1) / 2 / cell, (box.y0 + box.y1) / 2 / cell
            i, j = min(int(y), CELLS - 1), min(int(x), CELLS - 1)
            width, height = np.log((box.x1 - box.x0) / cell), np.log((box.y1 - box.y0) / cell)
            target[n, :, i, j] = torch.tensor([1.0, x - j, y - i, width, height, float(LABELS.index(box.label))])
    return target


# Training


def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    there = target[:, 0] > 0
    object_loss = functional.binary_cross_entropy_with_logits(output[:, 0], target[:, 0], reduction="none")
    sure = torch.sigmoid(output[:, 0].detach())
    focus = torch.where(there, 4.0, sure**2)  # empty cells count as far as they are mistaken for a pest
    found = output.permute(0, 2, 3, 1)[there]
    wanted = target.permute(0, 2, 3, 1)[there]
    offsets = functional.smooth_l1_loss(torch.sigmoid(found[:, 1:3]), wanted[:, 1:3], beta=0.1, reduction="sum")
    sizes = functional.smooth_l1_loss(found[:, 3:5], wanted[:, 3:5], beta=0.1, reduction="sum")
    classes = functional.cross_entropy(found[:, 5:], wanted[:, 5].long(), label_smoothing=0.05, reduction="sum")
    return ((object_loss * focus).sum() + 2.0 * (offsets + sizes) + classes) / max(1, int(there.sum()))


def train(net: PestNet, pictures: Pictures, *, epochs: int, rate: float, seed: int, say: Callable[[str], None]) -> None:
    """All of the net; each picture is seen as it is or in a mirror."""
    images, targets = pictures.images, targets_of(pictures.boxes)
    mirrored = targets_of(
        [[Box(b.label, SIDE - b.x1, b.y0, SIDE - b.x0, b.y1) for b in there] for there in pictures.boxes]
    )
    rng = np.random.default_rng(seed)

    def loss(chosen: np.ndarray) -> torch.Tensor:
        flip = bool(rng.random() < 0.5)
        pixels = images[chosen][:, :, ::-1].copy() if flip else images[chosen]
        return loss_of(net(tensor_of(pixels)), (mirrored if flip else targets)[chosen])

    net.train()
    descend(loss, list(net.parameters()), len(images), epochs=epochs, rate=rate, decay=1e-3, rng=rng, say=say)
    net.eval()


def fine_tune(
    net: PestNet, pictures: Pictures, *, epochs: int, rate: float, seed: int, say: Callable[[str], None]
) -> None:
    """The last layers of a released net. What sees edges and textures stays bit for bit, so it looks but once."""
    net.eval()
    first, last = net.deep[:-1], net.deep[-1:]
    with torch.no_grad():
        batches = [tensor_of(pictures.images[at : at + BATCH]) for at in range(0, len(pictures.images), BATCH)]
        near = torch.cat([net.stem(batch) for batch in batches])
        middle = torch.cat([first(batch) for batch in near.split(BATCH)])
    targets = targets_of(pictures.boxes)

    def loss(chosen: np.ndarray) -> torch.Tensor:
        far = functional.interpolate(last(middle[chosen]), scale_factor=2.0, mode="nearest")
        return loss_of(net.head(net.join(torch.cat([near[chosen], far], dim=1))), targets[chosen])

    weights = [*last.parameters(), *net.join.parameters(), *net.head.parameters()]
    rng = np.random.default_rng(seed)
    descend(loss, weights, len(near), epochs=epochs, rate=rate, decay=0.0, rng=rng, say=say)


def descend(
    loss: Callable[[np.ndarray], torch.Tensor],
    weights: list[nn.Parameter],
    count: int,
    *,
    epochs: int,
    rate: float,
    decay: float,
    rng: np.random.Generator,
    say: Callable[[str], None],
) -> None:
    """Goes down the loss of random batches out of `count` pictures."""
    adam = torch.optim.AdamW(weights, lr=rate, weight_decay=decay)
    steps = epochs * (count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=rate, total_steps=steps, pct_start=0.15)
    for epoch in range(epochs):
        total, start = 0.0, time.monotonic()
        order = rng.permutation(count)[: count // BATCH * BATCH].reshape(-1, BATCH)
        for chosen in order:
            now = loss(chosen)
            adam.zero_grad()
            now.backward()
            adam.step()
            schedule.step()
            total += float(now.detach())
        say(f"epoch {epoch + 1}/{epochs}: loss {total / len(order):.3f} ({time.monotonic() - start:.0f} s)")


def released(path: Path) -> PestNet:
    """The net of a released ONNX file. Normalisation is folded into its convolutions there: it stays neutral here."""
    graph = onnx.load(str(path)).graph
    weights = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    *convolutions, head = [node.input[1:3] for node in graph.node if node.op_type == "Conv"]
    net = PestNet()
    with torch.no_grad():
        for (conv, norm, _), (weight, bias) in zip([*net.stem, *net.deep, *net.join], convolutions, strict=True):
            conv.weight.copy_(weights[weight])
            norm.bias.copy_(weights[bias])
            norm.running_var.fill_(1 - norm.eps)
        net.head.weight.copy_(weights[head[0]])
        net.head.bias.copy_(weights[head[1]])
    return net.eval()


# Measuring


def decode(output: np.ndarray, threshold: float) -> list[tuple[float, int, np.ndarray]]:
    """Boxes of one picture `[8, 16, 16]` after suppression by class: (score, class, [x0, y0, x1, y1])."""
    cell = SIDE / CELLS
    objects = 1 / (1 + np.exp(-output[0]))
    classes = np.exp(output[5:] - output[5:].max(axis=0))
    classes /= classes.sum(axis=0)
    scores = objects * classes.max(axis=0)
    found = []
    for i, j in np.argwhere(scores >= threshold):
        x, y = (j + 1 / (1 + np.exp(-output[1, i, j]))) * cell, (i + 1 / (1 + np.exp(-output[2, i, j]))) * cell
        w, h = np.exp(output[3:5, i, j]) * cell
        box = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        found.append((float(scores[i, j]), int(classes[:, i, j].argmax()), box))
    kept: list[tuple[float, int, np.ndarray]] = []
    for one in sorted(found, key=lambda item: -item[0]):
        if all(other[1] != one[1] or iou(other[2], one[2]) < 0.5 for other in kept):
            kept.append(one)
    return kept


def iou(one: np.ndarray, other: np.ndarray) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return float(shared / (areas - shared))


def measure(infer: Callable[[np.ndarray], np.ndarray], pictures: Pictures) -> dict[str, float]:
    """Mean average precision at IoU 0.5; precision and recall at score 0.5; false alarms on healthy leaves.

    Args:
        infer: `uint8 [128, 128, 3]` to `float32 [8, 16, 16]`.
        pictures: Not seen in training.
    """
    hits: list[list[tuple[float, bool]]] = [[] for _ in LABELS]
    truths = np.zeros(len(LABELS))
    alarmed = healthy = 0
    for image, boxes in zip(pictures.images, pictures.boxes, strict=True):
        found = decode(infer(image), 0.05)
        healthy += not boxes
        alarmed += not boxes and any(score >= 0.5 for score, _, _ in found)
        left = [(LABELS.index(b.label), np.array([b.x0, b.y0, b.x1, b.y1])) for b in boxes]
        for label, _ in left:
            truths[label] += 1
        for score, label, box in found:
            match = [k for k, (other, there) in enumerate(left) if other == label and iou(box, there) >= 0.5]
            hits[label].append((score, bool(match)))
            if match:
                left.pop(max(match, key=lambda k: iou(box, left[k][1])))
    precisions = [_average_precision(scored, count) for scored, count in zip(hits, truths, strict=True)]
    sure = [hit for scored in hits for score, hit in scored if score >= 0.5]
    figures = {
        "map50": float(np.mean(precisions)),
        "precision": sum(sure) / max(1, len(sure)),
        "recall": sum(sure) / float(truths.sum()),
        "false_alarms_on_healthy": alarmed / max(1, healthy),
    }
    figures |= {f"ap50_{label}": value for label, value in zip(LABELS, precisions, strict=True)}
    return {name: round(float(value), 4) for name, value in figures.items()}


def _average_precision(scored: list[tuple[float, bool]], count: float) -> float:
    order = sorted(scored, key=lambda item: -item[0])
    right = np.cumsum([hit for _, hit in order])
    precision = right / np.arange(1, len(order) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(sum(best_from_here[k] for k, (_, hit) in enumerate(order) if hit) / count)


# Export


def export_onnx(net: PestNet, path: Path) -> None:
    sample = torch.zeros(1, 3, SIDE, SIDE)
    torch.onnx.export(
        net, (sample,), str(path), dynamo=False, input_names=["image"], output_names=["grid"], opset_version=17
    )


def export_tflite(net: PestNet, path: Path, calibration: np.ndarray) -> None:
    """int8 in and out, channels last.

    The quantizer's own calibration over many samples averages the extremes, which clips the logits; so each sample is
    calibrated by itself and the extremes are merged.
    """
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    last = litert_torch.to_channel_last_io(net, args=[0], outputs=[0])
    plain = path.with_suffix(".f32.tflite")
    litert_torch.convert(last, (torch.zeros(1, SIDE, SIDE, 3),)).export(str(plain))
    merged: dict[str, Any] = {}
    for image in calibration:
        sample = tensor_of(image[None]).permute(0, 2, 3, 1).contiguous().numpy()
        once = quantizer.Quantizer(str(plain), recipe.static_wi8_ai8())
        for name, extremes in once.calibrate({"serving_default": [{"args_0": sample}]}).items():
            if name in merged:
                merged[name]["min"] = np.minimum(merged[name]["min"], extremes["min"])
                merged[name]["max"] = np.maximum(merged[name]["max"], extremes["max"])
            else:
                merged[name] = dict(extremes)
    quantised = bytes(quantizer.Quantizer(str(plain), recipe.static_wi8_ai8()).quantize(merged).quantized_model)
    plain.unlink()
    for old, new in (("serving_default_args_0", "image"), ("serving_default_output_0_output", "grid")):
        quantised = rename_tensor(quantised, old, new)
    path.write_bytes(quantised)


def rename_tensor(model: bytes, old: str, new: str) -> bytes:
    """Gives a tensor of a TFLite file the name that it has in the ONNX file: a task reads one name in all variants.

    A flatbuffer's string is its length and its bytes, so a shorter one fits in the place of a longer one; the file is
    not packed anew, which would lose the alignment of the weights.
    """
    place = len(old).to_bytes(4, "little") + old.encode() + b"\0"
    if model.count(place) != 1 or len(new) > len(old):
        raise ValueError(f"{old!r} cannot become {new!r}: it is there {model.count(place)} times")
    return model.replace(place, (len(new).to_bytes(4, "little") + new.encode()).ljust(len(place), b"\0"))


def int8_inference(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    into, out = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def infer(image: np.ndarray) -> np.ndarray:
        real = (image[None].astype(np.float32) / 255.0 - MEAN) / STD
        scale, zero = into["quantization"]
        interpreter.set_tensor(into["index"], np.clip(np.round(real / scale) + zero, -128, 127).astype(np.int8))
        interpreter.invoke()
        scale, zero = out["quantization"]
        return ((interpreter.get_tensor(out["index"])[0].astype(np.float32) - zero) * scale).transpose(2, 0, 1)

    return infer


def publish(
    net: PestNet,
    version: str,
    folder: Path,
    *,
    held_out: Pictures,
    calibration: np.ndarray,
    trained: dict[str, Any],
) -> None:
    folder = folder / version
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(net, folder / "pest-detector.onnx")
    export_tflite(net, folder / "pest-detector-int8.tflite", calibration)

    def infer(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(tensor_of(image[None]))[0].numpy()

    metrics = {
        "float32": measure(infer, held_out),
        "int8": measure(int8_inference(folder / "pest-detector-int8.tflite"), held_out),
        "training": trained | {"parameters": sum(p.numel() for p in net.parameters())},
        "held_out": {
            "pictures": len(held_out.boxes),
            "first_seed": HELD_OUT_SEED,
            "boxes": sum(map(len, held_out.boxes)),
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    logging.info("%s: float32 %s", version, metrics["float32"])
    logging.info("%s: int8 %s", version, metrics["int8"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "demo_models")
    parser.add_argument(
        "--first", type=int, nargs=2, metavar=("PICTURES", "EPOCHS"), help="train 1.0.0 anew too: 1200 14"
    )
    parser.add_argument("--more", type=int, nargs=2, metavar=("PICTURES", "EPOCHS"), default=(6000, 12))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(7)
    torch.set_num_threads(1)  # sums in one order
    held_out = draw_many(HELD_OUT_SEED, HELD_OUT, height=480)

    if options.first:
        count, epochs = options.first
        pictures = draw_many(0, count)
        net = PestNet()
        train(net, pictures, epochs=epochs, rate=3e-3, seed=1, say=logging.info)
        trained: dict[str, Any] = {"pictures": count, "epochs": epochs}
        publish(net, "1.0.0", options.out, held_out=held_out, calibration=pictures.images[:64], trained=trained)

    count, epochs = options.more
    pictures = draw_many(0, count)  # those of 1.0.0, and new ones
    net = released(options.out / "1.0.0" / "pest-detector.onnx")
    fine_tune(net, pictures, epochs=epochs, rate=2.5e-3, seed=2, say=logging.info)
    trained = {"pictures": count, "epochs": epochs, "continues": "1.0.0"}
    publish(net, "1.1.0", options.out, held_out=held_out, calibration=pictures.images[:64], trained=trained)


if __name__ == "__main__":
    main()
