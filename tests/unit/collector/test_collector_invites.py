# SPDX-License-Identifier: Apache-2.0
"""An invite is for one node, for a short time, once; and only its hash is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leased.chain.invitation import Invitation, parse_invitation, request_message
from leased.collector.invites import DATABASE, Denied, Invite, Invites, Why, draw
from leased.terms.errors import StateError
from tests.doubles.logs import CountedEntropy

NODE, OTHER = "1" * 32, "2" * 32
CA = "ca" * 32
HOUR_NS = 3600 * 10**9


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Invites]:
    made = Invites(tmp_path)
    yield made
    made.close()


def made(book: Invites, *, node: str = "") -> Invitation:
    told = draw(CountedEntropy(node.encode()), CA)
    invite = Invite(told.id, "alpha", "https://alpha:7443", node, ("alpha", "::1"), HOUR_NS)
    book.make(invite, told.secret, 0)
    return told


def use(book: Invites, told: Invitation, node: str = NODE, request: bytes = b"r", at: int = 1):
    return book.use(told, node, request, at, lambda invite: b"in: " + invite.name.encode())


def refused(book: Invites, told: Invitation, why: Why, **options) -> None:
    with pytest.raises(Denied) as denied:
        use(book, told, **options)
    assert denied.value.why is why


def test_it_is_good_once_and_the_same_request_gets_the_same_answer(book: Invites) -> None:
    told = made(book)
    assert use(book, told) == b"in: alpha"
    # The answer was lost on the way: the very same request is answered, and nothing is done again.
    again = book.use(told, NODE, b"r", 2, lambda invite: pytest.fail("carried out twice"))
    assert again == b"in: alpha"
    refused(book, told, Why.USED, request=b"another")
    refused(book, told, Why.USED, node=OTHER, request=b"another")
    [invite] = book.remembered()
    assert (invite.used_ns, invite.hosts) == (1, ("alpha", "::1"))


def test_it_ends(book: Invites) -> None:
    told = made(book)
    refused(book, told, Why.EXPIRED, at=HOUR_NS)
    assert use(book, told, at=HOUR_NS - 1)
    # What it was used for in time is still answered after its end.
    assert use(book, told, at=HOUR_NS + 1)


def test_it_is_for_the_node_that_it_names(book: Invites) -> None:
    told = made(book, node=NODE)
    refused(book, told, Why.OTHER_NODE, node=OTHER)
    assert use(book, told)


def test_whoever_knows_the_id_and_not_the_secret_is_told_nothing(book: Invites) -> None:
    told = made(book)
    refused(book, Invitation(told.id, "0" * 64, CA), Why.UNKNOWN)
    refused(book, Invitation("0" * 16, told.secret, CA), Why.UNKNOWN)
    assert use(book, told), "and it is good still"


def test_what_could_not_be_carried_out_leaves_it_good(book: Invites) -> None:
    told = made(book)

    def fail(invite: Invite) -> bytes:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        book.use(told, NODE, b"r", 1, fail)
    assert use(book, told)


def test_only_its_hash_is_kept(book: Invites, tmp_path: Path) -> None:
    told = made(book)
    assert told.secret not in repr(told) and told.secret not in repr(book.remembered())
    assert told.secret.encode() not in (tmp_path / DATABASE).read_bytes()
    assert (tmp_path / DATABASE).stat().st_mode & 0o077 == 0


def test_one_that_was_withdrawn_is_none(book: Invites) -> None:
    told = made(book)
    assert book.withdraw(told.id) and not book.withdraw(told.id)
    refused(book, told, Why.UNKNOWN)
    used = made(book)
    use(book, used)
    assert not book.withdraw(used.id), "what it was used for is remembered"


def test_two_processes_use_it_once(book: Invites, tmp_path: Path) -> None:
    told = made(book)
    beside = Invites(tmp_path)
    beside.connection.execute("PRAGMA busy_timeout = 0")

    def meanwhile(invite: Invite) -> bytes:
        with pytest.raises(StateError, match="locked"):
            use(beside, told, request=b"other")
        return b"first"

    assert book.use(told, NODE, b"r", 1, meanwhile) == b"first"
    refused(beside, told, Why.USED, request=b"other")
    beside.close()


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    found = parse_invitation(text)
    assert found is None or found.text() == text.strip()


def test_a_request_is_for_one_invite() -> None:
    assert request_message("e", "r", "1") != request_message("e", "r", "2")
    assert request_message("e", "r", "1") != request_message("e", "x", "1")
