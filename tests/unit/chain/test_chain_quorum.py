# SPDX-License-Identifier: Apache-2.0
"""tlog-policy files read as C2SP says, and what a quorum vouches for."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leased.chain.note import COSIGNATURE_V1, Checkpoint, NoteKey, cosignature_message, write_note
from leased.chain.quorum import flat, judge_note, parse_policy, vouched
from leased.chain.signing import Signer
from leased.terms.errors import ChainError
from leased.terms.event import EventId, HeadCountersigned

SIGNERS = {name: Signer(name.encode().ljust(32)) for name in ("x1", "x2", "x3", "y1", "y2")}
KEYS = {
    name: NoteKey(f"{name}.example/w", signer.public_key, COSIGNATURE_V1)
    for name, signer in SIGNERS.items()
}
LOG = Signer(b"log".ljust(32))
LOG_KEY = NoteKey("fleet/node/1", LOG.public_key)
WITNESSES = "".join(f"witness {name} {key.text()} https://w\n" for name, key in KEYS.items())
TWO_LEVELS = f"""# a policy
log {LOG_KEY.text()}

{WITNESSES}
  group\tX 2 x1 x2 x3
group Y any y1 y2
group XY all X Y
quorum XY
"""


def note(*names: str, size: int = 7) -> str:
    text = Checkpoint("fleet/node/1", size, bytes(32)).text()
    lines = [(LOG_KEY, LOG.sign(text.encode()))]
    for name in names:
        raw = bytes(8) + SIGNERS[name].sign(cosignature_message(text, 0))
        lines.append((KEYS[name], raw))
    return write_note(text, lines)


def test_the_example_of_the_specification() -> None:
    policy = parse_policy(TWO_LEVELS.encode())
    assert policy.logs == (LOG_KEY,)
    assert (policy.groups["X"].least, policy.groups["Y"].least, policy.groups["XY"].least) == (
        2,
        1,
        2,
    )
    sizes = {"x1": 10, "x2": 30, "x3": 20, "y1": 5, "y2": 25}
    assert policy.reached(sizes, 99) == 20
    assert policy.reached({"x1": 10, "x2": 30}, 99) == 0
    checkpoint, by = judge_note(policy, note("x1", "x3", "y2"))
    assert (checkpoint.size, by) == (7, ("x1", "x3", "y2"))
    for short in ((), ("x1", "y1"), ("x1", "x2", "x3"), ("y1", "y2")):
        with pytest.raises(ChainError, match="BELOW_QUORUM"):
            judge_note(policy, note(*short))


def test_none_asks_nobody() -> None:
    policy = parse_policy(b"quorum none\n")
    assert policy.reached({}, 12) == 12 and policy.told() == "nobody"
    assert judge_note(policy, note())[1] == ()


def test_a_known_key_with_a_bad_signature_refuses_the_note() -> None:
    policy = parse_policy((WITNESSES + "quorum x1\n").encode())
    text = Checkpoint("fleet/node/1", 7, bytes(32)).text()
    bad = write_note(text, [(KEYS["x1"], bytes(72))])
    with pytest.raises(ChainError, match="BAD_SIGNATURE"):
        judge_note(policy, bad)


def test_a_log_that_the_policy_does_not_name_is_refused() -> None:
    other = NoteKey("fleet/node/1", Signer(b"other".ljust(32)).public_key)
    policy = parse_policy(f"log {other.text()}\n{WITNESSES}quorum x1\n".encode())
    with pytest.raises(ChainError, match="BAD_SIGNATURE"):
        judge_note(policy, note("x1"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no quorum line"),
        (WITNESSES, "no quorum line"),
        ("quorum none\nquorum none\n", "a second quorum"),
        ("quorum x1\n", "no witness or group before"),
        (f"group g 1 x1\n{WITNESSES}quorum g\n", "line 1.*no witness or group before"),
        (f"{WITNESSES}group g 0 x1\nquorum g\n", "all, any, or 1 to 1"),
        (f"{WITNESSES}group g 3 x1 x2\nquorum g\n", "all, any, or 1 to 2"),
        (f"{WITNESSES}group g 01 x1 x2\nquorum g\n", "all, any, or 1 to 2"),
        (f"{WITNESSES}group g all\nquorum g\n", "not a line of a policy"),
        (f"{WITNESSES}group g all x1 x1\nquorum g\n", "x1 is a member already"),
        (f"{WITNESSES}group g all x1\ngroup h all x1\nquorum g\n", "x1 is a member already"),
        (f"{WITNESSES}group x1 all x2\nquorum x1\n", "the name is taken"),
        (f"witness none {KEYS['x1'].text()}\nquorum none\n", "the name is taken"),
        (f"witness a {LOG_KEY.text()}\nquorum a\n", "type 04"),
        (f"log {KEYS['x1'].text()}\nquorum none\n", "type 01"),
        (f"{WITNESSES}witness z {KEYS['x1'].text()}\nquorum z\n", "a second witness"),
        (f"log {LOG_KEY.text()}\nlog {LOG_KEY.text()}\nquorum none\n", "a second log"),
        ("quorum none\r\n", "control character"),
        ("witness a b\nquorum a\n", "not a verifier key"),
        ("mirror a\nquorum none\n", "not a line of a policy: mirror"),
    ],
)
def test_what_is_no_policy_is_refused_with_its_line(text: str, why: str) -> None:
    with pytest.raises(ChainError, match=why) as refused:
        parse_policy(text.encode())
    assert refused.value.verdict == "BAD_POLICY"


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader(raw: bytes) -> None:
    try:
        parse_policy(raw)
    except ChainError as error:
        assert error.verdict == "BAD_POLICY"


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=5),
    st.integers(0, 6),
)
def test_so_many_of_them_have_at_least_what_is_reached(sizes: list[int], least: int) -> None:
    names = list(KEYS)[: len(sizes)]
    policy = flat({name: KEYS[name] for name in names}, least)
    held = dict(zip(names, sizes, strict=True))
    reached = policy.reached(held, 10**6)
    needed = least if 0 < least <= len(names) else len(names)
    assert sum(size >= reached for size in sizes) >= needed
    assert sum(size > reached for size in sizes) < needed


def test_a_countersignature_counts_for_whoever_signed_it() -> None:
    policy = parse_policy((WITNESSES + "group two 2 x1 x2 x3\nquorum two\n").encode())

    def ack(name: str, size: int, by: str = "") -> HeadCountersigned:
        text = Checkpoint("o/n", size, bytes(32)).text()
        raw = SIGNERS[by or name].sign(cosignature_message(text, 5))
        key_id = int.from_bytes(KEYS[name].key_id, "big")
        return HeadCountersigned(EventId(bytes(16)), size, bytes(32), key_id, 5, raw)

    unknown = HeadCountersigned(EventId(bytes(16)), 99, bytes(32), 17, 5, bytes(64))
    nobody = msgspec.structs.replace(unknown, key_id=1 << 40)
    sizes = vouched(policy, "o/n", [ack("x1", 4), ack("x3", 9), unknown, nobody])
    assert sizes == {"x1": 4, "x3": 9} and policy.reached(sizes, 100) == 4
    with pytest.raises(ChainError, match="not by x2"):
        vouched(policy, "o/n", [ack("x2", 4, by="x1")])
