# SPDX-License-Identifier: Apache-2.0
"""Published bounds follow from what is configured: each budget that a teardown of the kind waits
for moves them, and nothing else does.
"""

from __future__ import annotations

import msgspec
import pytest

from leased.hardware.bounds import bounds_of
from leased.hardware.config import HardwareConfig
from leased.hardware.rdma.config import RdmaConfig
from leased.terms.moment import NS_PER_S
from leased.terms.resource import Resource, ResourceKind, TierKind

CUT_NS = 5_000_000
MIB = 1 << 20
REGION = Resource(
    "mem:rdma-f028d8fffeb44dab:node0:4096", ResourceKind.MEM, TierKind.REMOTE, 256 * MIB, 4096
)
MEMORY = msgspec.structs.replace(REGION, resource_id="mem:node0:4096", tier=TierKind.DRAM)


def test_a_region_has_its_memorys_bounds_and_its_owners() -> None:
    config = HardwareConfig()
    region, memory = (bounds_of(config, CUT_NS, one) for one in (REGION, MEMORY))
    assert region.cut_ns == memory.cut_ns == CUT_NS
    assert region.overwrite_ns == memory.overwrite_ns == 2 * 256 * NS_PER_S // 128
    owner_ns = config.call_budget_ns + config.kill_budget_ns + config.settle_budget_ns
    assert region.scrub_ns == memory.scrub_ns + owner_ns
    witness_ns = config.call_budget_ns + config.settle_budget_ns
    assert region.prove_ns == memory.prove_ns + witness_ns


@pytest.mark.parametrize(
    ("budget", "scrub", "prove"),
    [("call_budget_ns", 1, 1), ("kill_budget_ns", 1, 0), ("settle_budget_ns", 1, 1)],
)
def test_a_longer_budget_is_a_longer_bound(budget: str, scrub: int, prove: int) -> None:
    """Beyond what it adds to the memory's own."""

    def owners(config: HardwareConfig) -> tuple[int, int]:
        region, memory = (bounds_of(config, CUT_NS, one) for one in (REGION, MEMORY))
        return region.scrub_ns - memory.scrub_ns, region.prove_ns - memory.prove_ns

    before, config = owners(HardwareConfig()), HardwareConfig()
    longer = {budget: getattr(config, budget) + NS_PER_S}
    after = owners(msgspec.structs.replace(config, **longer))
    assert after == (before[0] + scrub * NS_PER_S, before[1] + prove * NS_PER_S)


def test_a_prober_takes_a_call_more_and_only_where_there_is_one() -> None:
    without, with_one = (
        bounds_of(HardwareConfig(rdma=RdmaConfig(prober=prober)), CUT_NS, REGION)
        for prober in ("", "rxe1")
    )
    assert with_one.prove_ns == without.prove_ns + HardwareConfig().call_budget_ns
    assert with_one.scrub_ns == without.scrub_ns
