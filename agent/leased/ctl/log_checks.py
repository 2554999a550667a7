# SPDX-License-Identifier: Apache-2.0
"""What the doctor looks at where the log is bound to a TPM's counter: whether that can be asked,
and what it says beside what the log says.

Rule: the counter is read and never advanced. A log that the agent would refuse is a failure here.

Does not verify the log (`leasectl verify` does).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from leased.chain.segment import parse_log_id
from leased.ctl.findings import Finding, Grade, read_text
from leased.ctl.service_checks import CONFIG_FILE, STATE_DIRECTORY
from leased.durable.anchor import read_slots
from leased.durable.binding import Binding, Standing
from leased.durable.files import DirectoryDisk
from leased.durable.genesis import LOG_ID
from leased.durable.tpm import DEFINE, KEYS, CounterConfig, TpmCounter, check
from leased.terms.errors import ChainError, ConfigError, LeasedError
from leased.terms.reading import fields, read_toml

TOPIC: Final = "counter"
_EXAMPLE: Final = "0x01800a11"


def counter(root: Path) -> Iterator[Finding]:
    """The counter of `[log.counter]`."""
    try:
        table = read_toml(read_text(root / CONFIG_FILE) or "")
    except ConfigError:
        return  # `timing` says so
    try:
        wanted = table.get("log", {}).get("counter", {})
        settings = check(CounterConfig(**fields(wanted, KEYS, "log.counter.")))
    except ConfigError as error:
        yield Finding(Grade.FAIL, TOPIC, f"/{CONFIG_FILE}: {error}")
        return
    if not settings.on:
        advice = f"to change that: `{DEFINE.format(_EXAMPLE)}`, and [log.counter] of leased.toml"
        text = "none: only a collector finds an earlier state of the log that was put back"
        yield Finding(Grade.NOTE, TOPIC, text, advice)
        return
    directory = Path(str(table.get("paths", {}).get("state_dir", f"/{STATE_DIRECTORY}"))) / "audit"
    yield _judge(settings, root / str(directory).lstrip("/"))


def _judge(settings: CounterConfig, directory: Path) -> Finding:
    """What the counter and the log in `directory` say of each other."""
    tpm = TpmCounter(settings, None)
    try:
        recorded = _recorded(directory)
        standing = Binding(tpm, accept=settings.accept).judge(recorded, str(directory))
    except ChainError as error:
        return Finding(Grade.FAIL, TOPIC, f"{error.verdict}: {error.why}")
    except LeasedError as error:
        return Finding(Grade.FAIL, TOPIC, str(error), "the agent does not serve like this")
    except OSError as error:
        text = f"{tpm} can be asked; the log cannot be read ({error.strerror})"
        return Finding(Grade.NOTE, TOPIC, text, "run this as root")
    if standing is Standing.UNBOUND:
        return Finding(Grade.OK, TOPIC, f"{tpm} was never advanced; the next start binds the log")
    return Finding(Grade.OK, TOPIC, f"{tpm} and the log agree on {recorded}")


def _recorded(directory: Path) -> int:
    """What the log in `directory` says; 0 where there is none. Raises OSError, ChainError."""
    if not directory.exists():
        return 0
    with closing(DirectoryDisk(directory)) as disk:
        if LOG_ID not in disk.names():
            return 0
        log_id = parse_log_id(disk.read(LOG_ID), LOG_ID).log_id
        slots = [slot for slot in read_slots(disk, direct=False) if slot and slot.log_id == log_id]
        newest = max(slots, key=lambda slot: slot.generation, default=None)
        return newest.tpm_counter if newest is not None else 0
