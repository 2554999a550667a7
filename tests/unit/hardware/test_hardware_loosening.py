# SPDX-License-Identifier: Apache-2.0
"""Who keeps the killed of many leases is looked for once, by one worker, which goes when it has
done; each tenant has its share of the time.
"""

from __future__ import annotations

from typing import Any

import msgspec

from leased.hardware.adopting import Adoptions
from leased.hardware.adoption.servers import Aborted, Loosen, Loosened
from leased.hardware.calls import CgroupFacts
from leased.hardware.worker import MESSAGE_BYTES_MAX
from leased.service.reclaimer import STUCK_MAX
from leased.terms.errors import DeviceError
from leased.terms.identity import TenantId
from leased.terms.lease import Lease
from tests.doubles.leases import lease as make_lease


class Crew:
    """Has one connection of the last lease aborted, and more than it says."""

    def __init__(self, error: DeviceError | None = None) -> None:
        self.asked: list[Loosen] = []
        self.dismissed: list[str] = []
        self._error = error

    async def task(
        self, worker: str, backend: str, verb: str, asked: Loosen, *_: Any, **__: Any
    ) -> Loosened:
        """An answer."""
        assert (worker, backend, verb) == ("loosen", "adoption", "loosen")
        self.asked.append(asked)
        if self._error is not None:
            raise self._error
        last = asked.tenants[-1][-1]
        return Loosened((Aborted(40, 1000, 77, last.at),), 3)

    def dismiss(self, worker: str) -> None:
        """Noted."""
        self.dismissed.append(worker)


async def _facts() -> CgroupFacts:
    return CgroupFacts("/sys/fs/cgroup/leased", (), (), ())


def _leases(count: int, tenant: str = "acme") -> list[Lease]:
    one = make_lease()
    subject = msgspec.structs.replace(one.subject, tenant=TenantId(tenant))
    return [msgspec.structs.replace(one, subject=subject, pid=number) for number in range(count)]


async def test_a_thousand_leases_whose_holders_do_not_die_cost_one_look() -> None:
    crew = Crew()
    many, other = _leases(1000), _leases(1, "beta")
    leases = (*many[:500], *other, *many[500:])
    told = await Adoptions(crew, _facts).loosen(leases)  # type: ignore[arg-type]
    [asked] = crew.asked
    assert [len(tenant) for tenant in asked.tenants] == [1000, 1], "each has its share of the time"
    assert crew.dismissed == ["loosen"]
    assert told[0].startswith(f"lease {other[0].lease_id.hex()}: thread 77 ")
    assert "FUSE connection 40 of uid 1000" in told[0] and told[1].startswith("3 more ")


async def test_as_many_as_are_looked_at_together_fit_into_one_message() -> None:
    crew = Crew()
    await Adoptions(crew, _facts).loosen(_leases(STUCK_MAX))  # type: ignore[arg-type]
    assert len(msgspec.msgpack.encode(crew.asked[0])) < MESSAGE_BYTES_MAX // 2


async def test_a_look_that_fails_names_a_few_of_whom_it_was_for() -> None:
    crew = Crew(DeviceError("worker_answer", 110))
    leases = _leases(1000)
    [told] = await Adoptions(crew, _facts).loosen(leases)  # type: ignore[arg-type]
    assert leases[0].lease_id.hex() in told and len(told) < 1000
    assert crew.dismissed == ["loosen"]
