# SPDX-License-Identifier: Apache-2.0
"""FOCUS 1.4: the rows of 1.2 in the columns of the later version.

Rule: the same rows and the same sums. What 1.4 renamed is renamed (the provider is who serves and
who hosts), what it dropped is dropped, and what belongs to something that is not offered here
(allocation of split costs, reservations of capacity, commitment programs, regions) has no column.

Does not compute rows (`focus`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from leased.collector.accounts.focus import COLUMNS, CUSTOM

_GONE: Final = frozenset(
    (
        *("AvailabilityZone", "RegionId", "RegionName"),
        *("CapacityReservationId", "CapacityReservationStatus"),
        *("ProviderName", "PublisherName", "ResourceId", "ResourceName", "ResourceType"),
        *(name for name in COLUMNS if name.startswith("CommitmentDiscount")),
    )
)
_NEW: Final = ("HostProviderName", "InvoiceDetailId", "ServiceProviderName")
COLUMNS_1_4: Final = tuple(sorted((*_NEW, *(name for name in COLUMNS if name not in _GONE))))
"""Of the Cost and Usage dataset: all that are mandatory or recommended, and the conditional ones
whose condition holds."""

VERSIONS: Final = {
    "1.2": (*COLUMNS, *CUSTOM),
    "1.4": (*COLUMNS_1_4, *CUSTOM),
}
"""The columns of each version that is written."""


def focus_1_4_rows(rows: Iterable[Mapping[str, str]]) -> Iterator[dict[str, str]]:
    """The rows of a bill, as 1.4 has them."""
    for number, row in enumerate(rows, 1):
        told = {name: row.get(name, "") for name in (*COLUMNS_1_4, *CUSTOM)}
        told["HostProviderName"] = row["ProviderName"]
        told["ServiceProviderName"] = row["PublisherName"]
        if row["InvoiceId"]:
            told["InvoiceDetailId"] = f"{row['InvoiceId']}/{number}"
        yield told
