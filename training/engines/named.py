"""Models that can be asked for by name, with the hyperparameters that each takes. Plain data.

The web side reads this to say what there is and to check what it is given; the engines' adapters
build their models from it. Imports nothing, so that both may.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal

Kind = Literal["int", "float", "bool", "choice", "ints"]
Style = Literal["native", "trees", "scaled"]


@dataclass(frozen=True)
class Parameter:
    """One hyperparameter. ``low`` and ``high`` are the field's limits, both allowed.

    ``ints`` is a list of whole numbers, each within the limits. With ``optional``, None is a value
    too. ``default`` is the library's. ``search`` is the span that a race looks through (None: it is
    left alone), for a choice its values. A name may end in ``:classification`` or ``:regression``,
    where only these have it.
    """

    name: str
    kind: Kind
    default: Any
    about: str
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    optional: bool = False
    search: tuple[Any, ...] | None = None
    log: bool = False

    def problem(self, value: Any) -> str | None:
        """What is wrong with ``value``, in a sentence; None when nothing is."""
        if value is None:
            return None if self.optional else f"It is {self._kind_in_words()}, not null."
        if self.kind == "choice":
            # True is 1 to Python, and neither stands for the other here.
            if any(value == one and type(value) is type(one) for one in self.choices):
                return None
            named = ", ".join(repr(one) for one in self.choices)
            near = "" if not isinstance(value, str) else did_you_mean(value, self._texts())
            return f"It is one of {named}.{near}"
        if self.kind == "ints":
            if not isinstance(value, list | tuple) or not 1 <= len(value) <= 10:
                return f"It is {self._kind_in_words()}."
            return next((bad for one in value if (bad := self._number_problem(one))), None)
        if self.kind == "bool":
            return None if isinstance(value, bool) else "It is true or false."
        return self._number_problem(value)

    def _number_problem(self, value: Any) -> str | None:
        whole = self.kind in ("int", "ints")
        ok = isinstance(value, int) or (
            isinstance(value, float) and (value.is_integer() if whole else value == value)
        )
        if isinstance(value, bool) or not ok:
            return f"It is {self._kind_in_words()}."
        too_low = self.low is not None and value < self.low
        if too_low or (self.high is not None and value > self.high):
            return f"It is {self._kind_in_words()}, not {value:g}."
        return None

    def _texts(self) -> list[str]:
        return [one for one in self.choices if isinstance(one, str)]

    def _kind_in_words(self) -> str:
        what = {
            "int": "a whole number",
            "float": "a number",
            "ints": "a list of 1 to 10 whole numbers",
            "bool": "true or false",
            "choice": "one of " + ", ".join(repr(one) for one in self.choices),
        }[self.kind]
        if self.low is not None and self.high is not None:
            return f"{what} from {self.low:g} to {self.high:g}"
        return what if self.low is None else f"{what} of {self.low:g} or more"

    def clean(self, value: Any) -> Any:
        """``value`` as the library wants it: 100.0 as 100 where whole numbers are meant."""
        if self.kind == "int" and value is not None:
            return int(value)
        return [int(one) for one in value] if self.kind == "ints" and value is not None else value

    def as_json(self) -> dict[str, Any]:
        """For an API's answer."""
        name = self.name.partition(":")[0]
        told: dict[str, Any] = {"name": name, "type": self.kind, "default": self.default}
        told |= {"description": self.about, "nullable": self.optional}
        if self.choices:
            told["choices"] = list(self.choices)
        if self.low is not None:
            told |= {"minimum": self.low, "maximum": self.high}
        return told


