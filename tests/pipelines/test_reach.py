"""Where connections may lead: by the operator's list, and never where nobody may go."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import reach
from pipelines.reach import BadRule, Refused

NAMED = reach.parse("warehouse.example.org:*")
EVERYTHING = reach.parse("0.0.0.0/0:* [::/0]:*")
# As wide as a list can be, this machine included.
AND_LOOPBACK = reach.parse("0.0.0.0/0:* [::/0]:* localhost:* 127.0.0.0/8:* [::1]:*")

never = st.one_of(
    st.ip_addresses(network="169.254.0.0/16"),
    st.ip_addresses(network="224.0.0.0/4"),
    st.ip_addresses(network="0.0.0.0/8"),
    st.ip_addresses(network="240.0.0.0/4"),
    st.ip_addresses(network="fe80::/10"),
    st.ip_addresses(network="ff00::/8"),
    st.sampled_from(
        [ip_address(a) for a in ("::", "fd00:ec2::254", "100.100.100.200", "168.63.129.16")]
    ),
)
loopback = st.one_of(st.ip_addresses(network="127.0.0.0/8"), st.just(ip_address("::1")))
ports = st.integers(1, 65535)


def wraps(address: IPv4Address) -> list[str]:
    """An IPv4 address in the IPv6 ones that lead to it."""
    last = int(address)
    return [
        f"::ffff:{address}",
        f"::{address}",
        str(IPv6Address((0x0064FF9B << 96) | last)),
        str(IPv6Address((0x2002 << 112) | (last << 80) | 1)),
        str(IPv6Address((0x20010000 << 96) | (0x41000000 << 64) | (last ^ 0xFFFFFFFF))),
    ]


@given(never, ports)
def test_some_addresses_are_refused_whatever_the_list_says(address, port):
    own = reach.parse(f"[{address}]:*" if address.version == 6 else f"{address}:*")
    for rules in (AND_LOOPBACK, own, AND_LOOPBACK + own):
        with pytest.raises(Refused):
            reach.reach(rules, str(address), port)
    with pytest.raises(Refused):
        reach.reach(NAMED, "warehouse.example.org", port, lambda *_: [str(address)])


# ::0.0.0.1 is ::1, which is another matter.
@given(never.filter(lambda a: a.version == 4 and a != IPv4Address(1)), ports, st.integers(0, 4))
def test_nor_does_an_ipv6_address_around_them_help(address, port, which):
    with pytest.raises(Refused):
        reach.reach(AND_LOOPBACK, wraps(address)[which], port)
    with pytest.raises(Refused):
        reach.reach(NAMED, "warehouse.example.org", port, lambda *_: [wraps(address)[which]])


@given(loopback, ports, st.integers(0, 4))
def test_this_machine_is_reached_only_where_the_list_names_it(address, port, which):
    written = [str(address)] + (wraps(address) if address.version == 4 else [])
    for one in written:
        with pytest.raises(Refused):
            reach.reach(EVERYTHING, one, port)
        with pytest.raises(Refused):
            reach.reach(NAMED, "warehouse.example.org", port, lambda *_, one=one: [one])
    target = reach.reach(reach.parse(f"localhost:{port}"), str(address), port)
    assert ip_address(target.addresses[0]) == address
    with pytest.raises(Refused):
        reach.reach(reach.parse(f"localhost:{port % 65535 + 1}"), str(address), port)


@given(st.ip_addresses(), ports)
def test_an_empty_list_lets_nothing_out(address, port):
    with pytest.raises(Refused):
        reach.reach((), str(address), port)
    with pytest.raises(Refused):
        reach.reach((), "warehouse.example.org", port, lambda *_: [str(address)])


@given(st.lists(st.ip_addresses(v=4), min_size=1, max_size=5), ports)
def test_what_is_connected_to_is_exactly_what_was_judged(found, port):
    asked = []

    def resolve(host, _):
        asked.append(host)
        return [str(one) for one in found]

    rules = reach.parse("10.0.0.0/8:* 192.168.0.0/16:1-65535")
    inside = [any(one in ip_network(n) for n in ("10.0.0.0/8", "192.168.0.0/16")) for one in found]
    if all(inside):
        target = reach.reach(rules, "Warehouse.Example.org.", port, resolve)
        assert target.addresses == tuple(dict.fromkeys(map(str, found)))
        assert target.host == "warehouse.example.org"
    else:  # one that is not allowed among others that are
        with pytest.raises(Refused):
            reach.reach(rules, "warehouse.example.org", port, resolve)
    assert asked == ["warehouse.example.org"]  # once: a second answer could be another


@given(st.text(max_size=40), st.integers(-5, 70000))
def test_any_text_is_either_a_list_or_refused(text, port):
    try:
        rules = reach.parse(text)
    except BadRule:
        return
    try:
        reach.may_be_allowed(rules, text, port)
    except Refused:
        pass


@given(st.text(max_size=60))
def test_any_host_is_either_normal_or_refused(host):
    try:
        name = reach.normal(host)
    except Refused:
        return
    assert reach.normal(name) == name
    assert "/" not in name


def test_names_are_compared_whole():
    rules = reach.parse("warehouse.example.org:5432, *.data.example.org:443")
    found = {"10.1.2.3"}
    assert reach.reach(rules, "WAREHOUSE.example.org", 5432, lambda *_: found).port == 5432
    assert reach.reach(rules, "eu.data.example.org", 443, lambda *_: found)
    for host, port in (
        ("warehouse.example.org", 5433),
        ("xwarehouse.example.org", 5432),
        ("warehouse.example.org.evil.net", 5432),
        ("data.example.org", 443),
        ("evildata.example.org", 443),
    ):
        with pytest.raises(Refused, match="FLOWML_REACH"):
            reach.reach(rules, host, port, lambda *_: pytest.fail("its name was looked up"))


@pytest.mark.parametrize(
    "host",
    ["/var/run/postgresql", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "a b", "", "::1%lo",
     "host,other", "user@host", "host:5432", "-x", "*.example.org", "a" * 300],
)  # fmt: skip
def test_what_is_no_host_is_refused(host):
    with pytest.raises(Refused):
        reach.normal(host)


@pytest.mark.parametrize(
    "text",
    ["host", "host:", ":5432", "host:0", "host:70000", "host:9-5", "10.0.0.1/8:5432", "::1:5432",
     "[host]:1", "127.1:5432", "*:443", "a.*.b:1", "http://host:80"],
)  # fmt: skip
def test_a_rule_that_makes_no_sense_is_named(text):
    with pytest.raises(BadRule) as bad:
        reach.parse(f"good.example.org:1 {text}")
    assert text.split(" ", maxsplit=1)[0] in str(bad.value)


def test_a_sentence_tells_what_to_do():
    with pytest.raises(Refused, match=r'add "db\.example\.org:5432" to FLOWML_REACH'):
        reach.reach((), "db.example.org", 5432)
    with pytest.raises(Refused, match="leads nowhere"):
        reach.reach(reach.parse("db.example.org:5432"), "db.example.org", 5432, lambda *_: [])
