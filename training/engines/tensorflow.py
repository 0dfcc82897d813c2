"""TensorFlow: networks on tables, and on pictures by keras.applications.

What surrounds the passes over the rows is in networks.py for tables, in deep.py for pictures. A
fitted network on a table is plain arrays, and numpy predicts with them; one of pictures is arrays,
too, but takes TensorFlow to compute with.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoints, deep, images, named
from .base import Candidate, Data, Predictions, Predictor, Problem, Run
from .frame import Frame
from .networks import Framework, NetworkEngine, Plan, Table, Weights, folded, softmax
from .tables import Array

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

MOMENTUM, EPSILON = 0.9, 1e-5  # of batch normalisations in tables' networks
CLIP = 5.0  # the longest step's gradient
BETAS = 0.9, 0.999  # Adam's


class TensorFlow(NetworkEngine):
    """The declaration; one adapter for CPUs and GPUs."""

    name = "tensorflow"
    title = "TensorFlow"
    devices = frozenset({"cpu", "gpu"})
    imports = (
        "tensorflow",
        "keras",
        "sklearn.dummy",
        "sklearn.metrics",
        "pyarrow.csv",
        "pyarrow.parquet",
        "PIL.Image",
        "PIL.ImageOps",
        "training.engines.race",
    )
    modules = (
        "matrix", "folding", "estimators", "named", "blend", "checkpoints", "networks", "deep",
        "images", "tensorflow",
    )  # fmt: skip

    def make(self, plan: Plan) -> Framework:
        """A new network. One of this process with the same plan is used up: see begin_anew."""
        if self._latest is None or self._latest.plan != plan:
            self._latest = TableNetwork(plan)
        self._latest.begin_anew()
        return self._latest

    _latest: TableNetwork | None = None

    def train(self, problem: Problem, data: Data, run: Run) -> Iterator[Candidate]:
        if named.reads(problem.model) != "image":
            yield from super().train(problem, data, run)
            return

        def make(params: Mapping[str, Any], rows: Data) -> deep.Make:
            return Maker(problem.model, params, problem, rows)

        yield from deep.train(self.name, problem, data, run, make, packages())

    def load(self, folder: Path) -> Predictor:
        told = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        return load(folder, told) if told.get("kind") in BASES else super().load(folder)

    def final(self, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
        return recipe if recipe.get("model") in BASES else super().final(recipe)

    def fit(self, recipe: Mapping[str, Any], problem: Problem, data: Data, folder: Path) -> None:
        if recipe.get("model") in BASES:
            make = Maker(recipe["model"], recipe["params"], problem, data)
            deep.refit(recipe, problem, data, folder, make)
        else:
            super().fit(recipe, problem, data, folder)


ENGINE = TensorFlow()


def begin(threads: int) -> None:
    """Say how many threads it may use: possible only before the first computation."""
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    with contextlib.suppress(RuntimeError, ValueError):
        for gpu in tf.config.list_physical_devices("GPU"):  # not all of its memory at once
            tf.config.experimental.set_memory_growth(gpu, True)


def packages() -> list[str]:
    """What an artifact of pictures needs: TensorFlow is called otherwise where it has a GPU."""
    from importlib import metadata

    there = {str(one.metadata["Name"]).lower() for one in metadata.distributions()}
    build = "tensorflow" if "tensorflow" in there else "tensorflow-cpu"
    return ["numpy", "pyarrow", "pillow", build]


class AdamW:
    """Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.

    Adam's part is TensorFlow's own kernel. Keras's optimizers do a dozen operations instead for
    each variable, and to trace those takes most of the time that a small network has to learn.
    """

    def __init__(self, variables: Sequence[Any], weight_decay: float) -> None:
        import tensorflow as tf

        self.variables, self.weight_decay = variables, weight_decay
        self.step = tf.Variable(0, dtype=tf.int64)
        self.moments = [
            (
                tf.Variable(np.zeros(one.shape, np.float32)),
                tf.Variable(np.zeros(one.shape, np.float32)),
            )
            for one in variables
        ]
        self.memory: dict[str, Any] = {"step": self.step}
        for place, (moment, square) in enumerate(self.moments):
            self.memory |= {f"moment.{place}": moment, f"square.{place}": square}

    def apply(self, gradients: Sequence[Any], rate: Any) -> None:
        import tensorflow as tf

        step = tf.cast(self.step.assign_add(1), tf.float32)
        powers = [tf.pow(beta, step) for beta in BETAS]
        decay = rate * self.weight_decay
        gradients, _ = tf.clip_by_global_norm(gradients, CLIP)
        for variable, (moment, square), gradient in zip(
            self.variables, self.moments, gradients, strict=True
        ):
            variable.assign_sub(decay * variable)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle, m=moment.handle, v=square.handle,
                beta1_power=powers[0], beta2_power=powers[1], lr=rate,
                beta1=BETAS[0], beta2=BETAS[1], epsilon=1e-8, grad=gradient,
            )  # fmt: skip

    def forget(self) -> None:
        for one in self.memory.values():
            one.assign(np.zeros(one.shape, one.dtype.as_numpy_dtype))


# Tables


class TableNetwork(Framework):
    """The twin of torch.py's: embeddings, layers with batch normalisation and dropout, AdamW.

    A step is few operations, and all that is learnt one flat variable: each candidate has a process
    of its own and traces them anew.
    """

    def __init__(self, plan: Plan) -> None:
        import tensorflow as tf

        begin(plan.threads)
        # Half of the time of a first step, for graphs that have little to optimize.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        self.plan = plan
        random = np.random.default_rng(plan.seed)
        first: list[Array] = [
            random.normal(0, 1, shape) for shape in zip(plan.levels, plan.dimensions, strict=True)
        ]
        width = plan.width + sum(plan.dimensions)
        for size in (*plan.layers, plan.outputs):
            bound = 1 / np.sqrt(max(1, width))
            first.append(random.uniform(-bound, bound, (width, size)))
            first.append(random.uniform(-bound, bound, size))
            width = size
        for size in plan.layers:
            first += [np.ones(size), np.zeros(size)]
        self.shapes = [one.shape for one in first]
        flat = np.concatenate([one.ravel() for one in first]).astype(np.float32)
        self.learnt = tf.Variable(flat)
        self.optimizer = AdamW([self.learnt], plan.weight_decay)
        # By layer of the batch normalisations: mean and variance of what comes in.
        self.usual = [
            (tf.Variable(np.zeros(size, np.float32)), tf.Variable(np.ones(size, np.float32)))
            for size in plan.layers
        ]
        self._first = flat
        self.state_of = {"learnt": self.learnt, **self.optimizer.memory}
        for place, (mean, variance) in enumerate(self.usual):
            self.state_of |= {f"mean.{place}": mean, f"variance.{place}": variance}
        self._pass = tf.function(
            self._all_steps,
            input_signature=[
                tf.TensorSpec([None, plan.width], tf.float32),
                tf.TensorSpec([None, len(plan.levels)], tf.int64),
                tf.TensorSpec([None], tf.int64 if plan.classifies else tf.float32),
                tf.TensorSpec([None], tf.int64),
                tf.TensorSpec([], tf.float32),
            ],
            autograph=False,
        )

    def begin_anew(self) -> None:
        """Forget all but what was traced, which is the same for each fold of a bag."""
        self.optimizer.forget()
        for mean, variance in self.usual:
            mean.assign(np.zeros(mean.shape, np.float32))
            variance.assign(np.ones(mean.shape, np.float32))
        self.learnt.assign(self._first)

    def epoch(self, table: Table, goal: Array, order: Array, rate: float) -> float:
        goals = goal.astype(np.int64 if self.plan.classifies else np.float32)
        total = self._pass(
            table.numbers, table.codes, goals, order.astype(np.int64), np.float32(rate)
        )
        return float(total) / len(order)

    def _all_steps(self, numbers: Any, codes: Any, goal: Any, order: Any, rate: Any) -> Any:
        """The loss of all rows together. One call for all steps: each would cost milliseconds."""
        import tensorflow as tf

        count, batch = tf.size(order), self.plan.batch

        def one(start: Any, total: Any) -> tuple[Any, Any]:
            rows = order[start : start + batch]
            numbers_, codes_, goal_ = (tf.gather(what, rows) for what in (numbers, codes, goal))
            loss = self._one_step(numbers_, codes_, goal_, rate)
            return start + batch, total + loss * tf.cast(tf.size(rows), tf.float32)

        # A last batch of one row is left out: a batch normalisation needs two.
        _, total = tf.while_loop(
            lambda start, _: start < count - 1, one, (0, 0.0), parallel_iterations=1
        )
        return total

    def _one_step(self, numbers: Any, codes: Any, goal: Any, rate: Any) -> Any:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            found = self._forward(numbers, codes)
            if self.plan.classifies:
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=goal, logits=found)
            else:
                losses = tf.square(found[:, 0] - goal)
            loss = tf.reduce_mean(losses)
        self.optimizer.apply(tape.gradient(loss, [self.learnt]), rate)
        return loss

    def _forward(self, numbers: Any, codes: Any) -> Any:
        import tensorflow as tf

        sizes = [int(np.prod(shape)) for shape in self.shapes]
        pieces = tf.split(self.learnt, sizes)
        pieces = [tf.reshape(one, shape) for one, shape in zip(pieces, self.shapes, strict=True)]
        embeddings, layers, norms = self._sorted(pieces)
        columns = tf.unstack(codes, axis=1)
        embedded = [tf.gather(*both) for both in zip(embeddings, columns, strict=True)]
        values = tf.concat([numbers, *embedded], axis=1)
        for number, (weight, bias) in enumerate(layers):
            values = tf.nn.bias_add(tf.matmul(values, weight), bias)
            if number == len(norms):
                break
            (scale, shift), (mean, variance) = norms[number], self.usual[number]
            # One operation for it all, the usual mean and variance with it; made for pictures.
            values, now, spread, *_ = tf.raw_ops.FusedBatchNormV3(
                x=tf.reshape(values, [-1, 1, 1, values.shape[1]]), scale=scale, offset=shift,
                mean=mean, variance=variance, epsilon=EPSILON, exponential_avg_factor=1 - MOMENTUM,
            )  # fmt: skip
            mean.assign(now)
            variance.assign(spread)
            values = tf.nn.relu(tf.reshape(values, [-1, values.shape[3]]))
            if self.plan.dropout:
                # By the step, not by a generator of its own: resuming draws the same.
                seed = tf.stack(
                    [self.optimizer.step, tf.constant(self.plan.seed + number, tf.int64)]
                )
                values = tf.nn.experimental.stateless_dropout(values, self.plan.dropout, seed=seed)
        return values

    def _sorted(self, pieces: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Embeddings, then by layer weight and bias, then scale and shift of what follows it."""
        start = len(self.plan.levels)
        middle = start + 2 * len(self.plan.layers) + 2
        layers, norms = pieces[start:middle], pieces[middle:]
        return (
            pieces[:start],
            list(zip(layers[::2], layers[1::2], strict=True)),
            list(zip(norms[::2], norms[1::2], strict=True)),
        )

    def weights(self) -> Weights:
        flat = self.learnt.numpy().astype(np.float64)
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
        pieces = [
            piece.reshape(shape).copy()
            for piece, shape in zip(np.split(flat, ends), self.shapes, strict=True)
        ]
        embeddings, layers, norms = self._sorted(pieces)
        found: Weights = {f"embedding-{place}": one for place, one in enumerate(embeddings)}
        for number, (weight, bias) in enumerate(layers):
            if number < len(norms):
                mean, variance = (one.numpy().astype(np.float64) for one in self.usual[number])
                scale = norms[number][0] / np.sqrt(variance + EPSILON)
                shift = norms[number][1] - mean * scale
                weight, bias = folded(weight, bias, scale, shift)  # noqa: PLW2901
            found[f"weight-{number}"], found[f"bias-{number}"] = weight, bias
        return found

    def state(self) -> dict[str, Array]:
        return {name: np.array(one.numpy()) for name, one in self.state_of.items()}

    def restore(self, state: Mapping[str, Array]) -> None:
        put(state, self.state_of)


