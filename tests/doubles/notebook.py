# SPDX-License-Identifier: Apache-2.0
"""The model that the lessor is compared with: leases in dictionaries, and everything recomputed.

Rule: written from the glossary and DESIGN sections 5 and 10, not from the lessor: no heap, no
counters, no lifecycle table.

Does not know policies beyond two limits on numbers of leases.
"""

from __future__ import annotations

from typing import Any

NODES = {0: 20, 1: 12}
NODE_LEASES_MAX, ACME_LEASES_MAX = 6, 3
LIVE = ("granted", "active", "draining")


class Model:
    """What is, as a person with a notebook would keep it."""

    def __init__(self) -> None:
        self.leases: dict[bytes, dict[str, Any]] = {}
        self.waiting: list[dict[str, Any]] = []
        self.fenced_by_operator = dict.fromkeys(NODES, 0)
        self.cordoned: dict[int, bool] = dict.fromkeys(NODES, False)

    def open(self) -> list[dict[str, Any]]:
        """Leases that are not closed."""
        return [lease for lease in self.leases.values() if lease["state"] != "closed"]

    def column(self, node: int, name: str) -> int:
        """Pages of a node in one column."""
        total = self.fenced_by_operator[node] if name == "fenced" else 0
        for lease in self.open():
            if lease["node"] != node:
                continue
            state = lease["state"]
            where = "leased" if state in LIVE else "teardown"
            if state == "fenced":
                where = "fenced"
            if where == name:
                total += lease["fenced_pages"] if state == "fenced" else lease["pages"]
        return total

    def free(self, node: int) -> int:
        """Pages nobody has."""
        return NODES[node] - sum(self.column(node, c) for c in ("leased", "teardown", "fenced"))

    def end_of(self, lease: dict[str, Any]) -> int:
        """When a live lease ends by time."""
        drain = lease["drain_ns"]
        return int(lease["deadline_ns"] if drain is None else min(drain, lease["deadline_ns"]))

    def verdict(self, request: dict[str, Any], ahead: list[tuple[str, Any]]) -> str:
        """grant, never, or what the request waits for."""
        nodes = [n for n in NODES if request["node"] in (None, n)]
        if all(request["pages"] > NODES[n] for n in nodes):
            return "never"
        nodes = [n for n in nodes if not self.cordoned[n]]
        if not nodes:
            return "cordon"
        places = sum(lease["state"] != "fenced" for lease in self.open())
        if places >= NODE_LEASES_MAX or ("node", None) in ahead:
            return "places"
        own = sum(lease["tenant"] == "acme" and lease["state"] != "fenced" for lease in self.open())
        tenant = request["caller"].tenant
        if (tenant == "acme" and own >= ACME_LEASES_MAX) or ("tenant", tenant) in ahead:
            return "tenant"
        roomy = [n for n in nodes if self.free(n) >= request["pages"] and ("room", n) not in ahead]
        return "grant" if roomy else "room"

    def bars(self, request: dict[str, Any], verdict: str) -> list[tuple[str, Any]]:
        """What those behind a waiting request have to leave alone."""
        if verdict == "places":
            return [("node", None)]
        if verdict == "tenant":
            return [("tenant", request["caller"].tenant)]
        if verdict == "room":
            nodes = [n for n in NODES if request["node"] in (None, n) and not self.cordoned[n]]
            # What no end of a lease could serve keeps nothing from anybody.
            if any(request["pages"] <= NODES[n] - self.column(n, "fenced") for n in nodes):
                return [("room", n) for n in nodes]
        return []

    def end(self, lease: dict[str, Any], now_ns: int, how: str) -> None:
        """The right ends, by time if that has come first."""
        if now_ns >= self.end_of(lease):
            told_earlier = lease["drain_ns"] is not None
            by_drain = told_earlier and lease["drain_ns"] < lease["deadline_ns"]
            lease["ended"] = "revoked" if by_drain else "expired"
            lease["paid_until_ns"] = self.end_of(lease)
        else:
            lease["ended"] = how
            lease["paid_until_ns"] = now_ns
        lease["state"] = "revoking"
