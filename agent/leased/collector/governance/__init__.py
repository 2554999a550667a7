# SPDX-License-Identifier: Apache-2.0
"""Governance: who may have what on the fleet, by the API's word, compiled into the nodes' policy.

`dimensions` is the vocabulary, `quotas` what is in force, `windows` when schedules are open,
`register` the durable state with its sealed changes, `policies` what nodes are handed, `issuer` the
task that hands it to them.
"""
