"""When a canary has shown that it is worse than what runs. Pure."""

import math
from typing import NamedTuple

LEAST = 20  # requests of the canary, before anything is said of its errors
CRASHES = 3  # in a row
WORST = 0.05  # a smaller share of errors is let be, whatever the other's is
Z = 3.0  # standard errors between the two shares: chance alone gives that once in 700 times


class Asked(NamedTuple):
    """What one side was asked lately, and how often it failed."""

    requests: int
    failed: int

    @property
    def share(self) -> float:
        return self.failed / self.requests if self.requests else 0.0


def why_abandon(crashes: int, error: str, canary: Asked, current: Asked) -> str:
    """Why the canary had better go, or "".

    Two shares are compared by the pooled two-proportion z-test (Fleiss, Statistical Methods for
    Rates and Proportions, 2.2), and the canary's must be twice the other's as well.
    """
    if crashes >= CRASHES:
        return f"It crashed {crashes} times in a row: {error}"
    if canary.requests < LEAST or canary.share < WORST or canary.share < 2 * current.share:
        return ""
    if current.requests:
        pooled = (canary.failed + current.failed) / (canary.requests + current.requests)
        spread = math.sqrt(
            pooled * (1 - pooled) * (1 / canary.requests + 1 / current.requests)
        )  # fmt: skip
        if spread and (canary.share - current.share) / spread < Z:
            return ""
    return (
        f"{canary.share:.0%} of its requests failed ({canary.failed} of {canary.requests}), and "
        f"{current.share:.0%} of the current revision's."
    )
