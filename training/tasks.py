"""Control's side of training: getting warm, so that the first leaderboard row is soon there.

The work itself hangs on the signals of the workers app (see reactions.py).
"""

import importlib
from typing import Any

from celery.signals import worker_process_init


@worker_process_init.connect(dispatch_uid="training.warm_up")
def warm_up(**_: Any) -> None:
    """Import what scoring needs, in the child: Polars must not have threads when control forks."""
    for name in ("polars", "training.scoring"):
        importlib.import_module(name)
