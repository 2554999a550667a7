# SPDX-License-Identifier: Apache-2.0
"""How callers and the agent talk: Varlink (UAPI.20) as values and bytes, with no socket in sight.

Rank 1, pure. `framing` cuts messages, `conversation` is one connection, `parameters` and `replies`
are what methods take and give, `calls` turns them into `terms` commands and back, `description` and
`idl/` are what the service says of itself.
"""
