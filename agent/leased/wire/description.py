# SPDX-License-Identifier: Apache-2.0
"""Description: what the service says of itself when it is asked (org.varlink.service).

Rule: the texts are the files in `idl/`, comments and all, exactly as they are in the source tree:
what a caller reads at run time is what a reviewer read.

Does not check calls against the IDL (a test does, for every struct).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from leased.wire import replies
from leased.wire.parameters import METHODS, Method

SERVICE: Final = "org.varlink.service"
TENANT_INTERFACES: Final = (
    "io.leased.Lease",
    "io.leased.Device",
    "io.leased.Audit",
    "io.leased.Telemetry",
)
OPERATOR_INTERFACES: Final = (*TENANT_INTERFACES, "io.leased.Admin")


class Service(msgspec.Struct, frozen=True, eq=False):
    """What one socket serves: its methods, and its ready answers about itself."""

    methods: dict[str, Method]
    interfaces: tuple[str, ...]
    info: bytes
    descriptions: dict[str, bytes]


def describe_service(
    version: str, texts: Mapping[str, str], interfaces: Sequence[str] = TENANT_INTERFACES
) -> Service:
    """The service of one socket: `interfaces` and org.varlink.service.

    `texts` has the IDL of each by name: the files `idl/<name>.varlink` of this package, which
    whoever composes the program reads, since nothing pure reads files.
    """
    served = (SERVICE, *interfaces)
    info = replies.InfoReply(
        vendor="leased", product="leased", version=version, url="", interfaces=list(served)
    )
    return Service(
        methods={name: method for name, method in METHODS.items() if method.interface in served},
        interfaces=served,
        info=replies.encode(info),
        descriptions={
            interface: replies.encode(replies.DescriptionReply(texts[interface]))
            for interface in served
        },
    )
