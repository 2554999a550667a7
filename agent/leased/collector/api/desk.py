# SPDX-License-Identifier: Apache-2.0
"""The HTTP side put together: settings and a state directory in, a server that runs out.

Rule: everything that can be refused (settings, tokens, the register, addresses) is refused before
anything is served. A SIGHUP reads tokens and the operator's document again; what cannot be read
leaves what was in force.

Does not parse arguments (`verbs`) and does not pull.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import trio

from leased import __version__
from leased.collector.accounts.accounts import Accounts, NoData
from leased.collector.accounts.answers import IdleResource
from leased.collector.accounts.terms_file import load_terms
from leased.collector.api import (
    checklist,
    console_routes,
    enrolling,
    handing,
    metrics,
    openapi,
    planning_routes,
    quota_routes,
    quotas,
    reports,
    settings,
    telemetry_routes,
    view_routes,
    views,
    webhooks,
)
from leased.collector.api.application import Application
from leased.collector.api.books import Books
from leased.collector.api.callers import Gate
from leased.collector.api.certificates import identify
from leased.collector.api.pace import Pace
from leased.collector.api.routes import Answer, Call, Route
from leased.collector.api.server import Server
from leased.collector.api.settings import Settings
from leased.collector.archive.floor import Kept
from leased.collector.archive.room import free_bytes
from leased.collector.governance.directory import KEY_NAME, GovernanceDirectory
from leased.collector.governance.issuer import Issuer
from leased.collector.metering import engines
from leased.collector.planning import capacity
from leased.collector.telemetry.receiver import Mounted, Receiver
from leased.collector.telemetry.store import Store, recorded
from leased.collector.telemetry.views import queue_depth
from leased.collector.webhooks.mailing import Mailing
from leased.collector.webhooks.watcher import Look
from leased.collector.witness import os_entropy
from leased.economics.contracts import Terms
from leased.economics.rates import RateCard
from leased.economics.waste import Judged
from leased.terms.errors import ConfigError, StateError
from leased.terms.moment import HOUR_NS, NS_PER_S
from leased.terms.policy import Policy

WASTE_NS: Final = HOUR_NS
"""Of which time leases are judged before a class of waste is told: an hour has enough samples."""


class Desk:
    """Everything of one run. Call `close` at the end."""

    def __init__(
        self,
        read: Callable[[], Settings],
        state: Path,
        directory: Path,
        *,
        say: Callable[[str], None],
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`directory` is what relative paths in the settings start from. Raises LeasedError."""
        self._read, self._directory, self._wall_ns = read, directory, wall_ns
        self._state = state
        self._settings = read()
        self._ground: Policy = settings.load_ground(self._settings, directory)
        tokens = settings.load_tokens(self._settings, directory)
        self._gate = Gate(tokens, self._settings.access.loopback)
        self._priced_by: Path | None = None
        self._say, self._said = say, ""
        self._prices = self._read_terms()
        self.books = Books(
            state, self._terms, say, make_engine=engines.maker(self._settings.store, directory)
        )
        self._governance = GovernanceDirectory(state, os_entropy)
        try:
            self._governance.register.check()
            fleet = self._settings.governance.fleet
            self.issuer = Issuer(
                register=self._governance.register,
                signer=self._governance.signer,
                key_name=KEY_NAME.format(fleet=fleet),
                fleet=fleet,
                ground=lambda: self._ground,
                valid_ns=self._settings.governance.policy_valid_ns,
                share_valid_ns=self._settings.governance.share_valid_ns,
                seen=lambda: self.books.fleet,
                wall_ns=wall_ns,
            )
            self._observed = telemetry_routes.Observed(
                state, self._card_now, lambda: self.books.fleet
            )
            self.hooks = Mailing(
                self._settings.webhooks,
                self._governance,
                state,
                directory,
                source=f"urn:leased:fleet:{fleet}",
                wall_ns=wall_ns,
                say=say,
            )
            self.routes = self._table()
            self.application = self._application(wall_ns)
            kept = self._settings.telemetry
            self._samples = Store(state, keep_ns=kept.keep_ns, rows_max=kept.rows_max)
            self.telemetry = Receiver(
                self._samples, wall_ns=wall_ns, newest_ns=self._newest_ns
            )
            self.server = Server(
                Mounted(self.telemetry, self.application),
                self._settings.http,
                directory=directory,
                identify=partial(identify, fleet=fleet),
            )
        except BaseException:
            self._governance.close()
            raise

    def _agreed(self) -> list[str]:
        """Who is billed by a contract, whether there is a record of them or not."""
        return [contract.tenant for contract in self._prices.contracts]

    def _table(self) -> list[Route]:
        self._quotas = quotas.Quotas(
            register=self._governance.register,
            writer=self._governance.writer,
            ground=lambda: self._ground,
            known=lambda: [*self.books.fleet.tenants(), *self._agreed()],
            entropy=os_entropy,
            tell=self.hooks.tell,
            newest_ns=self._newest_ns,
        )
        self.views = views.Views(
            lambda: self.books.fleet,
            self._quotas.limits,
            self._quotas.tenants,
            lambda: self._ground,
        )
        self.metrics = metrics.Metrics(
            fleet=lambda: self.books.fleet,
            ask=self.books.ask,
            terms=self._terms,
            views=self.views,
            issuer=self.issuer,
            tenants=self._quotas.tenants,
            hooks=self.hooks,
            waste=self._waste,
            queue_depth=self._waiting,
            floor=Kept(self._state).floor,
            free_bytes=lambda: free_bytes(self._state),
        )
        told = self._reports()
        planned = planning_routes.Planning(told, lambda: self.books.fleet, self._settings)
        table = [
            *quota_routes.routes(self._quotas),
            *view_routes.routes(self.views),
            *reports.routes(told),
            *planning_routes.routes(planned),
            *checklist.routes(told, self.views),
            *telemetry_routes.routes(self._observed),
            *handing.routes(handing.Handing(self.issuer, self.views.reach)),
            *enrolling.routes(
                enrolling.Enrolling(self._state, self._settings.http, self._directory)
            ),
            *webhooks.routes(
                webhooks.Webhooks(
                    self.hooks.readers, self.hooks.writers, self.hooks.public_keys
                )
            ),
            metrics.route(self.metrics),
        ]
        shown = console_routes.routes(console_routes.Stream(self.books, self.views, self._wall_ns))
        return [*table, *shown, self._described(table)]

    def _reports(self) -> reports.Reports:
        ground, fleet = (lambda: self._ground), (lambda: self.books.fleet)
        plans = self.issuer.strategies.of
        marks, offer = self._settings.capacity, self._settings.reservations
        return reports.Reports(self.books.ask, ground, fleet, self._state, plans, marks, offer)

    def _described(self, table: Sequence[Route]) -> Route:
        encoded = msgspec.json.encode(openapi.document(table, __version__))

        def show(call: Call) -> Answer:
            del call
            return Answer(raw=encoded)

        return Route(
            "GET", "/v1/openapi.json", show, "This interface, as OpenAPI 3.1", None, scope=None
        )

    def _application(self, wall_ns: Callable[[], int]) -> Application:
        http = self._settings.http
        return Application(
            self.routes,
            gate=self._gate,
            pace=Pace(http.requests_per_s_max, http.requests_burst),
            keeper=self._governance.writer,
            wall_ns=wall_ns,
            body_bytes_max=http.body_bytes_max,
            written=self._written,
            counted=self.metrics.count,
        )

    def _written(self) -> None:
        self.issuer.look_again()
        self.hooks.look_again()

    def _seen(self) -> Look:
        """What webhooks tell that the archive does not say by itself."""

        def shares() -> dict[str, dict[str, Fraction]]:
            return self.views.shares(self._wall_ns())

        def idle() -> list[IdleResource]:
            try:
                found = self.books.ask(capacity.idle)
            except NoData:
                return []
            return [] if found is None else found.idle_resources

        return Look(shares, idle, self._waste, self._newest_ns)

    def _newest_ns(self) -> int:
        """When the newest record of any node was sealed; 0 while nothing has been read, and now
        where there is no node."""
        try:
            return self.books.ask(Accounts.now_ns) or 0
        except NoData:
            return self._wall_ns()

    def _waste(self) -> list[Judged]:
        """What leases use of what they hold."""
        try:
            return self._observed.judged(self._wall_ns(), WASTE_NS)
        except StateError:  # no node has sent anything yet
            return []

    def _waiting(self, now_ns: int) -> int | None:
        """How many requests wait on nodes; None: none says."""
        with recorded(self._state) as samples:
            return None if samples is None else queue_depth(samples, now_ns // NS_PER_S)

    def _card_now(self) -> RateCard:
        """What is expensive now."""
        return self._terms().card_at(self._wall_ns())

    def _terms(self) -> Terms:
        """The prices as their file has them now; while it cannot be meant, as it had them."""
        said = ""
        try:
            self._prices = self._read_terms()
        except ConfigError as error:
            said = f"refused, the prices of before stay in force: {error}"
        if said and said != self._said:
            self._say(said)
        self._said = said
        return self._prices

    def _read_terms(self) -> Terms:
        # That a file which was there is gone is no reason to charge list prices: somebody may be
        # writing it anew.
        self._priced_by = self._priced_by or settings.terms_of(self._settings, self._directory)
        return Terms() if self._priced_by is None else load_terms(self._priced_by)

    def reload(self) -> None:
        """Read tokens and the operator's document again. Raises ConfigError, changing nothing."""
        fresh = self._read()
        ground = settings.load_ground(fresh, self._directory)
        tokens = settings.load_tokens(fresh, self._directory)
        before, self._ground = self._ground, ground
        try:
            self.issuer.compiled()
        except ConfigError:
            self._ground = before
            raise
        self._gate.take(tokens)
        self.application.look_again()
        self.issuer.look_again()

    async def run(self, stop: trio.Event) -> None:
        """Serve until `stop`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.issuer.run)
            nursery.start_soon(self._divide)
            nursery.start_soon(self.books.run)
            nursery.start_soon(self.telemetry.run)
            nursery.start_soon(self.hooks.run, self._seen())
            await self.server.run(stop)
            nursery.cancel_scope.cancel()

    async def _divide(self) -> None:
        """What nodes' records say may be a reason to divide the fleet's limits otherwise."""
        while True:
            await self.books.changed.wait()
            self.issuer.look_at_records()

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self._samples.close()
        self.hooks.close()
        self._governance.close()
