# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration: one frozen value, every default in it, every key with its unit in its
name.

Rule: a Config is valid by construction: what cannot be meant (a TTL floor below what a renewal
costs, a backstop that fires before the agent had its turn) is refused with the sum shown.
`configs/leased.toml` spells out every default with its reason; a test keeps the two equal. Paths
below `state_dir` and `runtime_dir` are made here and nowhere else.

Does not read files (`config_file`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from leased.chain.epochs import EPOCH_NS
from leased.durable import tpm
from leased.economics.rates import DEFAULT_CARD, RateCard
from leased.hardware.block.config import ERASE_NS_MAX
from leased.hardware.bounds import offered
from leased.hardware.config import HardwareConfig
from leased.service.fleet.config import Listening
from leased.service.fleet.config import check as check_listening
from leased.service.policy.windows import check_windows
from leased.service.telemetry import streaming
from leased.service.telemetry.streaming import Streaming
from leased.service.uplink import Collector
from leased.service.uplink import check as check_collector
from leased.terms.errors import ConfigError
from leased.terms.identity import TenantId
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.policy import Policy
from leased.terms.quantity import print_duration

DEFAULT_CONFIG_PATH: Final = Path("/etc/leased/leased.toml")
CGROUP_ROOT: Final = "leased.slice/leased-cgroup.service"
"""The unit that delegates it; without systemd the agent makes the directories."""

SOCKET_PATH_BYTES_MAX: Final = 107
UNMAPPED_BY_UID: Final = "uid-{uid}"


class Paths(msgspec.Struct, frozen=True):
    """Where things are."""

    state_dir: Path = Path("/var/lib/leased")
    runtime_dir: Path = Path("/run/leased")

    @property
    def audit_dir(self) -> Path:
        """The sealed log."""
        return self.state_dir / "audit"

    @property
    def counter_stamp(self) -> Path:
        """When the counter of the log was advanced last in this boot."""
        return self.runtime_dir / "counter"

    @property
    def user_socket(self) -> Path:
        """The users' door."""
        return self.runtime_dir / "io.leased"

    @property
    def admin_socket(self) -> Path:
        """The operators' door."""
        return self.runtime_dir / "io.leased.admin"

    @property
    def reaper_socket(self) -> Path:
        """The reaper's door."""
        return self.runtime_dir / "reaper.sock"

    @property
    def policies_dir(self) -> Path:
        """Documents of policies that were handed in, by their hash."""
        return self.state_dir / "policies"

    @property
    def leases_dir(self) -> Path:
        """One directory per lease with its status and notice."""
        return self.runtime_dir / "leases"


class Sockets(msgspec.Struct, frozen=True):
    """Limits of the local API: what one caller, or all of them together, may hold of the agent."""

    message_bytes_max: int = 1 << 20
    unfinished_bytes_max: int = 64 << 20
    connections_max: int = 1024
    connections_per_uid_max: int = 256
    calls_queued_max: int = 16
    write_timeout_ns: int = 10 * NS_PER_S
    user_mode: int = 0o666
    admin_mode: int = 0o600


class Sequencing(msgspec.Struct, frozen=True):
    """The sequencer's channel: how many commands of clients may wait, how many share a commit."""

    commands_max: int = 8192
    batch_commands_max: int = 512


class Timing(msgspec.Struct, frozen=True):
    """Budgets of the steps between a request and a proof. `check` refuses sums that cannot work.

    `cut_ns` is how long the reaper waits for a killed process to be gone, `backstop_ns` how long
    after the cut it waits for the agent before it overwrites the memory itself, and
    `reclaim_ns_max` the published bound from deadline to RECLAIMED or FENCED of a lease without
    memory; overwriting adds its bytes at `[hardware] touch_rate`.
    """

    tick_ns: int = 100 * NS_PER_MS
    commit_ns: int = 100 * NS_PER_MS
    arm_ns: int = 50 * NS_PER_MS
    cut_ns: int = 5 * NS_PER_S
    backstop_ns: int = 2 * NS_PER_S
    reclaim_ns_max: int = 60 * NS_PER_S
    heartbeat_ns: int = 5 * NS_PER_S
    stop_ns: int = 10 * NS_PER_S


class Log(msgspec.Struct, frozen=True):
    """The sealed log. `durability` "best-effort" serves on file systems that cannot keep the
    promises of FORMAT.md; every start records that it did. `epoch_ns` counts when a log is made:
    its epochs are sealed at that length for ever (0: not at all). Segments older than
    `retention_ns` (0: none) go once every collector has them, and younger ones where less than
    `free_bytes_min` are free."""

    durability: str = "strict"
    epoch_ns: int = EPOCH_NS
    retention_ns: int = 7 * 24 * 3600 * NS_PER_S
    free_bytes_min: int = 1 << 30
    counter: tpm.CounterConfig = tpm.CounterConfig()


class JournaldCopy(msgspec.Struct, frozen=True):
    """The copy of events in the journal: bounded, so that a storm of grants is not a storm of log
    lines.
    """

    copied: bool = True
    renewals: bool = False
    events_per_s_max: int = 500
    burst_events_max: int = 5_000


class TenantMapping(msgspec.Struct, frozen=True):
    """Which callers are this tenant: the first mapping that names the uid, else the first that
    names a gid, counts.

    Ranges are inclusive pairs.
    """

    tenant: TenantId
    uids: tuple[tuple[int, int], ...] = ()
    gids: tuple[tuple[int, int], ...] = ()


class Config(msgspec.Struct, frozen=True):
    """Everything the agent can be told. The defaults are a working agent on any host."""

    paths: Paths = Paths()
    sockets: Sockets = Sockets()
    sequencing: Sequencing = Sequencing()
    timing: Timing = Timing()
    policy: Policy = Policy()
    policy_file: str = ""
    rates: RateCard = DEFAULT_CARD
    hardware: HardwareConfig = HardwareConfig(cgroup_root=CGROUP_ROOT)
    log: Log = Log()
    journald: JournaldCopy = JournaldCopy()
    collector: Collector = Collector()
    listener: Listening = Listening()
    telemetry: Streaming = Streaming()
    tenants: tuple[TenantMapping, ...] = ()
    unmapped: str = UNMAPPED_BY_UID

    def tenant_of(self, uid: int, gids: tuple[int, ...]) -> TenantId | None:
        """Who a caller is; None: nobody, refuse. The uid's own mapping goes before that of any of
        its groups.
        """
        for mapping in self.tenants:
            if _within(uid, mapping.uids):
                return mapping.tenant
        for mapping in self.tenants:
            if any(_within(gid, mapping.gids) for gid in gids):
                return mapping.tenant
        return TenantId(self.unmapped.replace("{uid}", str(uid))) if self.unmapped else None


class Budget(msgspec.Struct, frozen=True):
    """One rule of time: the steps must fit into the limit. `why` says what would go wrong."""

    limit_key: str
    limit_ns: int
    steps: tuple[tuple[str, int], ...]
    why: str

    @property
    def sum_ns(self) -> int:
        """What the steps take together."""
        return sum(ns for _, ns in self.steps)

    def __str__(self) -> str:
        steps = " + ".join(f"{key} {print_duration(ns)}" for key, ns in self.steps)
        limit = f"{self.limit_key} {print_duration(self.limit_ns)}"
        return f"{steps} = {print_duration(self.sum_ns)}, {limit}"


def budgets(config: Config) -> tuple[Budget, ...]:
    """Every rule of time that a configuration must keep; `leasectl doctor` shows them with their
    sums.
    """
    timing, policy = config.timing, config.policy
    answered = (
        ("timing.tick", timing.tick_ns),
        ("timing.commit", timing.commit_ns),
        ("timing.arm", timing.arm_ns),
    )
    renewed = (("timing.commit", timing.commit_ns), ("timing.arm", timing.arm_ns))
    return (
        Budget(
            "policy.ttl_min",
            policy.ttl_ns_min,
            answered + renewed,
            "a lease of the shortest TTL would end before it could be granted and renewed once",
        ),
        Budget(
            "timing.backstop",
            timing.backstop_ns,
            answered,
            "the reaper's backstop would scrub before a living agent had its turn",
        ),
        *(
            Budget(
                "timing.reclaim_max",
                timing.reclaim_ns_max,
                (
                    ("timing.tick", timing.tick_ns),
                    ("timing.commit", timing.commit_ns),
                    ("timing.backstop", timing.backstop_ns),
                    (f"cut of {name}", bounds.cut_ns),
                    (f"scrub of {name}", bounds.scrub_ns),
                    (f"proof of {name}", bounds.prove_ns),
                ),
                f"the bound on the reclaim of {name} that is published would be shorter than its"
                " steps",
            )
            for name, bounds in offered(config.hardware, timing.cut_ns)
        ),
        Budget(
            "policy.grace_max",
            policy.grace_ns_max,
            (("policy.grace_release", policy.grace_ns_release),),
            "the grace of a release would exceed the longest grace",
        ),
    )


def check(config: Config) -> Config:
    """Return `config` if it can be meant. Raises ConfigError naming the key (and the sum, where it
    is one).
    """
    check_windows(config.policy)
    if config.policy.expires_wall_ns is not None:
        raise ConfigError(
            "policy.expires_at: the configured policy is what holds when another one expires,"
            " and does not expire itself"
        )
    _check_hardware(config.hardware)  # before its rates divide
    for budget in budgets(config):
        if budget.sum_ns > budget.limit_ns:
            raise ConfigError(f"{budget.limit_key}: {budget.why} ({budget})")
    for table in ("timing", "sockets", "sequencing"):
        section = getattr(config, table)
        for name in section.__struct_fields__:
            if name.endswith(("_ns", "_max")) and getattr(section, name) <= 0:
                key = name.replace("_ns", "").replace("_bytes", "")
                raise ConfigError(f"{table}.{key}: must be above zero")
    if config.sequencing.batch_commands_max > config.sequencing.commands_max:
        raise ConfigError("sequencing.batch_commands_max: above sequencing.commands_max")
    if config.sockets.connections_per_uid_max > config.sockets.connections_max:
        raise ConfigError("sockets.connections_per_uid_max: above sockets.connections_max")
    if config.sockets.unfinished_bytes_max < 2 * config.sockets.message_bytes_max:
        raise ConfigError("sockets.unfinished_max: below twice sockets.message_max")
    check_collector(config.collector)
    check_listening(config.listener)
    tpm.check(config.log.counter)
    streaming.check(config.telemetry)
    for key in ("state_dir", "runtime_dir"):
        if not getattr(config.paths, key).is_absolute():
            raise ConfigError(f"paths.{key}: must be absolute")
    # A door is made aside: a dot before its name, and the process id behind.
    aside = len(str(config.paths.admin_socket).encode()) + len(".") + len(".4194304")
    if aside > SOCKET_PATH_BYTES_MAX:
        raise ConfigError("paths.runtime_dir: too long for the name of a socket in it")
    return config


def _check_hardware(hardware: HardwareConfig) -> None:
    if not 0 <= hardware.normal_share_pm <= 1000:
        raise ConfigError("hardware.normal_share_pm: per mille, 0 to 1000")
    root = hardware.cgroup_root
    if not root or root.startswith("/") or ".." in root.split("/"):
        raise ConfigError(
            "hardware.cgroup_root: a path below the mount of cgroup v2, without a leading / or .."
        )
    for name in hardware.__struct_fields__:
        if (
            name.endswith(("_ns", "_bytes", "_per_s", "_workers", "_max"))
            and getattr(hardware, name) <= 0
        ):
            raise ConfigError(f"hardware.{_key_of(name)}: must be above zero")
    for part in ("gpu", "block", "rdma", "dax"):
        for name in getattr(hardware, part).__struct_fields__:
            if name.endswith(_ABOVE_ZERO) and getattr(getattr(hardware, part), name) <= 0:
                raise ConfigError(f"hardware.{part}.{_key_of(name)}: must be above zero")
    if hardware.block.erase_budget_ns > ERASE_NS_MAX:
        raise ConfigError("hardware.block.erase_budget: above 49d, the most that a drive is given")


def _key_of(field: str) -> str:
    """What a field of the hardware's is called in the file."""
    return {"bulk_bytes": "bulk_size"}.get(
        field, field.replace("bytes_per_s", "rate").removesuffix("_ns")
    )


def _within(number: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= number <= last for first, last in ranges)


_ABOVE_ZERO: Final = (
    "_per_s",
    *(f"{one}_budget_ns" for one in ("erase", "mig", "rebind", "release", "scan")),
)
