# SPDX-License-Identifier: Apache-2.0
"""The machine: what QEMU is told to build, for the tier's boots and for the workbench alike.

Two processors; three NUMA nodes that HMAT describes (DRAM, a slower one like memory behind CXL, a
faster one like HBM); an NVDIMM; a CXL type-3 device; two NVMe subsystems. Every disk is a sparse
file in the folder of its machine, so that it outlives a boot.

Rule: devices name their bus, or QEMU puts them behind the CXL host bridge, where nothing but CXL
can be.

Does not start anything, and knows nothing of phases.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20


class Node(NamedTuple):
    """A NUMA node: its memory, and what HMAT says of it as seen from the processors."""

    mib: int
    latency_ns: int
    bandwidth_mibps: int


NODES = (Node(1024, 90, 51_200), Node(384, 350, 20_480), Node(256, 60, 409_600))
"""Node 0 has both processors; the others have memory only."""

WITHOUT = ",".join(
    f"{feature}=off"
    for feature in (
        *("la57", "erms", "smap", "smep", "umip", "pku", "mpx"),
        *("avx", "avx2", "f16c", "fma", "vaes"),
    )
)
"""What is fast on a processor and slow on an emulated one: strings that are moved byte by byte (a
page is cleared so), checks that end a translated block or empty the
TLB at each system call, and registers that are saved at each switch."""

HUGE_PAGES = 24
"""Of 2 MiB, on each node."""

LABEL_MIB = 2
PMEM_MIB = 64 + LABEL_MIB
"""A region is a multiple of 16 MiB, and the label's place is taken off the NVDIMM. Each lease of it
is overwritten and read by the emulated processor, to the last byte: larger would prove the same."""

CXL_MIB = 256
SLOTS_MIB = 4096


class Namespace(NamedTuple):
    """An NVMe namespace: in which subsystem, and by which of its names a host can know it.

    QEMU 7.2 has no NGUID. One without EUI-64 and UUID is known by its serial number and nsid only.
    """

    subsystem: str
    nsid: int
    mib: int
    eui64: int = 0
    uuid: str = ""
    detached: bool = False
    shared: bool = True
    block: int = 512

    @property
    def name(self) -> str:
        """How its file is called."""
        return f"nvme-{self.subsystem}{self.nsid}"


CONTROLLERS = {"a": ("a0", "a1"), "b": ("b0",)}
"""Subsystem A is reached through two controllers, as a dual-ported drive is."""

NAMESPACES = (
    Namespace("a", 1, 64, 0x5254_0000_00A1_0001, "5f6c1fd6-0cf2-4a59-bd34-51bd59a1a001"),
    Namespace("a", 2, 48, 0x5254_0000_00A1_0002, block=4096),
    Namespace("a", 3, 32, 0, "5f6c1fd6-0cf2-4a59-bd34-51bd59a1a003", detached=True),
    Namespace("b", 1, 64, 0x5254_0000_00B1_0001, "5f6c1fd6-0cf2-4a59-bd34-51bd59b1b001"),
    Namespace("b", 2, 32),
)
"""Small, because tests search all of one for what must not be there any more."""


def arguments(folder: Path, disk: Path) -> list[str]:
    """All of it, with `disk` (qcow2) as its root."""
    words = ["-nodefaults", "-no-user-config", "-display", "none"]
    # One host thread for both processors: with two, QEMU 7.2 now and then goes on executing the
    # breakpoint by which the kernel changes its own code (measured: each 20th switch of cpu.max).
    words += ["-accel", "tcg,thread=single", "-cpu", f"max,{WITHOUT}", "-smp", "2"]
    words += ["-machine", "q35,hmat=on,nvdimm=on,cxl=on,graphics=off"]
    words += ["-machine", "cxl-fmw.0.targets.0=cxl,cxl-fmw.0.size=4G"]
    words += memory(folder) + cxl(folder) + drives(folder)
    words += ["-drive", f"if=none,id=root,file={disk},format=qcow2,cache=writeback,discard=ignore"]
    words += ["-device", "virtio-blk-pci,drive=root,bus=pcie.0"]
    words += ["-device", "virtio-rng-pci,bus=pcie.0"]
    return [*words, "-device", "virtio-serial-pci,id=serial,bus=pcie.0,max_ports=16"]


def memory(folder: Path) -> list[str]:
    """The nodes, what HMAT says of them, and the NVDIMM (on the slow node)."""
    own = sum(node.mib for node in NODES)
    words = ["-m", f"{own}M,slots=4,maxmem={own + SLOTS_MIB}M"]
    for number, node in enumerate(NODES):
        words += ["-object", f"memory-backend-ram,size={node.mib}M,id=memory{number}"]
        where = "cpus=0-1" if number == 0 else "initiator=0"
        words += ["-numa", f"node,nodeid={number},memdev=memory{number},{where}"]
    for number, node in enumerate(NODES):
        to = f"hmat-lb,initiator=0,target={number},hierarchy=memory"
        words += ["-numa", f"{to},data-type=access-latency,latency={node.latency_ns}"]
        rate = f"data-type=access-bandwidth,bandwidth={node.bandwidth_mibps}M"
        words += ["-numa", f"{to},{rate}"]
    words += ["-object", backend(folder, "pmem", PMEM_MIB)]
    return [*words, "-device", f"nvdimm,id=nvdimm,memdev=pmem,label-size={LABEL_MIB * MIB},node=1"]


def cxl(folder: Path) -> list[str]:
    """A type-3 device behind a root port of a host bridge of its own."""
    words = ["-device", "pxb-cxl,id=cxl,bus=pcie.0,bus_nr=64"]
    words += ["-device", "cxl-rp,id=cxl-port,bus=cxl,port=0,chassis=0,slot=2"]
    words += ["-object", backend(folder, "cxl", CXL_MIB), "-object", backend(folder, "lsa", 1)]
    return [*words, "-device", "cxl-type3,id=cxl-memory,bus=cxl-port,memdev=cxl,lsa=lsa"]


def drives(folder: Path) -> list[str]:
    """The subsystems, their controllers, their namespaces."""
    words: list[str] = []
    for subsystem, controllers in CONTROLLERS.items():
        words += ["-device", f"nvme-subsys,id=subsys-{subsystem},nqn=leased-{subsystem}"]
        for name in controllers:
            device = f"nvme,id={name},serial=leased-{subsystem},subsys=subsys-{subsystem}"
            words += ["-device", f"{device},bus=pcie.0"]
    for one in NAMESPACES:
        file = f"if=none,id={one.name},file={folder / one.name},format=raw,discard=unmap"
        words += ["-drive", file, "-device", ",".join(namespace(one))]
    return words


def namespace(one: Namespace) -> list[str]:
    """A namespace's device."""
    device = ["nvme-ns", f"drive={one.name}", f"nsid={one.nsid}"]
    device += [f"bus={CONTROLLERS[one.subsystem][0]}", f"logical_block_size={one.block}"]
    device += [f"physical_block_size={one.block}", f"uuid={one.uuid or NO_UUID}"]
    device += [f"eui64={one.eui64}"] if one.eui64 else ["eui64-default=off"]
    device += ["detached=on"] if one.detached else [f"shared={'on' if one.shared else 'off'}"]
    return device


