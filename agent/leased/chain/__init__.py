# SPDX-License-Identifier: Apache-2.0
"""The audit chain as bytes: encode, seal, verify, sign, and decide what a crash has left. FORMAT.md
is the format.

Rank 1 and pure: imports `terms` only, and of the world msgspec, hashlib, zlib, struct and (in
`signing`) cryptography.
"""
