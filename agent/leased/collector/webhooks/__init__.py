# SPDX-License-Identifier: Apache-2.0
"""Webhooks: what happened, told to other people's programs, signed, in order and at least once."""
