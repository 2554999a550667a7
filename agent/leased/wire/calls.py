# SPDX-License-Identifier: Apache-2.0
"""Calls and what they mean: parameters to `terms` commands.

Rule: the caller is the one handed in, as the kernel told it; nothing of it is read from the call. A
command_id that is absent is drawn from the entropy handed in.

Does not know sockets, order or descriptors (`conversation`), and answers nothing (`answers`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from leased.terms import command as commands
from leased.terms.command import Caller, Command
from leased.terms.errors import InvalidParameter, PermissionDenied
from leased.terms.identity import ID_BYTES, CommandId, LeaseId, parse_id, parse_tenant
from leased.terms.lease import (
    BOUND_TO_CGROUP,
    BOUND_TO_NOTHING,
    SYNTHETIC,
    AccountingTag,
    Level,
    Priority,
    RevocationReason,
)
from leased.terms.policy import Policy, digest
from leased.terms.resource import Ask, ResourceKind, Shape, TierKind
from leased.wire import objects, parameters, portrayal
from leased.wire.conversation import Call
from leased.wire.policy_document import decode_policy

Entropy = Callable[[], bytes]

HASH_BYTES = 32
_TTL_NS_DEFAULT = Policy().ttl_ns_default
_KIND: Final = {name: ResourceKind(number) for number, name in enumerate(portrayal.KIND)}
_TIER: Final = {name: TierKind(number) for number, name in enumerate(portrayal.TIER)}
_PRIORITY: Final = {name: Priority(number) for number, name in enumerate(portrayal.PRIORITY)}
_LEVEL: Final = {level.name.lower(): level for level in Level}
_REASON: Final = {name: RevocationReason(number) for number, name in enumerate(portrayal.REASON)}
_BOUND_KINDS: Final = frozenset({"mem", "block"})
_ADOPTABLE: Final = frozenset({("gpu", None), ("cpu", None), ("mem", "budget"), ("block", "raw")})
_BOUND_TO: Final = {"cgroup": BOUND_TO_CGROUP, "deadline": BOUND_TO_NOTHING}
_T = TypeVar("_T")


# ---- calls to commands -------------------------------------------------------------------------


def to_command(
    call: Call,
    caller: Caller,
    entropy: Entropy,
    *,
    pid: int = 0,
    ttl_ns_default: int = _TTL_NS_DEFAULT,
) -> Command | None:
    """Return the command that `call` means, or None for what the service answers from elsewhere.

    `pid` is the caller's process if a pidfd proved it, else 0; only with it is a lease bound to the
    process. Join, Wait, Adopt, Connect, Disconnect and Watch of one lease give the question
    (Describe) that their first answer, or the right to it, comes from; other Watches the list.
    Raises InvalidParameter or PermissionDenied.
    """
    make = _COMMANDS.get(type(call.parameters))
    if make is not None:
        return make(call.parameters, caller, entropy)
    asked = call.parameters
    if isinstance(asked, parameters.Adopt):
        if (asked.lease_id is None) == (asked.resources is None):
            raise InvalidParameter(
                "lease_id", "exactly one of lease_id and resources must be given"
            )
        if asked.lease_id is not None:
            return commands.Describe(CommandId(entropy()), caller, _lease_id(asked.lease_id))
        meant = _adoptable(asked)
        acquire = _acquire(meant, asked.command_id, caller, entropy, pid, ttl_ns_default)
        asks = tuple(msgspec.structs.replace(ask, adopts=True) for ask in acquire.asks)
        return msgspec.structs.replace(acquire, asks=asks)
    if isinstance(asked, parameters.Acquire):
        return _acquire(asked, asked.command_id, caller, entropy, pid, ttl_ns_default)
    if isinstance(asked, parameters.Plan):
        acquire = _acquire(asked, None, caller, entropy, pid, ttl_ns_default)
        return commands.Plan(acquire.command_id, acquire)
    return None


def _identity(text: str, parameter: str) -> bytes:
    """16 bytes of 32 hex digits. bytes.fromhex overlooks spaces, so the length is asked again."""
    value = parse_id(text, parameter)
    if len(value) != ID_BYTES:
        raise InvalidParameter(parameter, "an id is 32 lower-case hex digits")
    return value


def _command_id(text: str | None, entropy: Entropy) -> CommandId:
    """The caller's, or one made for it. All zeros is how the agent's own commands are marked."""
    if text is None:
        return CommandId(entropy())
    command_id = _identity(text, "command_id")
    if not any(command_id):
        raise InvalidParameter("command_id", "all zeros names no command")
    return CommandId(command_id)


def _lease_id(text: str, parameter: str = "lease_id") -> LeaseId:
    return LeaseId(_identity(text, parameter))


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _acquire(
    asked: parameters.Acquire | parameters.Plan,
    command_id: str | None,
    caller: Caller,
    entropy: Entropy,
    pid: int,
    ttl_ns_default: int,
) -> commands.Acquire:
    bind = asked.bind
    if bind is None:
        bind = (
            "process" if _BOUND_KINDS.issuperset(ask.kind for ask in asked.resources) else "cgroup"
        )
    if bind == "process" and pid == 0 and isinstance(asked, parameters.Acquire):
        raise PermissionDenied(
            "a lease bound to a process needs to know which one asks: before Linux 6.5 it is proven"
            " by what it says after an answer, so ask again over this connection"
        )
    return commands.Acquire(
        command_id=_command_id(command_id, entropy),
        caller=caller,
        asks=tuple([_ask(one) for one in asked.resources]),
        ttl_ns=ttl_ns_default if asked.ttl_ns is None else asked.ttl_ns,
        priority=_priority(asked),
        wait_ns=0 if asked.wait_ns is None else asked.wait_ns,
        grace_ns=asked.grace_ns,
        workload=asked.workload,
        tag=None if asked.accounting_tag is None else _tag(asked.accounting_tag, caller),
        bind_pid=pid if bind == "process" else _BOUND_TO[bind],
        level=None if asked.level is None else _LEVEL[asked.level],
        requeue_of=None if asked.requeue_of is None else _lease_id(asked.requeue_of, "requeue_of"),
    )


def _priority(asked: parameters.Acquire | parameters.Plan) -> Priority:
    """That of the level, where one is named: the two must not say different things."""
    named = None if asked.priority is None else _PRIORITY[asked.priority]
    if asked.level is None:
        return Priority.STANDARD if named is None else named
    priority = _LEVEL[asked.level].priority
    if named not in (None, priority):
        raise InvalidParameter("level", f"{asked.level} is not of the priority {asked.priority}")
    return priority


def _adoptable(asked: parameters.Adopt) -> parameters.Acquire:
    """What running work can be given. Raises InvalidParameter."""
    for ask in asked.resources or ():
        if (ask.kind, ask.shape) not in _ADOPTABLE:
            raise InvalidParameter(
                "resources",
                "running work can be given GPUs, cores, memory as a budget and raw namespaces;"
                " the rest comes as a descriptor, which nobody there would take",
            )
    return parameters.Acquire(
        resources=asked.resources or [],
        ttl_ns=asked.ttl_ns,
        priority=asked.priority,
        grace_ns=asked.grace_ns,
        workload=asked.workload,
        accounting_tag=asked.accounting_tag,
        bind="cgroup",
    )


def _ask(ask: objects.Ask) -> Ask:
    return Ask(
        kind=_KIND[ask.kind],
        capacity=ask.capacity,
        tier=None if ask.tier is None else _TIER[ask.tier],
        node=ask.node,
        resource_id=ask.resource_id,
        granule=ask.page_size,
        exclusive=ask.exclusive is True,
        shape=None if ask.shape is None else Shape(ask.shape),
        count=0 if ask.count is None else ask.count,
        attributes=tuple(sorted(ask.attributes.items())) if ask.attributes else (),
    )


def _tag(tag: objects.AccountingTag, caller: Caller) -> AccountingTag:
    """Raises PermissionDenied: what is on no bill is not for who pays it to say."""
    if _or(tag.flags, 0) & SYNTHETIC and not caller.operator:
        raise PermissionDenied("synthetic probes are the operators': use the admin socket")
    return AccountingTag(
        tag.cost_center,
        _or(tag.project, ""),
        _or(tag.request_class, ""),
        _or(tag.budget_group, ""),
        _or(tag.flags, 0),
    )


def _renew(asked: parameters.Renew, caller: Caller, entropy: Entropy) -> Command:
    return commands.Renew(
        _command_id(asked.command_id, entropy), caller, _lease_id(asked.lease_id), asked.ttl_ns
    )


def _release(
    asked: parameters.Release | parameters.Done, caller: Caller, entropy: Entropy
) -> Command:
    return commands.Release(
        _command_id(asked.command_id, entropy), caller, _lease_id(asked.lease_id)
    )


def _extend(asked: parameters.Extend, caller: Caller, entropy: Entropy) -> Command:
    command_id = _command_id(asked.command_id, entropy)
    return commands.Extend(command_id, caller, _lease_id(asked.lease_id), asked.needed_ns)


def _describe(
    asked: parameters.Describe
    | parameters.Join
    | parameters.Wait
    | parameters.Connect
    | parameters.Disconnect,
    caller: Caller,
    entropy: Entropy,
) -> Command:
    return commands.Describe(CommandId(entropy()), caller, _lease_id(asked.lease_id))


def _list(asked: parameters.List, caller: Caller, entropy: Entropy) -> Command:
    return commands.ListLeases(CommandId(entropy()), caller, _or(asked.closed, False))


def _watch(asked: parameters.Watch, caller: Caller, entropy: Entropy) -> Command:
    if asked.lease_id is None:
        return commands.ListLeases(CommandId(entropy()), caller)
    return commands.Describe(CommandId(entropy()), caller, _lease_id(asked.lease_id))


def _why(asked: parameters.Why, caller: Caller, entropy: Entropy) -> Command:
    return commands.Why(CommandId(entropy()), caller, _lease_id(asked.lease_id))


def _list_resources(
    asked: parameters.DeviceList | parameters.DeviceWatch, caller: Caller, entropy: Entropy
) -> Command:
    del asked
    return commands.ListResources(CommandId(entropy()), caller)


def _revoke(asked: parameters.Revoke, caller: Caller, entropy: Entropy) -> Command:
    return commands.Revoke(
        _command_id(asked.command_id, entropy),
        caller,
        _lease_id(asked.lease_id),
        RevocationReason.OPERATOR_REVOKE if asked.reason is None else _REASON[asked.reason],
        _or(asked.grace_ns, 0),
    )


def _drain(asked: parameters.Drain, caller: Caller, entropy: Entropy) -> Command:
    return commands.Drain(
        _command_id(asked.command_id, entropy),
        caller,
        _or(asked.resource_id, ""),
        asked.grace_ns,
        RevocationReason.OPERATOR_DRAIN if asked.reason is None else _REASON[asked.reason],
    )


def _resume(asked: parameters.Resume, caller: Caller, entropy: Entropy) -> Command:
    return commands.Resume(
        _command_id(asked.command_id, entropy), caller, _or(asked.resource_id, "")
    )


def _fence(asked: parameters.Fence, caller: Caller, entropy: Entropy) -> Command:
    return commands.Fence(
        _command_id(asked.command_id, entropy), caller, asked.resource_id, asked.capacity
    )


def _unfence(asked: parameters.Unfence, caller: Caller, entropy: Entropy) -> Command:
    if (asked.lease_id is None) == (asked.resource_id is None):
        raise InvalidParameter("lease_id", "exactly one of lease_id and resource_id must be given")
    return commands.Unfence(
        _command_id(asked.command_id, entropy),
        caller,
        None if asked.lease_id is None else _lease_id(asked.lease_id),
        _or(asked.resource_id, ""),
    )


def _set_policy(asked: parameters.SetPolicy, caller: Caller, entropy: Entropy) -> Command:
    if asked.document is None:
        raise InvalidParameter("document", "the configured policy is for the service to put back")
    policy = decode_policy(asked.document)
    return commands.SetPolicy(
        _command_id(asked.command_id, entropy),
        caller,
        policy,
        digest(policy),
        bytes(HASH_BYTES) if asked.rate_hash is None else _hash(asked.rate_hash, "rate_hash"),
    )


def _check_policy(asked: parameters.CheckPolicy, caller: Caller, entropy: Entropy) -> Command:
    return commands.TryPolicy(CommandId(entropy()), caller, decode_policy(asked.document))


def _quotas(asked: parameters.Quotas, caller: Caller, entropy: Entropy) -> Command:
    tenant = None if asked.tenant is None else parse_tenant(asked.tenant)
    return commands.Quotas(CommandId(entropy()), caller, tenant)


def _hash(text: str, parameter: str) -> bytes:
    try:
        value = bytes.fromhex(text) if text == text.lower() else b""
    except ValueError:
        value = b""
    if len(value) != HASH_BYTES or len(text) != 2 * HASH_BYTES:
        raise InvalidParameter(parameter, "a hash is 64 lower-case hex digits")
    return value


_COMMANDS: Final[dict[type, Callable[..., Command]]] = {
    parameters.Renew: _renew,
    parameters.Release: _release,
    parameters.Done: _release,
    parameters.Extend: _extend,
    parameters.Describe: _describe,
    parameters.Join: _describe,
    parameters.Wait: _describe,
    parameters.Connect: _describe,
    parameters.Disconnect: _describe,
    parameters.List: _list,
    parameters.Watch: _watch,
    parameters.Why: _why,
    parameters.DeviceList: _list_resources,
    parameters.DeviceWatch: _list_resources,
    parameters.Revoke: _revoke,
    parameters.Drain: _drain,
    parameters.Resume: _resume,
    parameters.Fence: _fence,
    parameters.Unfence: _unfence,
    parameters.SetPolicy: _set_policy,
    parameters.CheckPolicy: _check_policy,
    parameters.Quotas: _quotas,
}