@dataclass(frozen=True)
class Model:
    """A model of an engine. ``classifier`` and ``regressor`` are classes by their full names.

    None: it does no such tasks. ``calibrate``: the classifier gives no probabilities of its own.
    ``reads`` says what it learns from: a whole table, or its columns of texts or pictures alone.
    """

    name: str
    title: str
    family: str
    style: Style
    classifier: str | None
    regressor: str | None
    parameters: tuple[Parameter, ...] = ()
    calibrate: bool = False
    reads: Literal["table", "text", "image"] = "table"

    def does(self, task: str) -> bool:
        """Whether it does ``binary``, ``multiclass`` or ``regression``."""
        return self.class_for(task) is not None

    def class_for(self, task: str) -> str | None:
        return self.regressor if task == "regression" else self.classifier

    def parameters_for(self, task: str) -> Mapping[str, Parameter]:
        """By name; what only the other kind of task has is left out, where choices differ too."""
        found = {}
        for parameter in self.parameters:
            name, _, only = parameter.name.partition(":")
            if not only or (only == "regression") == (task == "regression"):
                found[name] = parameter
        return MappingProxyType(found)


def did_you_mean(name: str, known: list[str]) -> str:
    """`` Did you mean 'x'?``, or nothing when no known name is near."""
    close = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def models_of(engine: str) -> Mapping[str, Model]:
    """The models of an engine by name, of whatever version; none for engines that only race."""
    file = engine.partition("-")[0]
    return MODELS.get({"pytorch": "torch"}.get(file, file), {})


def reads(model: str) -> str:
    """What a model of this name learns from: "text", "image", or "table", as races do."""
    found = [models[model].reads for models in MODELS.values() if model in models]
    return found[0] if found else "table"


