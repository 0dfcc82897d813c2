"""DeepFM, DCN and DLRM, on FuXiCTR's base of ranking models: its wheel has the layers, not these.

- DeepFM: Guo and others, "DeepFM: a factorization-machine based neural network for CTR
  prediction", 2017
- DCN: Wang and others, "Deep & cross network for ad click predictions", 2017
- DLRM: Naumov and others, "Deep learning recommendation model for personalization and
  recommendation systems", 2019

Numbers are the features n0, n1, ... and categories c0, c1, ...; :func:`build` makes a model of
them. Importing this takes torch and FuXiCTR: fuxictr.py does it where it learns.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

# FuXiCTR's embeddings import a function of its preprocessing, the rest of which imports Ray to read
# files in parallel. Rows come from memory here, and what forks should not have begun Ray.
if "fuxictr.preprocess" not in sys.modules:
    found = importlib.util.find_spec("fuxictr")
    assert found is not None
    assert found.origin is not None
    bare = types.ModuleType("fuxictr.preprocess")
    bare.__path__ = [str(Path(found.origin).parent / "preprocess")]
    sys.modules["fuxictr.preprocess"] = bare

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import (
    CrossNet,
    FactorizationMachine,
    FeatureEmbedding,
    InnerProductInteraction,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel

LABEL = "label"
MOST_GRADIENT = 10.0  # FuXiCTR's own


class Rank(BaseModel):
    """What the three have in common: how FuXiCTR's base is made, and made ready to learn."""

    def __init__(self, features: FeatureMap, params: Mapping[str, Any]) -> None:
        super().__init__(
            features,
            model_id=type(self).__name__,
            task="binary_classification",
            gpu=-1,
            embedding_regularizer=float(params["embedding_regularizer"]),
            net_regularizer=float(params["net_regularizer"]),
            verbose=0,
            model_root="",
            metrics=["logloss"],
        )
        self._max_gradient_norm = MOST_GRADIENT

    def ready(self, rate: float) -> None:
        self.compile("adam", "binary_crossentropy", rate)
        self.reset_parameters()
        self.model_to_device()


def layers(width: int, units: Sequence[int], params: Mapping[str, Any], out: int | None) -> Any:
    return MLP_Block(
        input_dim=width,
        hidden_units=list(units),
        hidden_activations="ReLU",
        output_dim=out,
        dropout_rates=float(params["dropout"]),
        batch_norm=bool(params["batch_norm"]),
    )


class DeepFM(Rank):
    def __init__(self, features: FeatureMap, params: Mapping[str, Any]) -> None:
        super().__init__(features, params)
        size = params["embedding_dim"]
        self.embedding_layer = FeatureEmbedding(features, size)
        self.fm = FactorizationMachine(features)
        self.mlp = layers(features.num_fields * size, params["hidden_units"], params, 1)

    def forward(self, inputs: Any) -> dict[str, torch.Tensor]:
        values = self.get_inputs(inputs)
        embedded = self.embedding_layer(values)
        found = self.fm(values, embedded) + self.mlp(embedded.flatten(start_dim=1))
        return {"y_pred": self.output_activation(found)}


class DCN(Rank):
    def __init__(self, features: FeatureMap, params: Mapping[str, Any]) -> None:
        super().__init__(features, params)
        width = features.num_fields * params["embedding_dim"]
        self.embedding_layer = FeatureEmbedding(features, params["embedding_dim"])
        self.cross = CrossNet(width, params["cross_layers"])
        self.mlp = layers(width, params["hidden_units"], params, None)
        self.head = nn.Linear(width + params["hidden_units"][-1], 1)

    def forward(self, inputs: Any) -> dict[str, torch.Tensor]:
        embedded = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        both = torch.cat([self.cross(embedded), self.mlp(embedded)], dim=-1)
        return {"y_pred": self.output_activation(self.head(both))}


class DLRM(Rank):
    """Numbers go through layers of their own, and then count as one more category."""

    def __init__(self, features: FeatureMap, params: Mapping[str, Any]) -> None:
        super().__init__(features, params)
        size = params["embedding_dim"]
        kinds = features.features
        self.numbers = [name for name in kinds if kinds[name]["type"] == "numeric"]
        self.fields = len(kinds) - len(self.numbers) + bool(self.numbers)
        if len(kinds) > len(self.numbers):
            self.embedding_layer = FeatureEmbedding(
                features, size, not_required_feature_columns=self.numbers
            )
        width = self.fields * (self.fields - 1) // 2
        if self.numbers:
            self.bottom = layers(len(self.numbers), params["bottom_units"], params, size)
            width += size
        if self.fields > 1:
            self.interact = InnerProductInteraction(self.fields, output="inner_product")
        # A category alone has nothing to meet, and is taken as it is.
        self.mlp = layers(width or size, params["hidden_units"], params, 1)

    def forward(self, inputs: Any) -> dict[str, torch.Tensor]:
        values = self.get_inputs(inputs)
        parts, seen = [], []
        if self.numbers:
            dense = torch.cat([values[name].float().view(-1, 1) for name in self.numbers], dim=1)
            dense = torch.relu(self.bottom(dense))
            seen.append(dense.unsqueeze(1))
            parts.append(dense)
        if len(values) > len(self.numbers):
            seen.append(self.embedding_layer(values))
        if self.fields > 1:
            parts.insert(0, self.interact(torch.cat(seen, dim=1)))
        elif not parts:
            parts.append(seen[0].flatten(start_dim=1))
        return {"y_pred": self.output_activation(self.mlp(torch.cat(parts, dim=-1)))}


KINDS = {"deepfm": DeepFM, "dcn": DCN, "dlrm": DLRM}


def build(kind: str, width: int, levels: Sequence[int], params: Mapping[str, Any]) -> Rank:
    """A model of ``width`` numbers and categories of so many levels each, the unknown included."""
    features = FeatureMap("rows", "")
    features.features = OrderedDict(
        [(f"n{place}", {"type": "numeric"}) for place in range(width)]
        + [
            (f"c{place}", {"type": "categorical", "vocab_size": count, "padding_idx": 0})
            for place, count in enumerate(levels)
        ]
    )
    features.labels = [LABEL]
    features.num_fields = features.get_num_fields()
    model = KINDS[kind](features, params)
    model.ready(float(params["learning_rate"]))
    return model


def inputs(width: int, samples: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model takes of rows x (numbers, then codes), by feature."""
    columns = samples.unbind(dim=1)
    return {
        (f"n{place}" if place < width else f"c{place - width}"): column
        for place, column in enumerate(columns)
    }
