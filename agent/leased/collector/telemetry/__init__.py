# SPDX-License-Identifier: Apache-2.0
"""The fleet's telemetry: received over OTLP, rolled up, and asked: utilization, waste, heat."""
