"""Why a model says what it says of one row: the Shapley value of each column. Pure.

A coalition of columns is worth what the model says, in the mean, of rows that have these columns
from the row in question and all others from a background row. A column's Shapley value is what it
adds to that, in the mean over all orders in which columns can come (Strumbelj, Kononenko:
"Explaining prediction models and individual predictions with feature contributions", Knowledge and
Information Systems 41, 2014). So the values of all columns and the background's mean add up to the
answer, a column that the model ignores has 0, and any model can be explained that can be asked.

Few columns are computed exactly, over all coalitions. Of more, orders are drawn, each together with
its reverse (antithetic: Mitchell, Cooper, Frank, Holmes: "Sampling Permutations for Shapley Value
Estimation", JMLR 23, 2022), and every background row is walked through equally often, so that the
sum holds at any number of orders.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import factorial

import numpy as np

from .tables import Array

ROWS_AT_ONCE = 4_000
MOST_ROUNDS = 50
FEWEST_ROUNDS = 3  # before their spread is believed
CLOSE = 0.01  # of the largest value: errors below need no more rounds

# Of m mixed rows: m x d, True where a column is from the row in question, and m numbers of the
# background row that the others are from. Answers m x k.
Ask = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Explanation:
    """``base``: k, the mean over the background; ``values``: d x k; ``output``: k, the answer.

    base + the sum of values = output. ``errors``, d x k, are standard errors of the values, None
    where there was too little time to tell; 0 where ``exact``. ``background`` rows were compared
    with, and ``evaluations`` rows were predicted.
    """

    base: Array
    values: Array
    output: Array
    errors: Array | None
    exact: bool
    background: int
    evaluations: int


def explain(
    ask: Ask,
    columns: int,
    background: int,
    *,
    rows: int,
    seconds: float,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Explanation:
    """Explain one row by ``background`` others, at the price of about ``rows`` predictions.

    Ends soon after ``seconds`` with what there is then, at least one order and its reverse. Fewer
    background rows are used where the price of all would be too high. Raises ValueError without
    a column or a background row.
    """
    if columns < 1 or background < 1:
        raise ValueError("A column and a row to compare with are needed.")
    began = clock()
    used = _affordable(columns, background, rows)
    everyone = np.arange(used)
    none = np.zeros((used, columns), dtype=bool)
    both = ask(np.vstack([none, np.ones((1, columns), dtype=bool)]), np.append(everyone, 0))
    alone, output = np.asarray(both[:used], dtype=np.float64), np.asarray(both[used])
    spent_each = (clock() - began) / (used + 1)
    if columns == 1:  # the one column has it all
        base = alone.mean(axis=0)
        values = (output - base)[None, :]
        return Explanation(base, values, output, np.zeros_like(values), True, used, used + 1)
    price = used * 2**columns
    if price <= rows and spent_each * price <= seconds:
        return _exactly(ask, alone, output, columns)
    return _sampled(ask, alone, output, columns, rows, began + seconds, seed, clock)


def _affordable(columns: int, background: int, rows: int) -> int:
    """Of how many background rows two rounds, or all coalitions, fit into the price."""
    round_each = max(1, 2 * (columns - 1))
    most = rows // (2 * round_each)
    if columns < 20:
        most = max(most, rows // 2**columns)
    return max(1, min(background, most))


def _exactly(ask: Ask, alone: Array, output: Array, columns: int) -> Explanation:
    used = len(alone)
    codes = np.arange(2**columns)
    masks = (codes[:, None] >> np.arange(columns)) & 1 == 1
    worth = np.empty((len(codes), alone.shape[1]))
    worth[0], worth[-1] = alone.mean(axis=0), output
    step = max(1, ROWS_AT_ONCE // used)
    for start in range(1, len(codes) - 1, step):
        some = masks[start : min(start + step, len(codes) - 1)]
        said = ask(np.repeat(some, used, axis=0), np.tile(np.arange(used), len(some)))
        worth[start : start + len(some)] = said.reshape(len(some), used, -1).mean(axis=1)
    sizes = masks.sum(axis=1)
    # What an order's share is, in which exactly these columns come before.
    shares = np.array(
        [factorial(n) * factorial(columns - n - 1) / factorial(columns) for n in range(columns)]
    )
    values = np.empty((columns, alone.shape[1]))
    for column in range(columns):
        without = codes[~masks[:, column]]
        gain = worth[without | 1 << column] - worth[without]
        values[column] = shares[sizes[without]] @ gain
    evaluations = used * (len(codes) - 1) + 1
    return Explanation(worth[0], values, output, np.zeros_like(values), True, used, evaluations)


def _sampled(
    ask: Ask,
    alone: Array,
    output: Array,
    columns: int,
    rows: int,
    until: float,
    seed: int,
    clock: Callable[[], float],
) -> Explanation:
    random = np.random.default_rng(seed)
    used = len(alone)
    order = random.permutation(used)
    each = 2 * (columns - 1)
    at_once = max(1, ROWS_AT_ONCE // each)
    evaluations = used + 1
    rounds: list[Array] = []
    while len(rounds) < MOST_ROUNDS and (not rounds or evaluations + used * each <= rows):
        parts: list[Array] = []
        for start in range(0, used, at_once):
            if parts and clock() > until:
                break
            some = order[start : start + at_once]
            parts.append(_walked(ask, alone, output, columns, some, random))
            evaluations += len(some) * each
        gains = np.concatenate(parts)
        if len(gains) < used:
            if rounds:
                break  # a round that misses rows would not add up
            order = order[: len(gains)]
            used = len(gains)
        rounds.append(gains.mean(axis=0))
        if clock() > until or _is_close(rounds):
            break
    values = np.mean(rounds, axis=0)
    errors = None
    if len(rounds) > 1:
        errors = np.std(rounds, axis=0, ddof=1) / np.sqrt(len(rounds))
    base = alone[order].mean(axis=0)
    return Explanation(base, values, output, errors, False, used, evaluations)


def _is_close(rounds: list[Array]) -> bool:
    if len(rounds) < FEWEST_ROUNDS:
        return False
    errors = np.std(rounds, axis=0, ddof=1) / np.sqrt(len(rounds))
    return bool(errors.max() <= CLOSE * np.abs(np.mean(rounds, axis=0)).max())


def _walked(
    ask: Ask, alone: Array, output: Array, columns: int, some: Array, random: np.random.Generator
) -> Array:
    """len(some) x d x k: what each column added on the way from a background row to the row, in a
    drawn order and in its reverse, in the mean of the two."""
    there = random.permuted(np.tile(np.arange(columns), (len(some), 1)), axis=1)
    place = np.argsort(there, axis=1)  # when each column comes
    places = np.concatenate([place, columns - 1 - place])
    twice = np.concatenate([some, some])
    masks = places[:, None, :] < np.arange(1, columns)[None, :, None]
    said = ask(masks.reshape(-1, columns), np.repeat(twice, columns - 1))
    k = alone.shape[1]
    path = np.empty((len(twice), columns + 1, k))
    path[:, 0], path[:, -1] = alone[twice], output
    path[:, 1:-1] = said.reshape(len(twice), columns - 1, k)
    gains = np.take_along_axis(np.diff(path, axis=1), places[:, :, None], axis=1)
    mean: Array = (gains[: len(some)] + gains[len(some) :]) / 2
    return mean
