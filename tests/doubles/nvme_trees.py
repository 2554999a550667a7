# SPDX-License-Identifier: Apache-2.0
"""NVMe drives as sysfs and their own pages show them, from what real ones were seen to say.

Rule: a tree or a page is written from a few facts, so that a test names what matters to it and the
rest is as it was captured (QEMU's two drives of `tests/vm`, and data sheets).

Does not imitate a drive: nothing here answers a command.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from leased.hardware.block.namespaces import Controller, Namespace

PAGE_BYTES = 4096


def write(root: Path, files: Mapping[str, str]) -> None:
    """Files of a tree."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", "utf-8")


def subsystem(root: Path, number: int, *, nqn: str, controllers: int = 1, **facts: str) -> None:
    """A drive: its subsystem and its controllers nvme<number>, nvme<number + 1>, ..."""
    place = f"sys/class/nvme-subsystem/nvme-subsys{number}"
    said = {
        "subsysnqn": nqn,
        "model": facts.get("model", "QEMU NVMe Ctrl                          "),
        "serial": facts.get("serial", "leased-a            "),
        "firmware_rev": facts.get("firmware", "7.2.22  "),
    }
    write(root, {f"{place}/{name}": text for name, text in said.items()})
    for index in range(controllers):
        controller = f"sys/class/nvme/nvme{number + index}"
        write(
            root,
            {
                f"{controller}/subsysnqn": nqn,
                f"{controller}/cntlid": str(index),
                f"{controller}/dev": f"240:{number + index}",
                f"{controller}/transport": facts.get("transport", "pcie"),
                f"{controller}/numa_node": facts.get("node", "-1"),
                f"{controller}/state": facts.get("state", "live"),
            },
        )


def namespace(
    root: Path, drive: int, nsid: int, *, number: tuple[int, int], mib: int = 128, **facts: str
) -> str:
    """The head of a namespace, nvme<drive>n<nsid>, and a hidden path to it; the head's name."""
    name = f"nvme{drive}n{nsid}"
    for head, hidden in ((name, "0"), (f"nvme{drive}c{drive}n{nsid}", "1")):
        place = f"sys/block/{head}"
        write(
            root,
            {
                f"{place}/nsid": str(nsid),
                f"{place}/nguid": facts.get("nguid", ""),
                f"{place}/eui": facts.get("eui", ""),
                f"{place}/uuid": facts.get("uuid", ""),
                f"{place}/wwid": facts.get("wwid", f"nvme.1b36-00-00-{nsid:08x}"),
                f"{place}/size": str(mib << 11),
                f"{place}/diskseq": facts.get("diskseq", str(10 + nsid)),
                f"{place}/ro": facts.get("ro", "0"),
                f"{place}/hidden": hidden,
                f"{place}/queue/logical_block_size": facts.get("lba", "512"),
            },
        )
        device = root / place / "device"
        device.symlink_to(f"../../class/nvme-subsystem/nvme-subsys{drive}")
    write(root, {f"sys/block/{name}/dev": "{}:{}".format(*number)})
    by_number = root / "sys/dev/block"
    by_number.mkdir(parents=True, exist_ok=True)
    (by_number / "{}:{}".format(*number)).symlink_to(f"../../block/{name}")
    return name


def partition(root: Path, disk: str, index: int, number: tuple[int, int]) -> str:
    """A partition of a namespace; its name."""
    name = f"{disk}p{index}"
    place = f"sys/block/{disk}/{name}"
    write(root, {f"{place}/partition": str(index), f"{place}/dev": "{}:{}".format(*number)})
    (root / "sys/dev/block" / "{}:{}".format(*number)).symlink_to(f"../../block/{disk}/{name}")
    return name


def qemu(root: Path) -> None:
    """The machine of `tests/vm`, without what is detached."""
    subsystem(root, 0, nqn="nqn.2019-08.org.qemu:leased-a", controllers=2)
    uuid = "5f6c1fd6-0cf2-4a59-bd34-51bd59a1a001"
    eui = "52 54 00 00 00 a1 00 01"
    namespace(root, 0, 1, number=(259, 5), eui=eui, uuid=uuid, wwid=f"uuid.{uuid}")
    eui = "52 54 00 00 00 a1 00 02"
    namespace(root, 0, 2, number=(259, 8), eui=eui, mib=96, lba="4096")
    subsystem(root, 2, nqn="nqn.2019-08.org.qemu:leased-b", serial="leased-b            ")
    wwid = "nvme.1b36-6c65617365642d62-51454d55204e564d65204374726c-00000002"
    namespace(root, 2, 2, number=(259, 3), wwid=wwid, mib=64)


def seen(identity: str = "aa01", **changed: object) -> Namespace:
    """A namespace as the survey gets it."""
    controller = Controller("nvme0", 0, "pcie", 0, "live")
    facts: dict[str, object] = {
        "identity": identity,
        "name": "nvme0n1",
        "number": (259, 1),
        "nsid": 1,
        "size_bytes": 1 << 30,
        "lba_bytes": 512,
        "read_only": False,
        "diskseq": 9,
        "nqn": "nqn.a",
        "model": "Fast Drive",
        "serial": "S1",
        "firmware": "1.0",
        "controllers": (controller,),
    }
    return Namespace(**{**facts, **changed})  # type: ignore[arg-type]


# ---- pages -------------------------------------------------------------------------------------


def page(fields: Mapping[int, bytes]) -> bytes:
    """A page of zeroes with something at some offsets."""
    data = bytearray(PAGE_BYTES)
    for offset, value in fields.items():
        data[offset : offset + len(value)] = value
    return bytes(data)


def controller_page(
    *, oacs: int = 0x10A, sanicap: int = 0, oncs: int = 0x15D, fna: int = 0
) -> bytes:
    """Identify Controller; by default as QEMU 7.2 says it."""
    return page(
        {
            256: struct.pack("<H", oacs),
            328: struct.pack("<I", sanicap),
            520: struct.pack("<H", oncs),
            524: bytes([fna]),
        }
    )


def effects_page(*opcodes: int) -> bytes:
    """The log of supported commands, with these admin commands in it."""
    return page({4 * opcode: struct.pack("<I", 3) for opcode in opcodes})


def namespace_page(
    *, blocks: int = 262144, formats: int = 7, used: int = 0, shift: int = 9, metadata: int = 0
) -> bytes:
    """Identify Namespace, its LBA formats all alike but for the one in use."""
    index = used & 0xF | ((used >> 5 & 3) << 4 if formats > 15 else 0)
    return page(
        {
            0: struct.pack("<QQQ", blocks, blocks, blocks),
            25: bytes([formats, used]),
            30: b"\x01",
            128 + 4 * index: struct.pack("<HBB", metadata, shift, 0),
        }
    )