NO_UUID = "00000000-0000-0000-0000-000000000000"


def backend(folder: Path, name: str, mib: int) -> str:
    """Memory that is a file, and so keeps its contents from one boot to the next."""
    return f"memory-backend-file,id={name},mem-path={folder / name},size={mib}M,share=on"


def make_disks(folder: Path) -> None:
    """The files that `arguments` names, empty; those that are there stay as they are."""
    sizes = {one.name: one.mib for one in NAMESPACES} | {"pmem": PMEM_MIB, "cxl": CXL_MIB, "lsa": 1}
    for name, mib in sizes.items():
        with (folder / name).open("ab") as file:
            file.truncate(mib * MIB)


def command_line(*words: str) -> str:
    """The kernel's: huge pages on every node, every controller on v2."""
    pages = ",".join(f"{number}:{HUGE_PAGES}" for number in range(len(NODES)))
    return " ".join(
        (
            f"root=/dev/vda rw console=ttyS0 quiet panic=-1 hugepages={pages}",
            "systemd.unified_cgroup_hierarchy=1 systemd.show_status=0 sysrq_always_enabled=1",
            # Nobody attacks an emulated processor by what it guesses, and nobody reads the audit,
            # for which every system call would take a longer way.
            "mitigations=off init_on_alloc=0 audit=0",
            *words,
        )
    )