def problems(engine: str, model: str, task: str, given: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with a model's name (key ``model``) and its hyperparameters (theirs).

    Empty when nothing is. Unknown names come with the nearest known one.
    """
    known = models_of(engine)
    if model not in known:
        names = ", ".join(known) or "none"
        near = did_you_mean(model, list(known))
        return {"model": f"{engine} has no model '{model}'.{near} It has: {names}."}
    chosen = known[model]
    if not chosen.does(task):
        return {"model": f"'{model}' does no {task} tasks."}
    parameters = chosen.parameters_for(task)
    found = {}
    for name, value in given.items():
        if name not in parameters:
            near = did_you_mean(name, list(parameters))
            takes = ", ".join(parameters) or "none"
            found[name] = f"'{model}' has no hyperparameter '{name}'.{near} It takes: {takes}."
        elif bad := parameters[name].problem(value):
            found[name] = bad
    return found


def cleaned(engine: str, model: str, task: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters in which :func:`problems` has found none, as the library wants them."""
    parameters = models_of(engine)[model].parameters_for(task)
    return {name: parameters[name].clean(value) for name, value in given.items()}


# scikit-learn. What is declared here exists in every version that has a lock file.


def _int(name: str, default: Any, low: float, high: float, about: str, **more: Any) -> Parameter:
    return Parameter(name, "int", default, about, low, high, **more)


def _float(name: str, default: Any, low: float, high: float, about: str, **more: Any) -> Parameter:
    return Parameter(name, "float", default, about, low, high, **more)


def _choice(
    name: str, default: Any, choices: tuple[Any, ...], about: str, **more: Any
) -> Parameter:
    return Parameter(name, "choice", default, about, choices=choices, **more)


def _bool(name: str, default: bool, about: str) -> Parameter:
    return Parameter(name, "bool", default, about)


_BALANCE = _choice(
    "class_weight:classification",
    None,
    ("balanced",),
    "balanced: rare classes weigh as much as common ones",
    optional=True,
)
_ITERATIONS = _int("max_iter", 100, 1, 100_000, "most steps of the solver")
_TOLERANCE = _float("tol", 1e-4, 1e-10, 1, "the solver ends when steps gain less")
_INTERCEPT = _bool("fit_intercept", True, "whether there is an intercept")
_DEPTH = _int("max_depth", None, 1, 100, "most levels of a tree", optional=True, search=(4, 30))
_LEAF = _int("min_samples_leaf", 1, 1, 100_000, "fewest rows in a leaf", search=(1, 10))
_SHARES = ("sqrt", "log2", 0.3, 0.5, 0.7, 1.0)
_OF_COLUMNS = "columns that a split looks at (a share, or a function of their number)"
_ANY_SHARE: dict[str, Any] = {"optional": True, "search": ("sqrt", 0.3, 0.5, 0.7, 1.0)}
_SPLIT = _int("min_samples_split", 2, 2, 100_000, "fewest rows that are split")
_TREES = (
    _int("n_estimators", 100, 1, 5_000, "number of trees", search=(100, 300)),
    _DEPTH,
    _LEAF,
    _SPLIT,
    _choice("max_features:classification", "sqrt", _SHARES, _OF_COLUMNS, **_ANY_SHARE),
    _choice("max_features:regression", 1.0, _SHARES, _OF_COLUMNS, **_ANY_SHARE),
    _choice(
        "criterion:classification",
        "gini",
        ("gini", "entropy", "log_loss"),
        "how splits are compared",
        search=("gini", "entropy"),
    ),
    _choice(
        "criterion:regression",
        "squared_error",
        ("squared_error", "absolute_error", "friedman_mse", "poisson"),
        "how splits are compared",
    ),
    _BALANCE,
)
_DRAWN = "whether each tree sees rows drawn with repetition"

SKLEARN = (
    Model(
        "logistic_regression",
        "Logistic regression",
        "linear",
        "scaled",
        "sklearn.linear_model.LogisticRegression",
        None,
        (
            _float("C", 1.0, 1e-6, 1e6, "inverse of the penalty", search=(0.01, 10), log=True),
            _choice(
                "solver",
                "lbfgs",
                ("lbfgs", "newton-cg", "newton-cholesky", "sag", "saga"),
                "how it is solved",
            ),
            _ITERATIONS,
            _TOLERANCE,
            _INTERCEPT,
            _BALANCE,
        ),
    ),
    Model(
        "hist_gradient_boosting",
        "Gradient boosting on histograms",
        "boosting",
        "native",
        "sklearn.ensemble.HistGradientBoostingClassifier",
        "sklearn.ensemble.HistGradientBoostingRegressor",
        (
            _float("learning_rate", 0.1, 1e-4, 1, "step", search=(0.01, 0.3), log=True),
            _int("max_iter", 100, 1, 10_000, "number of rounds", search=(50, 500), log=True),
            _int("max_leaf_nodes", 31, 2, 10_000, "leaves of a tree", search=(4, 127), log=True),
            _int("max_depth", None, 1, 100, "most levels of a tree", optional=True),
            _int("min_samples_leaf", 20, 1, 100_000, "fewest rows in a leaf", search=(3, 100)),
            _float("l2_regularization", 0.0, 0, 1e6, "penalty", search=(0.0, 5.0)),
            _float("max_features", 1.0, 0.01, 1, "share of columns per split", search=(0.3, 1.0)),
            _int("max_bins", 255, 2, 255, "bins of a column"),
            _bool("early_stopping", False, "whether it ends when a tenth of the rows says so"),
            _BALANCE,
        ),
    ),
    Model(
        "extra_trees",
        "Extra trees",
        "forest",
        "trees",
        "sklearn.ensemble.ExtraTreesClassifier",
        "sklearn.ensemble.ExtraTreesRegressor",
        (*_TREES, _bool("bootstrap", False, _DRAWN)),
    ),
    Model(
        "random_forest",
        "Random forest",
        "forest",
        "trees",
        "sklearn.ensemble.RandomForestClassifier",
        "sklearn.ensemble.RandomForestRegressor",
        (*_TREES, _bool("bootstrap", True, _DRAWN)),
    ),
    Model(
        "svm",
        "SVM",
        "kernel",
        "scaled",
        "sklearn.svm.SVC",
        "sklearn.svm.SVR",
        (
            _float("C", 1.0, 1e-6, 1e6, "inverse of the penalty", search=(0.1, 50), log=True),
            _choice("kernel", "rbf", ("rbf", "linear", "poly", "sigmoid"), "how rows are compared"),
            _choice("gamma", "scale", ("scale", "auto"), "width of the kernel"),
            _int("degree", 3, 1, 10, "degree of the kernel poly"),
            _float("epsilon:regression", 0.1, 0, 10, "errors that cost nothing (goal scaled)"),
            _float("tol", 1e-3, 1e-10, 1, "the solver ends when steps gain less"),
            _int("max_iter", -1, -1, 10_000_000, "most steps of the solver; -1: no limit"),
            _BALANCE,
        ),
        calibrate=True,
    ),
    Model(
        "mlp",
        "Neural network",
        "network",
        "scaled",
        "sklearn.neural_network.MLPClassifier",
        "sklearn.neural_network.MLPRegressor",
        (
            Parameter(
                "hidden_layer_sizes", "ints", [100], "neurons of each layer", low=1, high=2_000
            ),
            _choice("activation", "relu", ("relu", "tanh", "logistic", "identity"), "activation"),
            _choice("solver", "adam", ("adam", "lbfgs", "sgd"), "how it learns"),
            _float("alpha", 1e-4, 0, 1e3, "penalty", search=(1e-5, 1), log=True),
            _float(
                "learning_rate_init", 1e-3, 1e-6, 1, "first step", search=(3e-4, 1e-2), log=True
            ),
            _int("max_iter", 200, 1, 10_000, "most passes over the rows"),
            _bool("early_stopping", False, "whether it ends when a tenth of the rows says so"),
            _TOLERANCE,
        ),
    ),
    Model(
        "knn",
        "Nearest neighbours",
        "neighbours",
        "scaled",
        "sklearn.neighbors.KNeighborsClassifier",
        "sklearn.neighbors.KNeighborsRegressor",
        (
            _int("n_neighbors", 5, 1, 1_000, "neighbours that are asked", search=(2, 50)),
            _choice(
                "weights",
                "uniform",
                ("uniform", "distance"),
                "whether near ones count more",
                search=("uniform", "distance"),
            ),
            _int("p", 2, 1, 5, "power of the distance: 2 is Euclid's", search=(1, 2)),
            _int("leaf_size", 30, 1, 1_000, "rows in a leaf of the search tree"),
        ),
    ),
    Model(
        "gradient_boosting",
        "Gradient boosting",
        "boosting",
        "trees",
        "sklearn.ensemble.GradientBoostingClassifier",
        "sklearn.ensemble.GradientBoostingRegressor",
        (
            _float("learning_rate", 0.1, 1e-4, 1, "step", search=(0.01, 0.3), log=True),
            _int("n_estimators", 100, 1, 5_000, "number of rounds", search=(50, 300)),
            _int("max_depth", 3, 1, 50, "most levels of a tree", search=(2, 8)),
            _float("subsample", 1.0, 0.01, 1, "share of rows per round", search=(0.5, 1.0)),
            _LEAF,
            _SPLIT,
        ),
    ),
    Model(
        "linear",
        "Linear regression",
        "linear",
        "scaled",
        None,
        "sklearn.linear_model.LinearRegression",
        (_INTERCEPT, _bool("positive", False, "whether weights are kept from being negative")),
    ),
    Model(
        "ridge",
        "Ridge",
        "linear",
        "scaled",
        "sklearn.linear_model.RidgeClassifier",
        "sklearn.linear_model.Ridge",
        (
            _float("alpha", 1.0, 0, 1e9, "penalty", search=(1e-3, 100), log=True),
            _INTERCEPT,
            _TOLERANCE,
            _BALANCE,
        ),
        calibrate=True,
    ),
    Model(
        "lasso",
        "Lasso",
        "linear",
        "scaled",
        None,
        "sklearn.linear_model.Lasso",
        (
            _float("alpha", 1.0, 1e-9, 1e9, "penalty", search=(1e-4, 1), log=True),
            _int("max_iter", 1_000, 1, 100_000, "most steps of the solver"),
            _INTERCEPT,
            _TOLERANCE,
        ),
    ),
    Model(
        "elastic_net",
        "Elastic net",
        "linear",
        "scaled",
        None,
        "sklearn.linear_model.ElasticNet",
        (
            _float("alpha", 1.0, 1e-9, 1e9, "penalty", search=(1e-4, 1), log=True),
            _float(
                "l1_ratio",
                0.5,
                0,
                1,
                "share of the penalty on absolute weights",
                search=(0.05, 0.95),
            ),
            _int("max_iter", 1_000, 1, 100_000, "most steps of the solver"),
            _INTERCEPT,
            _TOLERANCE,
        ),
    ),
    Model(
        "lda",
        "Linear discriminant analysis",
        "linear",
        "scaled",
        "sklearn.discriminant_analysis.LinearDiscriminantAnalysis",
        None,
        (_choice("solver", "svd", ("svd", "lsqr", "eigen"), "how it is solved"),),
    ),
    Model(
        "naive_bayes",
        "Naive Bayes",
        "bayes",
        "scaled",
        "sklearn.naive_bayes.GaussianNB",
        None,
        (
            _float(
                "var_smoothing",
                1e-9,
                0,
                10,
                "share of the largest variance added to all",
                search=(1e-9, 1),
                log=True,
            ),
        ),
    ),
    Model(
        "decision_tree",
        "Decision tree",
        "tree",
        "trees",
        "sklearn.tree.DecisionTreeClassifier",
        "sklearn.tree.DecisionTreeRegressor",
        (
            _int("max_depth", None, 1, 100, "most levels", optional=True, search=(2, 20)),
            _int("min_samples_leaf", 1, 1, 100_000, "fewest rows in a leaf", search=(2, 50)),
            _SPLIT,
            _float("ccp_alpha", 0.0, 0, 1e6, "cost of a leaf, for pruning"),
            _BALANCE,
        ),
    ),
    Model(
        "ada_boost",
        "AdaBoost",
        "boosting",
        "trees",
        "sklearn.ensemble.AdaBoostClassifier",
        "sklearn.ensemble.AdaBoostRegressor",
        (
            _int("n_estimators", 50, 1, 5_000, "number of rounds", search=(30, 300)),
            _float("learning_rate", 1.0, 1e-4, 10, "step", search=(0.05, 2.0), log=True),
        ),
    ),
)

# The frameworks' own networks (networks.py).

TABULAR_NETWORK = Model(
    "tabular_network",
    "Neural network",
    "network",
    "scaled",
    "network",
    "network",
    (
        Parameter("layers", "ints", [128, 64], "neurons of each layer", low=1, high=4_096),
        _float("dropout", 0.1, 0, 0.9, "share of neurons left out in each pass"),
        _float("learning_rate", 3e-3, 1e-6, 1, "first step"),
        _float("weight_decay", 1e-5, 0, 1, "penalty"),
        _int("batch_size", None, 2, 65_536, "rows per step; null: by the table", optional=True),
        _int("epochs", 60, 1, 10_000, "most passes over the rows"),
        _int("patience", 10, 1, 10_000, "epochs without gain on rows kept back, then it ends"),
        _int(
            "embedding",
            None,
            1,
            512,
            "most numbers that stand for a category; null: by how many levels it has",
            optional=True,
        ),
    ),
)


def _classifier(
    name: str, title: str, reads: Literal["table", "text", "image"], *parameters: Parameter
) -> Model:
    """A network that tells classes apart, learnt in epochs."""
    return Model(name, title, "network", "scaled", "network", None, parameters, reads=reads)


def _epochs(epochs: int, patience: int) -> tuple[Parameter, ...]:
    return (
        _int("epochs", epochs, 1, 1_000, "most passes over the rows"),
        _int("patience", patience, 1, 1_000, "epochs without gain on rows kept back, then it ends"),
    )


def _rate(pretrained: str, nothing: str) -> Parameter:
    about = f"highest step; null: {pretrained} from pretrained weights, else {nothing}"
    return _float("learning_rate", None, 1e-7, 0.1, about, optional=True)


_PRETRAINED = _bool("pretrained", True, "whether it starts from weights that are at hand")

# What classifies texts: see language.py.


def _text_model(name: str, title: str) -> Model:
    return _classifier(
        name,
        title,
        "text",
        *_epochs(5, 2),
        _int("batch_size", 16, 2, 512, "texts per step"),
        _rate("5e-5", "5e-4"),
        _float("weight_decay", 0.01, 0, 1, "penalty"),
        _float("dropout", None, 0, 0.9, "share left out; null: the network's", optional=True),
        _int("max_length", 128, 8, 512, "tokens (words or parts of words) that are read"),
        _PRETRAINED,
        _int("layers", None, 1, 24, "of a network that starts from nothing", optional=True),
        _int("hidden_size", None, 16, 1_024, "numbers per token, likewise", optional=True),
        _int("heads", None, 1, 16, "that attend in each layer, likewise", optional=True),
    )


TEXT = (
    _text_model("bert", "Text classifier (BERT)"),
    _text_model("transformer", "Text classifier (transformer)"),
)

# What classifies pictures: by torch in vision.py, by keras.applications in tensorflow.py.


def _picture_model(
    name: str, title: str, batch: int, nothing: str, least: int, *more: Parameter
) -> Model:
    """``nothing``: the learning rate from random weights; ``least``: pixels of a side."""
    return _classifier(
        name,
        f"Image classifier ({title})",
        "image",
        *_epochs(20, 5),
        _int("batch_size", batch, 2, 512, "pictures per step"),
        _rate("1e-4", nothing),
        _float("weight_decay", 1e-4, 0, 1, "penalty"),
        _int(
            "size",
            None,
            least,
            512,
            "pixels of a picture's side; null: by the data set's pictures",
            optional=True,
        ),
        _bool("shift", True, "whether pictures are moved a little in each pass"),
        _PRETRAINED,
        *more,
    )


def _dropout(share: float) -> Parameter:
    return _float("dropout", share, 0, 0.9, "share left out before the classes")


_MAPS = _choice("width", 1.0, (0.125, 0.25, 0.5, 1.0), "share of the usual maps per layer")

IMAGE = (
    _picture_model(
        "resnet",
        "ResNet",
        32,
        "1e-3",
        32,
        _MAPS,
        _choice("depth", 18, (10, 18, 34, 50), "layers"),
    ),
    _picture_model(
        "vgg",
        "VGG",
        32,
        "1e-3",
        32,
        _MAPS,
        _choice("depth", 11, (11, 13, 16), "layers, as VGG counts them"),
        _dropout(0.3),
    ),
)
KERAS = (
    _picture_model("inception", "Inception", 16, "3e-3", 75, _dropout(0.2)),
    _picture_model(
        "mobilenet",
        "MobileNet",
        16,
        "3e-3",
        32,
        _dropout(0.2),
        _choice("width", 1.0, (0.25, 0.5, 0.75, 1.0), "share of the usual filters per layer"),
    ),
)

# What learns of clicks by FuXiCTR: see fuxictr.py.


def _ctr_model(name: str, title: str, *more: Parameter) -> Model:
    return _classifier(
        name,
        title,
        "table",
        _int("embedding_dim", 16, 1, 512, "numbers that stand for a category"),
        Parameter("hidden_units", "ints", [128, 64], "neurons of each layer", 1, 4_096),
        _float("learning_rate", 5e-3, 1e-6, 1, "highest step"),
        _int("batch_size", None, 2, 65_536, "rows per step; null: by the table", optional=True),
        *_epochs(20, 4),
        _float("dropout", 0.1, 0, 0.9, "share of neurons left out in each pass"),
        _bool("batch_norm", False, "whether layers are normalised over each step's rows"),
        _float("embedding_regularizer", 1e-6, 0, 10, "penalty on what stands for categories"),
        _float("net_regularizer", 0.0, 0, 10, "penalty on all other weights"),
        *more,
    )


CTR = (
    _ctr_model("deepfm", "DeepFM"),
    _ctr_model("dcn", "DCN", _int("cross_layers", 3, 1, 10, "layers in which columns meet")),
    _ctr_model(
        "dlrm",
        "DLRM",
        Parameter("bottom_units", "ints", [64], "neurons of layers for numbers", 1, 4_096),
    ),
)

# By engine.
MODELS: dict[str, dict[str, Model]] = {
    "sklearn": {model.name: model for model in SKLEARN},
    "torch": {model.name: model for model in (TABULAR_NETWORK, *TEXT, *IMAGE)},
    "tensorflow": {model.name: model for model in (TABULAR_NETWORK, *KERAS)},
    "fuxictr": {model.name: model for model in CTR},
}