def put(arrays: Mapping[str, Array], variables: Mapping[str, Any]) -> None:
    """Give variables these values. Raises ValueError where names or shapes differ."""
    if set(arrays) != set(variables):
        raise ValueError("it is of another network")
    for name, one in variables.items():
        if tuple(one.shape) != arrays[name].shape:
            raise ValueError("it is of another network")
    for name, one in variables.items():
        one.assign(arrays[name].astype(getattr(one.dtype, "name", one.dtype)))


# Pictures

# By model: what keras.applications calls it, and the least and the usual side of a picture.
BASES = {
    "mobilenet": ("MobileNet", 32, 224),
    "inception": ("InceptionV3", 75, 299),
}
RATE, RATE_FROM_NOTHING = 1e-4, 3e-3
WEIGHTS = "weights.npz"
PREDICTED = 64  # pictures at a time


def weights_for(model: str, width: float) -> Path | None:
    """The file of pretrained weights, as Keras calls it, if the operator has it at hand.

    In ``FLOWML_WEIGHTS``/<model>/, or where Keras keeps what it has fetched.
    """
    if model == "mobilenet":
        shares = {0.25: "2_5", 0.5: "5_0", 0.75: "7_5", 1.0: "1_0"}
        file = f"mobilenet_{shares[width]}_224_tf_no_top.h5"
    else:
        file = "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"
    given = os.environ.get("FLOWML_WEIGHTS")
    places = [Path(given) / model] if given else []
    places.append(Path.home() / ".keras" / "models")
    return next((place / file for place in places if (place / file).is_file()), None)


