"""Where a request comes from."""

import ipaddress
from typing import Any


def address_of(request: Any) -> str | None:
    """The caller's address; None when it came over a socket of this machine without one."""
    try:
        return str(ipaddress.ip_address(request.META.get("REMOTE_ADDR", "")))
    except ValueError:
        return None
