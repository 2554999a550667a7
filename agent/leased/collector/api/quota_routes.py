# SPDX-License-Identifier: Apache-2.0
"""The rows of the route table about quotas.

Does nothing (`quotas`).
"""

from __future__ import annotations

from leased.collector.api import forms
from leased.collector.api.quota_answers import (
    ChangesSeen,
    QuotaSeen,
    QuotasSeen,
    ScheduleSeen,
    SchedulesSeen,
)
from leased.collector.api.quotas import TOP, Quotas
from leased.collector.api.routes import Route, Scope


def routes(quotas: Quotas) -> list[Route]:
    """The rows of the table."""
    return [
        Route(
            "GET",
            TOP,
            quotas.list,
            "Every tenant's quota",
            QuotasSeen,
            takes_query=forms.PageQuery,
        ),
        Route(
            "GET",
            f"{TOP}/{{tenant}}",
            quotas.show,
            "One tenant's quota",
            QuotaSeen,
            takes_path=forms.TenantPath,
            conditional=True,
            problems=(404,),
        ),
        Route(
            "PATCH",
            f"{TOP}/{{tenant}}",
            quotas.patch,
            "Change a tenant's quota",
            QuotaSeen,
            scope=Scope.QUOTA,
            takes_path=forms.TenantPath,
            takes_body=forms.QuotaPatch,
            writes=True,
            conditional=True,
            problems=(404,),
        ),
        Route(
            "DELETE",
            f"{TOP}/{{tenant}}/overrides/{{id}}",
            quotas.drop_override,
            "End an override",
            None,
            scope=Scope.QUOTA,
            takes_path=forms.OverridePath,
            status=204,
            writes=True,
            problems=(404,),
        ),
        *_schedules(quotas, f"{TOP}/scheduled"),
    ]


def _schedules(quotas: Quotas, top: str) -> list[Route]:
    return [
        Route(
            "GET",
            top,
            quotas.schedules,
            "Schedules",
            SchedulesSeen,
            takes_query=forms.PageQuery,
        ),
        Route(
            "POST",
            top,
            quotas.add_schedule,
            "Take a schedule in",
            ScheduleSeen,
            scope=Scope.QUOTA,
            takes_body=forms.ScheduleForm,
            status=201,
            writes=True,
            problems=(404,),
        ),
        Route(
            "GET",
            f"{top}/{{id}}",
            quotas.schedule,
            "One schedule",
            ScheduleSeen,
            takes_path=forms.IdPath,
            problems=(404,),
        ),
        Route(
            "DELETE",
            f"{top}/{{id}}",
            quotas.drop_schedule,
            "Take a schedule away",
            None,
            scope=Scope.QUOTA,
            takes_path=forms.IdPath,
            status=204,
            writes=True,
            problems=(404,),
        ),
        Route(
            "GET",
            "/v1/governance/changes",
            quotas.changes,
            "Sealed changes",
            ChangesSeen,
            takes_query=forms.TenantPageQuery,
            problems=(404,),
        ),
    ]