class Maker:
    """Reads the pictures once, and gives a new network each time that it is called."""

    def __init__(self, model: str, params: Mapping[str, Any], problem: Problem, data: Data) -> None:
        self.model, self.params, self.problem = model, dict(params), problem
        _, least, most = BASES[model]
        values = images.column_of(data.train)
        if self.params.get("size") is None:
            self.params["size"] = images.usual_side(values, most, least)
        self.params["size"] = max(least, int(self.params["size"]))
        width = float(self.params.get("width") or 1.0)
        self.file = weights_for(model, width) if self.params["pretrained"] else None
        if self.params["learning_rate"] is None:
            self.params["learning_rate"] = RATE if self.file else RATE_FROM_NOTHING
        if self.file is not None:
            self.start = f"pretrained weights ({self.file.name})"
            self.notices = [f"It starts from {self.start}."]
        else:
            why = (
                "there are no pretrained weights here"
                if self.params["pretrained"]
                else "that was asked for"
            )
            self.start = deep.RANDOM
            told = f"It starts from {self.start}: {why}."
            self.notices = [f"{told} From few pictures such a network learns little."]
        self.samples = images.samples_of(data.train, self.params["size"], problem.threads)

    def __call__(self) -> PictureNetwork:
        shape = {name: self.params.get(name) for name in ("size", "width", "dropout")}
        shape |= {"classes": self.problem.n_classes, "model": self.model}
        network = PictureNetwork(
            shape, self.samples, self.params, self.problem.threads, self.problem.seed % 2**31
        )
        if self.file is not None:
            network.base.load_weights(str(self.file))
        return network


