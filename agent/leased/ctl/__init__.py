# SPDX-License-Identifier: Apache-2.0
"""leasectl: the one command people type.

Rule: every verb has an example in its help, every list has --json with a version, every refusal
says which limit, how much is used and what to do next, and nothing is called done that was not read
back.
"""
