# SPDX-License-Identifier: Apache-2.0
"""Deterministic simulation: the agent's real tasks over a fake world, replayed from one seed.

Does not touch a file, a socket, a thread or the real clock.
"""
