"""What the apps on the right say about a data set: whether something still needs it.

An app fills this in its ``AppConfig.ready``:

    registry.register_use(lambda dataset: [f'Training job "{job}" runs on it.' for job in ...])
"""

from collections.abc import Callable

from datasets.models import Dataset

Use = Callable[[Dataset], list[str]]
_uses: list[Use] = []


def register_use(check: Use) -> None:
    """Add a check: what keeps a data set from being deleted now, one sentence each."""
    if check not in _uses:
        _uses.append(check)


def uses_of(dataset: Dataset) -> list[str]:
    """What keeps ``dataset`` from being deleted now. Call it with its versions locked."""
    return [sentence for check in _uses for sentence in check(dataset)]
