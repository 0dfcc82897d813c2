from typing import Any

import pytest
from django.core import mail as outgoing

from accounts import mail, tasks


@pytest.fixture
def mails(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Messages that were sent; what control would do for them is done where it is queued."""
    monkeypatch.setattr(mail, "later", lambda what, *given: getattr(tasks, what)(*given))
    return outgoing.outbox
