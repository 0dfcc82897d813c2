"""Classifiers of pictures: ResNet by transformers, VGG on plain torch.

He et al., "Deep residual learning for image recognition", CVPR 2016. Simonyan and Zisserman, "Very
deep convolutional networks for large-scale image recognition", ICLR 2015; with batch normalisation,
and one layer over the mean of each map instead of the three that hold most of VGG's numbers.

Weights are looked for in the folder that the operator names (FLOWML_WEIGHTS, with ``resnet`` as
``save_pretrained`` writes it, ``vgg/model.safetensors`` with the names of torchvision's
``features``). Nothing is fetched or unpickled. What was learnt is kept as safetensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import deep, images, language
from .base import Data, Predictor, Problem
from .frame import Frame
from .tables import Array

PACKAGES = ["pillow"]
LEAST, USUAL = 32, 224  # of a picture's side
RATE, RATE_FROM_NOTHING = 1e-4, 1e-3
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures, by colour
RESNETS: dict[int, tuple[str, list[int]]] = {
    10: ("basic", [1, 1, 1, 1]),
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
}
VGGS: dict[int, tuple[int, ...]] = {  # layers between two poolings
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
}
MAPS = (64, 128, 256, 512, 512)  # of VGG's layers


class Maker:
    """Reads the pictures once, and gives a new network each time that it is called."""

    def __init__(self, model: str, params: Mapping[str, Any], problem: Problem, data: Data) -> None:
        self.model, self.params, self.problem = model, dict(params), problem
        folder = Path(os.environ.get("FLOWML_WEIGHTS") or "/nowhere") / model
        there = (folder / "model.safetensors").is_file()
        self.folder = folder if there and params["pretrained"] else None
        if self.params["size"] is None:
            values = images.column_of(data.train)
            self.params["size"] = images.usual_side(values, USUAL, LEAST)
        if self.params["learning_rate"] is None:
            self.params["learning_rate"] = RATE if self.folder else RATE_FROM_NOTHING
        if self.folder is not None:
            self.start = f"pretrained weights ({self.folder.name})"
            self.notices = [f"It starts from {self.start}."]
        else:
            why = "there are no pretrained weights here"
            if not params["pretrained"]:
                why = "that was asked for"
            self.start = deep.RANDOM
            told = f"It starts from {self.start}: {why}."
            self.notices = [f"{told} From few pictures such a network learns little."]
        self.samples = images.samples_of(data.train, self.params["size"], problem.threads)

    def __call__(self) -> Any:
        import torch

        torch.manual_seed(self.problem.seed % 2**31)
        network = build(self.model, self.params, self.problem.n_classes, self.folder)
        return picture_network(network, self.samples, self.params, self.problem.threads)


maker = Maker


def build(model: str, params: Mapping[str, Any], classes: int, folder: Path | None = None) -> Any:
    """The network, from pretrained weights if there is a ``folder`` of them, else from nothing."""
    from torch import nn

    width, depth = float(params["width"]), int(params["depth"])
    if model == "vgg":
        network: Any = _vgg(VGGS[depth], width, float(params["dropout"]), classes)
        if folder is not None:
            _read_features(network, folder)
        return network
    from transformers import AutoModelForImageClassification, ResNetConfig

    language.be_quiet()
    if folder is not None:
        return AutoModelForImageClassification.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False,
            num_labels=classes, ignore_mismatched_sizes=True,
        ).float()  # fmt: skip
    kind, layers = RESNETS[depth]
    sizes = [max(8, round(width * size)) for size in (64, 128, 256, 512)]
    if kind == "bottleneck":
        sizes = [4 * size for size in sizes]
    config = ResNetConfig(
        embedding_size=max(8, round(64 * width)), hidden_sizes=sizes, depths=layers,
        layer_type=kind, num_labels=classes,
    )  # fmt: skip
    network = AutoModelForImageClassification.from_config(config)
    assert isinstance(network, nn.Module)
    return network


def _vgg(layers: tuple[int, ...], width: float, dropout: float, classes: int) -> Any:
    from torch import nn

    parts: list[Any] = []
    before = 3
    for count, size in zip(layers, MAPS, strict=True):
        maps = max(8, round(width * size))
        for _ in range(count):
            parts += [nn.Conv2d(before, maps, 3, padding=1), nn.BatchNorm2d(maps), nn.ReLU()]
            before = maps
        parts.append(nn.MaxPool2d(2))
    mean = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout)]
    network = nn.Sequential()
    network.add_module("features", nn.Sequential(*parts))
    network.add_module("classifier", nn.Sequential(*mean, nn.Linear(before, classes)))
    return network


def _read_features(network: Any, folder: Path) -> None:
    from safetensors.torch import load_file

    stored = load_file(folder / "model.safetensors")
    found = {name: one for name, one in stored.items() if name.startswith("features.")}
    known = {name for name in network.state_dict() if name.startswith("features.")}
    if not known <= set(found):
        raise ValueError("the pretrained weights are of another depth, or without normalisation")
    network.load_state_dict(found, strict=False)


def picture_network(network: Any, samples: Array, params: Mapping[str, Any], threads: int) -> Any:
    """A network of torch whose samples are pictures, as images.py has them."""
    import torch

    from .torch import SampleNetwork, write_weights

    side = int(params["size"])
    (*_, last) = (one for one in network.modules() if isinstance(one, torch.nn.Linear))
    network.classes = int(last.out_features)

    class PictureNetwork(SampleNetwork):
        def inputs(self, samples: Array) -> Any:
            seen = images.pixels(samples, side, threads)
            if self.network.training and params["shift"]:
                # By torch's generator, whose state is in the checkpoints.
                draw = int(torch.randint(2**31, (1,)))
                seen = images.shifted(seen, np.random.default_rng(draw))
            found = torch.from_numpy(seen).to(self.device).permute(0, 3, 1, 2).float() / 255
            mean = torch.tensor(MEAN, device=self.device)[None, :, None, None]
            spread = torch.tensor(SPREAD, device=self.device)[None, :, None, None]
            return (found - mean) / spread

        def logits(self, inputs: Any) -> torch.Tensor:
            found: Any = self.network(inputs)
            told: torch.Tensor = getattr(found, "logits", found)
            return told

        def read(self, data: Frame) -> Array:
            return images.samples_of(data, side, threads)

        def save(self, folder: Path) -> None:
            told: dict[str, Any] = {"classes": network.classes}
            if hasattr(network, "config"):
                told["config"] = network.config.to_dict()
                for name in ("_name_or_path", "id2label", "label2id"):
                    told["config"].pop(name, None)
            text = json.dumps(told, indent=1, default=str) + "\n"
            (folder / "network.json").write_text(text, encoding="utf-8")
            write_weights(self.network, folder)

    return PictureNetwork(network, samples, params, threads)


def load(folder: Path, told: Mapping[str, Any]) -> Predictor:
    """The predictor of what a network saved."""
    from .torch import SamplePredictor, read_weights

    given = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    if "config" in given:
        from transformers import AutoConfig, AutoModelForImageClassification

        language.be_quiet()
        config = dict(given["config"], num_labels=given["classes"])
        config = AutoConfig.for_model(config.pop("model_type"), **config)
        network = AutoModelForImageClassification.from_config(config)
    else:
        network = build(told["kind"], told["params"], given["classes"])
    read_weights(network, folder)
    nothing = np.empty(0, dtype=object)
    return SamplePredictor(picture_network(network, nothing, told["params"], 1))
