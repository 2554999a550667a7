# SPDX-License-Identifier: Apache-2.0
"""What is kept: raw segments, the manifest that counts them, parts of a fleet, backups."""
