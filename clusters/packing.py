"""Which of a batch to let in where not all of it fits. Pure.

Best fit decreasing, then ruin and recreate: empty a node or take out a few, put back in another
order what waits, keep it if it is no worse (Schrimpf, Schneider, Stamm-Wilbrandt, Dueck: "Record
Breaking Optimization Results Using the Ruin and Recreate Principle", 2000). The random numbers
always start from the same seed, so that the same batch is always packed the same way.
"""

import random
from collections.abc import Sequence

ROUNDS = 600
Need = tuple[int, int, int]


def pack(
    needs: Sequence[Need],
    rooms: Sequence[Need],
    worth: Sequence[float],
    *,
    weights: Sequence[float],
    limit: Need | None = None,
    rounds: int = ROUNDS,
) -> dict[int, int]:
    """Where each goes, of those that are let in: places in ``needs`` -> places in ``rooms``.

    ``worth`` is what letting one in is worth; ``weights`` make the resources comparable; ``limit``
    is what all together may take. Best effort: the sum of the worth is seldom far from the most.
    """
    random_ = random.Random(0)
    most = sum(worth)
    by_worth = sorted(range(len(needs)), key=lambda i: (-worth[i], i))
    now = _State(needs, rooms, weights, limit)
    now.fill(by_worth)
    got = now.total(worth)
    best, record = dict(now.where), got
    for _ in range(rounds):
        if record >= most - 1e-9:
            break
        before = now.copy()
        now.ruin(random_)
        noise = random_.choice((0.1, 0.4, 1.0))
        key = {i: -worth[i] * random_.uniform(1 - noise, 1 + noise) for i in by_worth}
        now.fill(sorted((i for i in by_worth if i not in now.where), key=key.__getitem__))
        new = now.total(worth)
        if new < got - 1e-12:
            now = before
            continue
        got = new
        if got > record + 1e-12:
            best, record = dict(now.where), got
    return best


class _State:
    def __init__(
        self,
        needs: Sequence[Need],
        rooms: Sequence[Need],
        weights: Sequence[float],
        limit: Need | None,
    ) -> None:
        self.needs, self.weights = needs, weights
        self.free = [list(room) for room in rooms]
        self.left = list(limit) if limit else [1 << 62] * 3
        self.where: dict[int, int] = {}

    def copy(self) -> "_State":
        twin = _State(self.needs, (), self.weights, None)
        twin.free = [list(room) for room in self.free]
        twin.left = list(self.left)
        twin.where = dict(self.where)
        return twin

    def total(self, worth: Sequence[float]) -> float:
        return sum(worth[i] for i in self.where)

    def fill(self, order: Sequence[int]) -> None:
        """Best fit, one after the other."""
        u, v, w = self.weights
        left = self.left
        for i in order:
            a, b, c = self.needs[i]
            if a > left[0] or b > left[1] or c > left[2]:
                continue
            best, least = -1, 0.0
            for node, (x, y, z) in enumerate(self.free):
                if a > x or b > y or c > z:
                    continue
                # What is left over; a GPU beside work that needs none counts more than once.
                score = (u * (x - a)) ** 2 + (v * (y - b)) ** 2 + (w * (z - c)) ** 2
                if z and not c:
                    score += 1.0 + w * z
                if best < 0 or score < least:
                    best, least = node, score
            if best >= 0:
                self.move(i, best, -1)
                self.where[i] = best

    def move(self, i: int, node: int, by: int) -> None:
        free, left = self.free[node], self.left
        for r, need in enumerate(self.needs[i]):
            free[r] += by * need
            left[r] += by * need

    def ruin(self, random_: random.Random) -> None:
        """Empty a node or two, or take out a few of all."""
        if random_.random() < 0.6:
            count = 1 if random_.random() < 0.5 else 2
            nodes = set(random_.sample(range(len(self.free)), min(count, len(self.free))))
            gone = [i for i, node in self.where.items() if node in nodes]
        else:
            share = random_.uniform(0.05, 0.5)
            gone = [i for i in self.where if random_.random() < share]
        for i in gone:
            self.move(i, self.where.pop(i), 1)
