# SPDX-License-Identifier: Apache-2.0
"""What the words mean: values only, no behaviour beyond their own consistency.

Rank 0. Every other room imports these modules; they import nothing of ours, and of the world only
msgspec.
"""
