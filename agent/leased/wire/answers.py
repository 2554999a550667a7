# SPDX-License-Identifier: Apache-2.0
"""Answers: `terms` replies and errors to the bytes of the call they answer.

Rule: a denial becomes the error io.leased.Lease.Refused with every number it has; each method has
one shape of answer, the one its interface says.

Does not answer what only the service can know (Join's environment, Audit, Telemetry, Status): it
fills in the structs of `replies` and encodes them itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from leased.terms import reply as answers
from leased.terms.errors import (
    CallerError,
    ChainError,
    ConfigError,
    DeviceError,
    InvalidParameter,
    LeasedError,
    PermissionDenied,
)
from leased.terms.moment import Moment
from leased.wire import objects, parameters, portrayal, replies
from leased.wire.conversation import Call
from leased.wire.replies import encode, encode_fault

NO_SUCH_LEASE: Final = "io.leased.Lease.NoSuchLease"
REFUSED: Final = "io.leased.Lease.Refused"
LIST_PAGE: Final = 256
"""Leases per message of a List called with more: about a quarter of a MiB."""


def encode_reply(
    call: Call,
    reply: answers.Reply,
    moment: Moment,
    *,
    fds: Sequence[objects.LeaseFd] = (),
    access: Sequence[objects.Access] = (),
    sequence: int = 0,
) -> bytes:
    """Return the message (several for a List called with more) that gives `reply` to `call`.

    `fds` lists what goes along with a Granted; `access` is told with it and by Describe. `sequence`
    is that of the last record which the first reply of a Watch shows; such a reply says that more
    will follow. Join needs its environment: use `encode(JoinReply(...))`.
    """
    if type(reply) is answers.Changed:
        return _encode_changed(call, reply, moment, access, sequence)
    if type(reply) is answers.Granted:
        return _encode_granted(reply, moment, fds, access)
    return _ENCODINGS[type(reply)](call, reply, moment, sequence)


def encode_error(error: LeasedError) -> bytes:
    """Return the message that tells a caller of `error`."""
    if isinstance(error, InvalidParameter):
        return encode_fault(error.wire, {"parameter": error.parameter}, error.why)
    if isinstance(error, DeviceError):
        return encode_fault(
            error.wire, {"verb": error.verb, "errno": error.errno, "detail": error.detail}
        )
    if isinstance(error, ChainError):
        return encode_fault(
            error.wire,
            {
                "verdict": error.verdict,
                "why": error.why,
                "sequence": error.sequence,
                "offset": error.offset,
                "file": error.file,
            },
        )
    if isinstance(error, PermissionDenied | ConfigError):
        return encode_fault(error.wire, {"why": str(error)})
    return encode_fault(CallerError.wire, {"why": str(error)})


def _encode_changed(
    call: Call,
    changed: answers.Changed,
    moment: Moment,
    access: Sequence[objects.Access],
    sequence: int,
) -> bytes:
    lease = changed.lease
    asked = type(call.parameters)
    if asked is parameters.Renew:
        return encode(
            replies.RenewReply(
                lease.lease_id.hex(),
                lease.generation,
                lease.deadline_ns,
                portrayal.STATE[lease.state],
            )
        )
    portrayed = portrayal.portray_lease(lease, moment)
    if asked is parameters.Watch:
        return encode(replies.WatchReply(sequence, [portrayed], gap=False), continues=True)
    if asked is parameters.Describe:
        return encode(replies.DescribeReply(portrayed, list(access)))
    return encode(replies.LeaseReply(portrayed))


def _encode_granted(
    granted: answers.Granted,
    moment: Moment,
    fds: Sequence[objects.LeaseFd],
    access: Sequence[objects.Access],
) -> bytes:
    return encode(
        replies.AcquireReply(
            lease=portrayal.portray_lease(granted.lease, moment),
            fds=list(fds),
            access=list(access),
            attached=granted.attached,
            sequence=granted.sequence if granted.sequence >= 0 else None,
            record_hash=granted.record_hash.hex() or None,
            log_id=granted.log_id.hex() or None,
        )
    )


def _encode_refusal(call: Call, refusal: answers.Refusal, moment: Moment, sequence: int) -> bytes:
    del call, sequence
    return encode_fault(REFUSED, portrayal.portray_refusal(refusal, moment))


def _encode_listed(call: Call, listed: answers.Listed, moment: Moment, sequence: int) -> bytes:
    leases = [portrayal.portray_lease(lease, moment) for lease in listed.leases]
    if type(call.parameters) is parameters.Watch:
        return encode(replies.WatchReply(sequence, leases, gap=False), continues=True)
    waiting = portrayal.portray_waiting(listed)
    if not call.more:
        return encode(replies.ListReply(leases, waiting))
    pages = [leases[begin : begin + LIST_PAGE] for begin in range(0, len(leases), LIST_PAGE)] or [
        []
    ]
    last = pages.pop()
    return b"".join(
        [
            *(encode(replies.ListReply(page, []), continues=True) for page in pages),
            encode(replies.ListReply(last, waiting)),
        ]
    )


def _encode_inventoried(
    call: Call, inventoried: answers.Inventoried, moment: Moment, sequence: int
) -> bytes:
    del moment
    resources = portrayal.portray_resources(inventoried)
    if type(call.parameters) is parameters.DeviceWatch:
        return encode(replies.DeviceWatchReply(sequence, resources, gap=False), continues=True)
    inventory = inventoried.inventory
    absences = [objects.Absence(portrayal.KIND[item.kind], item.why) for item in inventory.absences]
    graces = objects.Graces(*inventoried.graces_ns)
    return encode(replies.DeviceListReply(resources, absences, list(inventory.notes), graces))


def _encode_planned(call: Call, planned: answers.Planned, moment: Moment, sequence: int) -> bytes:
    del call, sequence
    refusal = planned.refusal
    return encode(
        replies.PlanReply(
            grantable=refusal is None,
            resource_ids=list(planned.resource_ids),
            refusal=None if refusal is None else portrayal.portray_refusal(refusal, moment),
            position=planned.position,
            removals=[portrayal.portray_removal(one) for one in planned.victims],
            cost_nano=planned.cost_nano,
            within_boottime_ns=planned.within_ns,
            assumes=[one.value for one in planned.assumes] or None,
        )
    )


def _encode_in_force(call: Call, in_force: answers.InForce, moment: Moment, sequence: int) -> bytes:
    del call, moment, sequence
    return encode(replies.SetPolicyReply(in_force.policy_hash.hex()))


def _encode_unfit(call: Call, unfit: answers.Unfit, moment: Moment, sequence: int) -> bytes:
    del call, moment, sequence
    return encode_fault(ConfigError.wire, {"why": unfit.why})


def _encode_explained(
    call: Call, explained: answers.Explained, moment: Moment, sequence: int
) -> bytes:
    del call, sequence
    lease, refusal = explained.lease, explained.refusal
    return encode(
        replies.WhyReply(
            lease=None if lease is None else portrayal.portray_lease(lease, moment),
            refusal=None if refusal is None else portrayal.portray_refusal(refusal, moment),
            position=explained.position,
            step=None if explained.step is None else explained.step.name.lower(),
            errno=None if explained.step is None else explained.errno,
            preemptor_tenant=None if explained.preemptor is None else explained.preemptor[0],
            preemptor_lease_id=(
                None if explained.preemptor is None else explained.preemptor[1].hex()
            ),
            told_boottime_ns=explained.told_ns,
            latest_boottime_ns=None if explained.latest is None else explained.latest[0],
            rule=None if explained.latest is None else explained.latest[1],
        )
    )


def _encode_allowed(call: Call, allowed: answers.Allowed, moment: Moment, sequence: int) -> bytes:
    del call, moment, sequence
    return encode(
        replies.QuotasReply(
            [portrayal.portray_allowance(one) for one in allowed.allowances],
            [objects.Evenness(one.rule, one.index) for one in allowed.evenness],
        )
    )


def _encode_done(call: Call, done: answers.Done, moment: Moment, sequence: int) -> bytes:
    del moment, sequence
    asked = call.parameters
    if isinstance(asked, parameters.Drain):
        return encode(replies.DrainReply([lease_id.hex() for lease_id in done.affected]))
    return encode(replies.EmptyReply())


def _encode_missing(call: Call, missing: answers.Missing, moment: Moment, sequence: int) -> bytes:
    del call, moment, sequence
    return encode_fault(NO_SUCH_LEASE, {"lease_id": missing.lease_id.hex()})


def _encode_forbidden(
    call: Call, forbidden: answers.Forbidden, moment: Moment, sequence: int
) -> bytes:
    del call, forbidden, moment, sequence
    return encode_fault(PermissionDenied.wire, {"why": "only an operator may do this"})


_ENCODINGS: Final[dict[type[msgspec.Struct], Callable[..., bytes]]] = {
    answers.Refusal: _encode_refusal,
    answers.Listed: _encode_listed,
    answers.Inventoried: _encode_inventoried,
    answers.Planned: _encode_planned,
    answers.Explained: _encode_explained,
    answers.Allowed: _encode_allowed,
    answers.Done: _encode_done,
    answers.InForce: _encode_in_force,
    answers.Unfit: _encode_unfit,
    answers.Missing: _encode_missing,
    answers.Forbidden: _encode_forbidden,
}
