"""Where connections may lead: the operator's allow-list, and addresses that nobody may reach.

Standard library only: the web side judges what is typed in, a node judges once more where a name
really leads, and connects to the very address that it judged. Nothing is allowed by default.

The list (``FLOWML_REACH``) holds entries ``host:port``, with commas or spaces between them. The
host is a name, ``*.domain`` (names below it), an address or a network in CIDR notation, IPv6 in
brackets; the port is a number, a range ``8000-8010`` or ``*``. A network stands for every name
that leads into it. Loopback is reached only where an entry says so (``localhost``, ``127.0.0.1``):
FlowML's own services listen there. Link-local, multicast, unspecified and reserved addresses and
those of clouds' metadata services are refused whatever the list says, also where an IPv6 address
wraps them.
"""

import re
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Iterable[str]]

NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)*"
)
MOST_ADDRESSES = 8
# Clouds' metadata and host services outside 169.254.0.0/16: AWS by IPv6, Alibaba, Azure, Oracle.
METADATA = frozenset(
    map(
        ip_address,
        ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    )
)


class Refused(Exception):
    """A connection may not lead there. The text says why, and who could change that."""


class BadRule(ValueError):
    """An entry of the allow-list makes no sense. The text says which."""


@dataclass(frozen=True)
class Rule:
    """One entry: ``names`` is a name or ``*.domain``, or ``network`` is set. Ports inclusive."""

    names: str
    network: Network | None
    first_port: int
    last_port: int

    def fits_port(self, port: int) -> bool:
        return self.first_port <= port <= self.last_port

    def fits_name(self, host: str) -> bool:
        """Whether ``host`` (as ``normal`` gives it) is a name of this entry."""
        if self.names.startswith("*."):
            return host.endswith(self.names[1:]) and host != self.names[2:]
        return bool(self.names) and host == self.names

    def holds(self, address: Address) -> bool:
        return self.network is not None and address in self.network

    @property
    def opens_loopback(self) -> bool:
        """Whether the entry names this machine itself, and not by accident of a wide network."""
        return self.names == "localhost" or (
            self.network is not None and self.network.network_address.is_loopback
            and self.network.broadcast_address.is_loopback
        )  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What was judged: connect to one of ``addresses``, and show ``host`` to TLS."""

    host: str
    port: int
    addresses: tuple[str, ...]


def parse(text: str) -> tuple[Rule, ...]:
    """The entries of an allow-list. Raises BadRule."""
    return tuple(_rule(entry) for entry in re.split(r"[\s,]+", text.strip()) if entry)


def _rule(entry: str) -> Rule:
    match = re.fullmatch(
        r"\[(?P<six>[^\[\]]+)\]:(?P<port6>[^:]+)|(?P<host>[^:\[\]]+):(?P<port>[^:]+)", entry
    )
    if match is None:
        raise BadRule(f'"{entry}" is no host:port (IPv6 addresses stand in brackets).')
    ports = re.fullmatch(r"(\*)|(\d{1,5})(?:-(\d{1,5}))?", match["port6"] or match["port"])
    if ports is None:
        raise BadRule(f'"{entry}": the port is a number, a range or *.')
    first = 1 if ports[1] else int(ports[2])
    last = 65535 if ports[1] else int(ports[3] or ports[2])
    if not 1 <= first <= last <= 65535:
        raise BadRule(f'"{entry}": there are no such ports.')
    host = (match["six"] or match["host"]).lower().rstrip(".")
    try:
        network = ip_network(host)  # strict: with bits of a host set, something else was meant
    except ValueError:
        if match["six"] or "/" in host or _looks_numeric(host):
            raise BadRule(f'"{entry}" names no address or network.') from None
        if not NAME.fullmatch(host.removeprefix("*.")):
            raise BadRule(f'"{entry}" names no host.') from None
        return Rule(host, None, first, last)
    return Rule("", network, first, last)


def normal(host: str) -> str:
    """A host as rules are compared with it: lower case, ASCII, without a dot at the end.

    Raises Refused for what is neither a name nor an address (a path to a socket, say, a zone, or
    one of the short ways to write an IPv4 address).
    """
    text = host.strip().lower()
    text = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        if "%" not in text:
            return str(_plain(ip_address(text)))
    except ValueError:
        pass
    try:
        text = text.rstrip(".").encode("idna").decode()
    except UnicodeError:
        text = ""
    if not NAME.fullmatch(text) or _looks_numeric(text):
        raise Refused(f'"{host[:100]}" is no name or address of a host.')
    return text


def _looks_numeric(host: str) -> bool:
    """Whether a resolver may take it for an IPv4 address: 127.1, 2130706433, 0x7f.1."""
    return re.fullmatch(r"0x[0-9a-f]*|\d+", host.rpartition(".")[2]) is not None


def may_be_allowed(rules: Iterable[Rule], host: str, port: int) -> bool:
    """Whether a connection to ``host`` can be allowed, without asking where the name leads.

    True for a name while the list holds a network for that port: only its address will tell.
    Raises Refused for what is no host, or an address that is refused always.
    """
    host, fitting = normal(host), [rule for rule in rules if rule.fits_port(port)]
    try:
        address = ip_address(host)
    except ValueError:
        return any(rule.network is not None or rule.fits_name(host) for rule in fitting)
    return _why_not(address, fitting, named=False) is None


def reach(rules: Iterable[Rule], host: str, port: int, resolve: Resolver | None = None) -> Target:
    """Where a connection to ``host`` leads, resolved once. Raises Refused, with a sentence.

    One refused address among several is enough: a name that leads both to a warehouse and to
    this machine is not to be trusted with either.
    """
    name = normal(host)
    fitting = [rule for rule in rules if rule.fits_port(port)]
    named = any(rule.fits_name(name) for rule in fitting)
    try:
        found = [str(ip_address(name))]
    except ValueError:
        if not may_be_allowed(fitting, name, port):  # nor is a name server asked about it
            raise Refused(not_allowed(host, port)) from None
        found = list(dict.fromkeys((resolve or _resolve)(name, port)))
    if not found:
        raise Refused(f'The name "{host}" leads nowhere: check how it is written.')
    addresses: list[str] = []
    for one in found[:MOST_ADDRESSES]:
        if "%" in one:  # a zone: link-local
            raise Refused(_never(host, one))
        address = _plain(ip_address(one))
        if why := _why_not(address, fitting, named=named):
            raise Refused(why if one == name else f'"{host}" leads to {address}. {why}')
        addresses.append(str(address))
    return Target(name, port, tuple(addresses))


def not_allowed(host: str, port: int) -> str:
    """The sentence for what the list lacks."""
    return (
        f"Connections to {host}:{port} are not allowed here. Ask the operator to add "
        f'"{host}:{port}" to FLOWML_REACH.'
    )


def _never(host: str, address: str) -> str:
    return f'"{host}" leads to {address}, an address that connections may never reach.'


def _why_not(address: Address, rules: list[Rule], *, named: bool) -> str | None:
    """Why the address may not be reached by these rules (of the right port), or None."""
    for one in (address, *_wrapped(address)):
        if _is_barred(one):
            return f"{address} is an address that connections may never reach."
        if one.is_loopback and not any(rule.opens_loopback for rule in rules):
            return (
                f"{address} is this machine itself, which connections may only reach where "
                "FLOWML_REACH names localhost."
            )
    if named or any(rule.holds(address) for rule in rules):
        return None
    if address.is_loopback and any(rule.names == "localhost" for rule in rules):
        return None
    return f"No entry of FLOWML_REACH holds {address}: ask the operator to add it."


def _is_barred(address: Address) -> bool:
    if address.is_loopback:
        return False
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
        or address in METADATA
        or (isinstance(address, IPv6Address) and address.is_site_local)
        or (isinstance(address, IPv4Address) and address in ip_network("0.0.0.0/8"))
    )


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6-mapped one is; any other as it is."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _wrapped(address: Address) -> Iterator[Address]:
    """The IPv4 addresses that packets to an IPv6 address may come to (RFC 3056, 4380).

    Those of NAT64 (RFC 6052) and the old compatible ones lie in ::/8, which is reserved.
    """
    if not isinstance(address, IPv6Address):
        return
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo


def _resolve(host: str, port: int) -> list[str]:
    """All addresses of a name, in the order in which they should be tried. [] if it has none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        return []
    return [str(row[4][0]) for row in found]
