# SPDX-License-Identifier: Apache-2.0
"""The hands: everything that touches the host's clock, memory, cgroups, devices and processes.

Rule: rank 3; imports `terms` and `ports`. The Trio process calls no driver: what may block is done
by the worker processes behind `devices.Devices`.

Does not decide what is granted (`lessor`) and does not cut at the deadline (the reaper).
"""
