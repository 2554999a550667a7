# SPDX-License-Identifier: Apache-2.0
"""What a line of a bill is of, as FOCUS names it: services, SKUs, prices, units.

Rule: the id of a price is of one price at a time, and the same from version to version of the card
and from contract to contract.

Does not make rows (`focus`).
"""

from __future__ import annotations

from typing import Final

from leased.economics.billing import BillLine

_UNITS: Final = {"device": "Device", "core": "Core", "Gbit/s": "Gbps"}
_SERVICE: Final = {
    "gpu": ("Compute", "Other (Compute)", "GPU leases"),
    "cpu": ("Compute", "Other (Compute)", "CPU leases"),
    "mem": ("Compute", "Other (Compute)", "Memory leases"),
    "block": ("Storage", "Other (Storage)", "Storage leases"),
    "net": ("Networking", "Other (Networking)", "Network leases"),
}
OTHER: Final = ("Other", "Other (Other)", "Leases")


def service_of(line: BillLine) -> dict[str, str]:
    """The service, the SKU and the price of a line."""
    category, sub, name = _SERVICE.get(line.kind or "", OTHER)
    sku = line.kind or line.unit
    return {
        "ServiceCategory": category,
        "ServiceSubcategory": sub,
        "ServiceName": name,
        "SkuId": sku,
        "SkuMeter": f"{line.unit}s",
        "SkuPriceId": _price_id(line),
    }


def _price_id(line: BillLine) -> str:
    # What a line of a contract is, its description says.
    if line.card is not None:
        return "/".join((line.kind or "", line.tier or "-", line.priority or "-"))
    words = "".join(c if c.isalnum() else " " for c in line.description.lower()).split()
    return f"{line.kind or line.unit}/{'-'.join(words)}"


def unit_name(unit: str) -> str:
    """A unit of a bill as FOCUS writes it: "core-second" is "Core-Seconds"."""
    what, dash, time = unit.rpartition("-")
    if not dash:
        return f"{unit.capitalize()}s"
    return f"{_UNITS.get(what, what)}-{time.capitalize()}s"
