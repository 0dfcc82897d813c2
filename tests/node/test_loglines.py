"""What of a task's output is kept."""

from hypothesis import given
from hypothesis import strategies as st

from workers.node.loglines import BURST, LAST, LINES_A_SECOND, MAX_LINES, LogLines, Mask


def test_what_fits_is_told_as_it_is():
    log = LogLines()
    assert log.take(["a", "b"], 0.0) == ["a", "b"]
    assert log.end() == []


def test_after_a_flood_the_rest_is_counted_and_the_last_lines_come():
    log = LogLines()
    flood = [f"line {n}" for n in range(BURST + 500)]
    assert log.take(flood, 0.0) == flood[:BURST]
    told = log.take(["later"], 10.0)
    assert told == ["... 500 lines left out here: too many at once to keep", "later"]
    log.take([f"line {n}" for n in range(3 * MAX_LINES)], 1000.0)
    last = log.end()
    assert last[-1] == f"line {3 * MAX_LINES - 1}"
    assert len(last) == LAST + 1


@given(st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 5))))
def test_rate_and_size_are_bounded_and_every_line_is_told_or_counted(steps):
    log, now, told, given_, gaps = LogLines(), 0.0, [], 0, 0
    for count, pause in steps:
        now += pause
        got = log.take([str(given_ + n) for n in range(count)], now)
        given_ += count
        told += got
    told += log.end()
    lines = [line for line in told if not line.startswith("...")]
    gaps = sum(int(line.split()[1].replace(",", "")) for line in told if line.startswith("..."))
    assert len(lines) + gaps == given_
    assert len(lines) <= min(MAX_LINES, BURST + now * LINES_A_SECOND + 1) + LAST
    assert [int(line) for line in lines] == sorted({int(line) for line in lines})


def test_secrets_are_taken_out_of_texts_and_of_nothing_else():
    key = "-----BEGIN KEY-----\nMC4CAQAwBQYDK2VwBCIEI\n-----END KEY-----"
    mask = Mask({"password": "hunter2", "longer": "hunter2hunter2", "key": key, "pin": "12"})
    said = {"hunter2": ["hunter2hunter2!", 12, None, {"a": "x hunter2 y"}], "n": "12"}
    assert mask.plain(said) == {
        "hunter2": ["[secret]!", 12, None, {"a": "x [secret] y"}],
        "n": "12",  # too short to be told from an ordinary number
    }
    assert mask.text("MC4CAQAwBQYDK2VwBCIEI") == "[secret]"  # a line of a key that spans many
    assert Mask({}).plain(said) is said
