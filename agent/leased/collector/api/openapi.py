# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 document, made from the route table.

Rule: nothing is written twice: schemas are those of the structs, statuses those that a route can
give. Numbers that are decimals inside are numbers in the schema, because that is how they are sent.

Does not serve it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from leased.collector.api.problems import MEDIA_TYPE, TYPES, ProblemBody
from leased.collector.api.requests import TAGS
from leased.collector.api.routes import JSON, Route

VERSION: Final = "3.1.0"
_REF: Final = "#/components/schemas/{name}"
_ALWAYS: Final = (400, 401, 403, 406, 429, 500)
_IDEMPOTENCY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key with the same request is answered as the first time, for a day.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
}


def document(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """The whole document."""
    types: list[Any] = [ProblemBody]
    for route in routes:
        types += [one for one in (route.takes_path, route.takes_query) if one is not None]
        types += [one for one in (route.takes_body, route.answer) if _is_struct(one)]
    unique = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REF)
    refs = dict(zip(unique, schemas, strict=True))
    taken = [one for route in routes for one in (route.takes_path, route.takes_query)]
    hidden = frozenset(one.__name__ for one in taken if one is not None)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = _operation(route, refs, components)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    whole: dict[str, Any] = _plain(
        {
            "openapi": VERSION,
            "info": {
                "title": "leased-collector",
                "version": version,
                "description": "Governance and billing of a fleet of leased hosts.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "security": [{}, {"bearer": []}, {"certificate": []}],
            "paths": paths,
            "components": {
                "schemas": {name: one for name, one in components.items() if name not in hidden},
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "certificate": {"type": "mutualTLS"},
                },
            },
        }
    )
    return whole


def _operation(route: Route, refs: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    parameters = []
    for place, taken in (("path", route.takes_path), ("query", route.takes_query)):
        if taken is not None:
            parameters += _parameters(place, components[taken.__name__])
    if route.writes:
        parameters.append(_IDEMPOTENCY)
    if route.conditional and route.writes:
        parameters.append(_condition("If-Match", "Change it only if this is its entity tag."))
        parameters.append(_condition("If-None-Match", "Change it only if this is none of it."))
    elif route.conditional:
        parameters.append(_condition("If-None-Match", "Answer 304 if this is its entity tag."))
    found: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.about],
        "parameters": parameters,
        "responses": _responses(route, refs),
    }
    if route.takes_body is not None:
        found["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": refs[route.takes_body]}},
        }
    return found


def _parameters(place: str, schema: dict[str, Any]) -> list[dict[str, Any]]:
    required = schema.get("required", ())
    found = []
    for name, one in schema["properties"].items():
        schema_of_one = {key: value for key, value in one.items() if key != "description"}
        if place == "query" and schema_of_one.get("default", "") is None:
            schema_of_one = _without_null(schema_of_one)
        parameter = {
            "name": name,
            "in": place,
            "required": place == "path" or name in required,
            "schema": schema_of_one,
        }
        if "description" in one:
            parameter["description"] = one["description"]
        found.append(parameter)
    return found


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query has no way to say null: absent it is."""
    kept = {key: value for key, value in schema.items() if key not in ("default", "anyOf")}
    options = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    return {**kept, **(options[0] if len(options) == 1 else {"anyOf": options} if options else {})}


def _condition(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string", "pattern": TAGS},
    }


def _responses(route: Route, refs: dict[Any, Any]) -> dict[str, Any]:
    media = {JSON: {"schema": refs[route.answer]}} if _is_struct(route.answer) else {}
    for one in route.also:
        media[one] = {"schema": {"type": "string"}}
    ok: dict[str, Any] = {"description": "Done." if route.writes else "As it is."}
    if media:
        ok["content"] = media
    if route.conditional:
        ok["headers"] = {"ETag": {"schema": {"type": "string"}, "required": True}}
    found = {str(route.status): ok}
    if route.conditional and not route.writes:
        found["304"] = {"description": "Nothing has changed."}
    statuses = {*_ALWAYS, *route.problems}
    if route.takes_body is not None:
        statuses |= {408, 413, 415, 422}
    if route.takes_query is not None or route.conditional:
        statuses |= {422}
    if route.writes:
        statuses |= {409, 422}
        statuses |= {412} if route.conditional else set()
    for status in sorted(statuses):
        found[str(status)] = {
            "description": TYPES[status][1] + ".",
            "content": {MEDIA_TYPE: {"schema": refs[ProblemBody]}},
        }
    return found


def _is_struct(one: Any) -> bool:
    return isinstance(one, type) and issubclass(one, msgspec.Struct)


def _plain(schema: Any) -> Any:
    """Decimals are sent as numbers."""
    if isinstance(schema, dict):
        if schema.get("type") == "string" and schema.get("format") == "decimal":
            rest = {key: one for key, one in schema.items() if key not in ("type", "format")}
            return {"type": "number", **rest}
        return {key: _plain(one) for key, one in schema.items()}
    return [_plain(one) for one in schema] if isinstance(schema, list) else schema
