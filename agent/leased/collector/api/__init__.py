# SPDX-License-Identifier: Apache-2.0
"""The HTTP API: a table of routes, each a function of its typed request; everything else about HTTP
(authentication, pace, idempotency, conditions, problems, OpenAPI) is made once, from the table.
"""
