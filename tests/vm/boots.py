# SPDX-License-Identifier: Apache-2.0
"""The tier's boots, seen from the host: two chains of them, side by side, each on a disk that grows
from boot to boot.

Rule: a phase that did not say that it ended, or that ended without a single test, is a failure,
however many of the others passed. Each boot writes to an overlay of its own above the disk before
it, so the power cut loses what QEMU had not been asked to flush: with the copy-on-write format,
data whose place was not flushed is gone, as it is with a disk's own cache.

Does not build the image (`tests/vm/run`) and does not judge the agent (`tests/vm/guest`).
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from instance import Image, Instance, Share

TOP = Path(__file__).resolve().parents[2]
INSIDE = Path("/usr/src/leased")
GUEST = INSIDE / "tests/vm/guest"
SUITE = str(GUEST / "suite")

PHASE_SECONDS_MAX = 3600
DOWN_SECONDS_MAX = 600
"""These tell a hang from slow work; how long the tier may take is `tests/tiers.py`'s."""

STORM_GRANTS = 120
"""Acknowledged grants before the plug is pulled: under emulation a few seconds of full load."""

LONG_FORMS = (
    *("LEASED_CYCLES", "LEASED_CYCLES_SEED", "LEASED_POWER_CUTS"),
    *("LEASED_CRASH_SEED", "LEASED_TURNS"),
)
"""What of the environment says how much is tried, inside too."""

CHAINS = {"day": ("first", "second", "third"), "hardware": ("hardware", "rebooted")}


class Tally:
    """What was found so far, printed as it comes."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0
        self.skipped = 0
        self._turn = threading.Lock()

    def count(self, outcome: str, name: str, *, seconds: float = 0.0, why: str = "") -> None:
        """One test's end."""
        mark = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip"}[outcome]
        with self._turn:
            setattr(self, outcome, getattr(self, outcome) + 1)
            print(f"  {mark} {name} ({seconds:.1f} s)", flush=True)
            if why:
                text = "".join(f"       {line}\n" for line in why.splitlines())
                print(text, end="", flush=True)

    def say(self, text: str) -> None:
        """A line that counts nothing."""
        with self._turn:
            print(f"  {text}", flush=True)


