# SPDX-License-Identifier: Apache-2.0
"""A tenant's webhook whose name server does not answer takes time of nobody else."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from leased.collector.governance.register import Register
from leased.collector.webhooks.courier import Courier
from leased.collector.webhooks.outbox import Outbox
from leased.collector.webhooks.task_outbox import TaskOutbox
from leased.terms.moment import DAY_NS, NS_PER_S
from tests.unit.collector.test_webhooks import NOW_NS, fact, hook

RECEIVERS = 60
"""More than trio has threads for everything that has none of its own (40)."""


class Silent:
    """A resolver that says nothing until it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = threading.Event()

    def __call__(self, host: str, port: int, **how: object) -> list[object]:
        self.asked += 1
        self.answers.wait()
        raise OSError("no such name")


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[TaskOutbox]:
    with closing(Register(tmp_path)) as register:
        outbox = Outbox(register.connection, "urn:leased:fleet:t")
        with register.transaction():
            for number in range(RECEIVERS):
                hook(outbox, tenants=(f"t{number}",))
                outbox.put(fact(number, tenant=f"t{number}"))
    with closing(TaskOutbox(tmp_path, lambda base: Outbox(base, "urn:leased:fleet:t"))) as kept:
        yield kept


async def until(kept: TaskOutbox, holds: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not holds():
            await kept.ask(lambda outbox: None)


async def test_a_resolver_that_hangs_has_threads_of_its_own_and_one_a_receiver(
    kept: TaskOutbox,
) -> None:
    """It had those that answer the API and read the archive, and more of them each attempt."""
    resolver, now_ns = Silent(), NOW_NS
    courier = Courier(
        kept,
        allowed=(),
        context=ssl.create_default_context(),
        timeout_ns=NS_PER_S // 20,
        concurrency=RECEIVERS,
        wall_ns=lambda: now_ns,
        entropy=lambda: bytes(16),
        agent="test",
        keys=(),
        say=lambda text: None,
        resolve=resolver,
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(courier.run)
            await until(kept, lambda: courier.outcomes["failed"] == RECEIVERS)
            assert resolver.asked == RECEIVERS
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
            # Each is due again, and waits for the resolver that it has asked.
            now_ns += DAY_NS
            courier.look_again()
            for _ in range(9):  # the courier's looks are in between
                await kept.ask(lambda outbox: outbox.count("pending"))
            assert resolver.asked == RECEIVERS
            resolver.answers.set()
            await until(kept, lambda: resolver.asked > RECEIVERS)
            nursery.cancel_scope.cancel()
    finally:
        resolver.answers.set()
