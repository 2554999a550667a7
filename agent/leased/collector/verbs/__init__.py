# SPDX-License-Identifier: Apache-2.0
"""The verbs of `leased-collector`, by what they are about."""