class PictureNetwork(deep.Network):
    """A network of keras.applications with a layer over it that names the class.

    ``shape`` is {"model", "size", "width", "dropout", "classes"}: what builds it again.
    """

    def __init__(
        self,
        shape: Mapping[str, Any],
        samples: Array,
        params: Mapping[str, Any],
        threads: int,
        seed: int = 0,
    ) -> None:
        import keras
        import tensorflow as tf

        begin(threads)
        keras.utils.set_random_seed(seed)
        self.shape, self.samples, self.params = dict(shape), samples, params
        self.threads, self.seed, self.steps = threads, seed, 0
        side = int(shape["size"])
        more: dict[str, Any] = {}
        if shape["model"] == "mobilenet":
            more = {"alpha": float(shape.get("width") or 1.0), "dropout": 0.0}
        self.base = getattr(keras.applications, BASES[shape["model"]][0])(
            input_shape=(side, side, 3), include_top=False, weights=None, pooling="avg", **more
        )
        for layer in self.base.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = MOMENTUM  # its usual 0.99 and more never gets there with few steps
        top = keras.layers.Dense(int(shape["classes"]), name="classes")
        drop = keras.layers.Dropout(float(shape.get("dropout") or 0.0), seed=seed)
        self.network = keras.Model(self.base.input, top(drop(self.base.output)))
        self.optimizer: AdamW | None = None
        self._learn: Any = None
        picture = [tf.TensorSpec([None, side, side, 3], tf.uint8)]
        self._predict = tf.function(self._shares, input_signature=picture, autograph=False)

    @staticmethod
    def _scaled(pixels: Any) -> Any:
        """From -1 to 1, as both networks' weights expect it."""
        import tensorflow as tf

        return tf.cast(pixels, tf.float32) / 127.5 - 1.0

    def _shares(self, pixels: Any) -> Any:
        return self.network(self._scaled(pixels), training=False)

    def _one_step(self, pixels: Any, goal: Any, rate: Any) -> Any:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            found = self.network(self._scaled(pixels), training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=goal, logits=found)
            loss = tf.reduce_mean(losses)
        assert self.optimizer is not None
        self.optimizer.apply(tape.gradient(loss, self.network.trainable_variables), rate)
        return loss

    def _begin_to_learn(self) -> None:
        import tensorflow as tf

        learnt = [one.value for one in self.network.trainable_variables]
        self.optimizer = AdamW(learnt, float(self.params["weight_decay"]))
        side = int(self.shape["size"])
        shapes = [
            tf.TensorSpec([None, side, side, 3], tf.uint8),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([], tf.float32),
        ]
        self._learn = tf.function(self._one_step, input_signature=shapes, autograph=False)
        self._learn.get_concrete_function()  # by the clock the first step is like the others

    def epoch(
        self,
        goal: Array,
        order: Array,
        rate: Callable[[float], float],
        late: Callable[[float], bool],
    ) -> float:
        if self.optimizer is None:
            self._begin_to_learn()
        size = int(self.params["batch_size"])
        total, seen, began = 0.0, 0, time.monotonic()
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            if len(rows) < 2 < len(order):  # a batch normalisation needs two
                continue
            pixels = self._pixels(self.samples[rows])
            self.steps += 1
            if self.params["shift"]:
                random = np.random.default_rng([self.seed, self.steps])
                pixels = images.shifted(pixels, random)
            step = np.float32(rate(seen / len(order)))
            loss = self._learn(pixels, goal[rows].astype(np.int64), step)
            total, seen = total + float(loss) * len(rows), seen + len(rows)
            if late((time.monotonic() - began) / seen):
                break
        return total / max(1, seen)

    def _pixels(self, samples: Array) -> Array:
        return images.pixels(samples, int(self.shape["size"]), self.threads)

    def scores(self, samples: Array) -> Array:
        found = np.zeros((len(samples), int(self.shape["classes"])))
        for start in range(0, len(samples), PREDICTED):
            part = slice(start, start + PREDICTED)
            logits = self._predict(self._pixels(samples[part])).numpy()
            found[part] = softmax(logits.astype(np.float64))
        return found

    def weights(self) -> dict[str, Array]:
        return {str(place): np.array(one.numpy()) for place, one in enumerate(self._variables())}

    def set_weights(self, weights: Mapping[str, Array]) -> None:
        put(weights, {str(place): one for place, one in enumerate(self._variables())})

    def _variables(self) -> list[Any]:
        """What is learnt and what is kept with it; not a dropout's own counter."""
        return [one for one in self.network.variables if "seed" not in one.path]

    def state(self) -> dict[str, Array]:
        assert self.optimizer is not None
        memory = {name: np.array(one.numpy()) for name, one in self.optimizer.memory.items()}
        found = checkpoints.named("network", self.weights())
        found |= checkpoints.named("optimizer", memory)
        return found | {"steps": np.array(self.steps)}

    def restore(self, state: Mapping[str, Array]) -> None:
        self.set_weights(checkpoints.part(state, "network"))
        memory = checkpoints.part(state, "optimizer")
        if memory:
            self._begin_to_learn()
            assert self.optimizer is not None
            put(memory, self.optimizer.memory)
            self.steps = int(state["steps"])

    def read(self, data: Frame) -> Array:
        return images.samples_of(data, int(self.shape["size"]), self.threads)

    def save(self, folder: Path) -> None:
        np.savez(folder / WEIGHTS, **deep.halved(self.weights()))  # type: ignore[arg-type]
        text = json.dumps(self.shape, indent=1) + "\n"
        (folder / "network.json").write_text(text, encoding="utf-8")


def load(folder: Path, told: Mapping[str, Any]) -> Predictor:
    """The predictor of what a network saved: arrays alone, nothing is unpickled."""
    shape = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    nothing = np.empty(0, dtype=object)
    network = PictureNetwork(shape, nothing, told["params"], 1)
    with np.load(folder / WEIGHTS, allow_pickle=False) as arrays:
        network.set_weights(dict(arrays))
    return PicturePredictor(network)


class PicturePredictor(Predictor):
    def __init__(self, network: PictureNetwork) -> None:
        self.network = network

    def predict(self, frame: Frame) -> Predictions:
        self.network.threads = self.threads
        return deep.predictions(self.network.scores(self.network.read(frame)))