class Phase:
    """One boot, and what its suite tells."""

    def __init__(self, name: str, folder: Path, tally: Tally, *, wanted: bool) -> None:
        self.name = name
        self.wanted = wanted
        """Whether somebody wants its journal anyway."""
        self.folder = folder
        self.tally = tally
        self.instance = Instance(folder / name)
        self.told = (folder / f"{name}.results").open("wb")
        self.counted = 0
        self.ended = False
        self.failed = False
        self.acked: list[dict[str, Any]] = []
        self.began = time.monotonic()
        self._rest = b""

    def boot(self, image: Image) -> bool:
        """Start it; True if it takes orders."""
        share = Share(TOP, INSIDE, writable=False)
        try:
            self.instance.start(image, share, f"leased.phase={self.name}")
        except TimeoutError as error:
            self.fail(str(error))
            return False
        return True

    def run(self, words: list[str], env: dict[str, str], seconds_max: float) -> int:
        """An order that tells what it found, line by line; its status."""
        with (self.folder / f"{self.name}.said").open("ab") as said:
            return self.instance.order(
                words, out=self.take, err=said.write, env=env, seconds_max=seconds_max
            )

    def take(self, data: bytes) -> None:
        """What the suite tells."""
        self.told.write(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        for raw in whole:
            line = heard(raw)
            if line["event"] == "test":
                self.counted += 1
                self.failed = self.failed or line["outcome"] == "failed"
                name = f"{self.name}: {line['name']}"
                self.tally.count(line["outcome"], name, seconds=line["seconds"], why=line["why"])
            elif line["event"] == "note":
                self.tally.say(f"     {line['text']}")
            elif line["event"] == "verdict":
                del line["event"]
                with (self.folder / f"{self.name}.verdicts").open("a") as file:
                    file.write(json.dumps(line) + "\n")
            elif line["event"] == "acked":
                self.acked.append(line)
                if len(self.acked) == STORM_GRANTS:
                    self.instance.stop()
            elif line["event"] == "ended":
                self.ended = True

    def suite(self, env: dict[str, str]) -> bool:
        """Run this phase's tests; True if they ran to their end."""
        words = [SUITE, self.name]
        status = self.run(words, env, PHASE_SECONDS_MAX)
        if self.ended and not self.counted and "LEASED_MATCH" in env:
            self.tally.say(f"     {self.name}: no test of it matches")
            return True
        if not self.ended or not self.counted:
            self.interrogate()
            said = (self.folder / f"{self.name}.said").read_text("utf-8", "replace")[-2000:]
            self.fail(f"status {status}, {self.counted} tests\n{said}\n{self.console_end()}")
        if self.wanted or self.failed:
            self.journal()
        return self.ended and self.counted > 0

    def fail(self, why: str) -> None:
        """The phase itself failed."""
        self.failed = True
        self.tally.count("failed", f"phase {self.name}: did not run to its end", why=why)

    def journal(self) -> None:
        """The boot's journal, for whoever has to find out why."""
        words = ["journalctl", "-b", "--no-pager", "-o", "short-monotonic"]
        with (self.folder / f"{self.name}.journal").open("wb") as file:
            self.instance.order(words, out=file.write, seconds_max=300)

    def down(self, verb: str) -> None:
        """Have it go down by itself, and see that it does."""
        self.instance.order(["systemctl", "--no-block", verb], seconds_max=120)
        if not self.instance.ended(DOWN_SECONDS_MAX):
            self.interrogate()
            self.fail(f"systemctl {verb}: still up\n{self.console_end()}")

    def interrogate(self) -> None:
        """Have a guest that makes no progress say on its console what every processor does and
        which tasks are blocked (the kernel's own keys)."""
        if self.instance.pid():
            keys = (f"sendkey alt-sysrq-{key}" for key in "lwm")
            said = self.instance.monitor("info registers -a", *keys)
            (self.folder / f"{self.name}.registers").write_text(said)

    def console_end(self, lines: int = 25) -> str:
        """The last lines of the serial console."""
        return "\n".join(self.instance.console().splitlines()[-lines:])

    def close(self) -> None:
        """The machine is off from here on; its disk stays."""
        self.instance.stop()
        self.told.close()
        seconds, busy = time.monotonic() - self.began, self.instance.cpu_seconds
        self.tally.say(f"phase {self.name}: {seconds:.0f} s, {busy:.0f} s of a processor")


def heard(raw: bytes) -> dict[str, Any]:
    """A line of the suite; what is none is worth reading all the same."""
    with contextlib.suppress(ValueError):
        line = json.loads(raw)
        if isinstance(line, dict) and "event" in line:
            return line
    return {"event": "note", "text": raw.decode("utf-8", "replace")}


class Chain:
    """Boots one after the other on one disk."""

    def __init__(self, options: argparse.Namespace, folder: Path, tally: Tally) -> None:
        self.options = options
        self.folder = folder
        self.tally = tally
        self.image = Image(options.image, "raw", options.kernel, options.initrd)
        self.env = {name: os.environ[name] for name in LONG_FORMS if name in os.environ}
        if options.match:
            self.env["LEASED_MATCH"] = options.match

    def phase(self, name: str, end: Callable[[Phase], None], env: dict[str, str]) -> bool:
        """One boot from start to end; True if its suite ran to its end."""
        wanted = bool(self.options.results or self.options.keep)
        phase = Phase(name, self.folder, self.tally, wanted=wanted)
        try:
            ran = phase.boot(self.image) and phase.suite(self.env | env)
            if ran:
                end(phase)
        finally:
            phase.close()
        self.image = self.image._replace(root=str(phase.instance.folder / "root"))
        self.image = self.image._replace(root_kind="qcow2")
        hand_on_disks(phase.instance.folder, self.folder / following(name))
        return ran

    def day(self) -> None:
        """A day's work and a clean reboot; power cuts under file systems, and a grant storm that
        ends with one; the morning after."""
        acked: list[dict[str, Any]] = []

        def cut(phase: Phase) -> None:
            acked.extend(storm(phase))

        if not self.phase("first", lambda phase: phase.down("reboot"), {}):
            return
        self.phase("second", cut, {})
        self.phase("third", lambda phase: phase.down("poweroff"), {"LEASED_ACKED": packed(acked)})

    def hardware(self) -> None:
        """Every kind of device, hostile holders on them, and what a reboot leaves of it."""
        if self.phase("hardware", lambda phase: phase.down("reboot"), {}):
            self.phase("rebooted", lambda phase: phase.down("poweroff"), {})


def following(name: str) -> str:
    """The phase that comes after, or a folder that nobody looks at."""
    for phases in CHAINS.values():
        if name in phases[:-1]:
            return phases[phases.index(name) + 1]
    return "after"


def hand_on_disks(before: Path, after: Path) -> None:
    """The drives and the NVDIMM keep what is on them; the root is an overlay (see `start`)."""
    after.mkdir(exist_ok=True)
    for path in before.iterdir():
        if path.name.startswith("nvme-") or path.name in ("pmem", "cxl", "lsa"):
            path.rename(after / path.name)


def packed(acked: list[dict[str, Any]]) -> str:
    """What was acknowledged, for the environment of the next suite."""
    return json.dumps(
        [{name: one[name] for name in ("lease_id", "sequence", "hash")} for one in acked]
    )


def storm(phase: Phase) -> list[dict[str, Any]]:
    """Have grants stormed and cut the power in the middle of it. Returns what was acknowledged."""
    began = time.monotonic()
    phase.run(["/opt/suite/bin/python", str(GUEST / "storm.py")], {}, PHASE_SECONDS_MAX)
    name = "second: power cut in the middle of a grant storm"
    if len(phase.acked) >= STORM_GRANTS:
        phase.tally.count("passed", name, seconds=time.monotonic() - began)
    else:
        why = f"{len(phase.acked)} grants were acknowledged\n{phase.console_end()}"
        phase.tally.count("failed", name, why=why)
    return phase.acked


def compiled() -> None:
    """Compile what the guests' own processes import of the tree: they are many, and an emulated
    processor would do it for each anew, as it may not write there."""
    tests = re.compile(r"/test_[^/]*$")
    compileall.compile_dir(TOP / "tests", quiet=2, rx=tests)


def run_chains(options: argparse.Namespace, folder: Path) -> Tally:
    """All that were asked for, each in a thread: a machine under emulation keeps one core busy.
    One that breaks is a failure, and the other goes on."""
    tally = Tally()
    with ThreadPoolExecutor() as pool:
        running = {}
        for name in options.chain or CHAINS:
            (folder / name).mkdir()
            chain = Chain(options, folder / name, tally)
            running[name] = pool.submit(getattr(chain, name))
        try:
            for name, chain_run in running.items():
                error = chain_run.exception()
                if error is not None:
                    why = "".join(traceback.format_exception(error))
                    tally.count("failed", f"chain {name}", why=why)
        except (SystemExit, KeyboardInterrupt):
            # The pool waits for its threads, and they for their machines.
            stop_all(folder)
            raise
    return tally


def keep_results(folder: Path, results: Path) -> None:
    """What the guests told, and their journals and consoles, without their disks."""
    results.mkdir(parents=True, exist_ok=True)
    for kind in ("results", "said", "journal", "registers"):
        for path in folder.glob(f"*/*.{kind}"):
            shutil.copy(path, results)
    found = sorted(folder.glob("*/*.verdicts"))
    (results / "verdicts.jsonl").write_text("".join(path.read_text() for path in found))
    for path in folder.glob("*/*/console"):
        shutil.copy(path, results / f"{path.parent.name}.console")


def stop_all(folder: Path) -> None:
    """No machine outlives us."""
    for path in folder.glob("*/*"):
        if path.is_dir():
            Instance(path).stop()


def main() -> int:
    """Run, say, count; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("image", "kernel", "initrd"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--results")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--chain", action="append", choices=list(CHAINS))
    parser.add_argument("-k", dest="match", default="")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="leased-vm-"))
    compiled()
    try:
        tally = run_chains(options, folder)
    finally:
        stop_all(folder)
        if options.results:
            keep_results(folder, Path(options.results))
        if options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    print(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped")
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C.UTF-8")
    sys.exit(main())
