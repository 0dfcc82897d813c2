"""What stands in messages."""

import re
from typing import Any
from urllib.parse import urlsplit


def link_in(message: Any) -> str:
    """The path and query of the first address in a message that leads further than the front."""
    found = re.search(r"https?://\S+\?\S+", message.body)
    assert found, message.body
    parts = urlsplit(found[0])
    return f"{parts.path}?{parts.query}"
