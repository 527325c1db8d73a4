"""The resources of compiled kernels: ptxas's log, the PTX and the disassembly, and the occupancy that follows.

compile.py prints them.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

#: Text in a kernel's PTX by which it names the bytes of its dynamic shared memory. The source writes it:
#: asm volatile("// dynamic shared memory: %0 bytes" ::"n"(bytes));
DYNAMIC = re.compile(r"// dynamic shared memory: (\d+) bytes")


@dataclass(frozen=True)
class Multiprocessor:
    """The limits of a multiprocessor: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

    warps: int
    blocks: int
    #: Bytes of shared memory of all blocks, and what the system reserves for each block. A block gets whole units.
    shared: int
    reserved: int
    unit: int = 128


MULTIPROCESSORS = {
    "sm_75": Multiprocessor(32, 16, 64 << 10, 0, 256),
    "sm_80": Multiprocessor(64, 32, 164 << 10, 1 << 10),
    "sm_86": Multiprocessor(48, 16, 100 << 10, 1 << 10),
    "sm_90": Multiprocessor(64, 32, 228 << 10, 1 << 10),
    "sm_100": Multiprocessor(64, 32, 228 << 10, 1 << 10),
    "sm_120": Multiprocessor(48, 24, 100 << 10, 1 << 10),
}
#: The registers of each of the four parts of a multiprocessor. A warp gets multiples of 256 registers.
PARTS, REGISTERS_OF_PART, REGISTER_UNIT = 4, 16384, 256


@dataclass(frozen=True)
class Usage:
    """The resources of a kernel on one architecture, as ptxas reports them. `shared` and `spilled` are bytes."""

    registers: int
    shared: int
    spilled: int


@dataclass(frozen=True)
class Launch:
    """The facts about a kernel's launches that the source states."""

    #: The most threads of a block (``__launch_bounds__``).
    threads: int
    #: The bytes of dynamic shared memory. None if the kernel uses it and does not say how much.
    dynamic: int | None


@dataclass(frozen=True)
class Instructions:
    """The instructions of a kernel's code by kind, each counted once. Loops and branches do not count."""

    #: Matrix products of tensor cores, and multiply-adds of all types.
    mma: int
    fma: int
    #: Loads from shared memory, from global memory to registers, and from global to shared memory (cp.async).
    shared_loads: int
    global_loads: int
    copies: int


def up_to(value: int, unit: int) -> int:
    """Round up to a multiple."""
    return -(-value // unit) * unit


def blocks_of_multiprocessor(target: str, threads: int, registers: int, shared: int) -> int:
    """Return how many blocks of a kernel one multiprocessor holds. The formula is from NVIDIA's cuda_occupancy.h.

    Args:
        target: the architecture, such as sm_90.
        threads: of a block.
        registers: of a thread.
        shared: bytes of a block, static and dynamic.
    """
    of = MULTIPROCESSORS[target]
    warps = up_to(threads, 32) // 32
    # A warp stays in its part of the multiprocessor.
    resident = PARTS * (REGISTERS_OF_PART // up_to(32 * max(registers, 1), REGISTER_UNIT))
    limits = [of.blocks, of.warps // warps, resident // warps]
    memory = up_to(shared + of.reserved, of.unit)
    if memory:
        limits.append(of.shared // memory)
    return min(limits)


def occupancy(target: str, usage: Usage, launch: Launch) -> float | None:
    """Return the share of a multiprocessor's warps that a kernel fills. None if its shared memory is not known."""
    if launch.dynamic is None:
        return None
    shared = usage.shared + launch.dynamic
    blocks = blocks_of_multiprocessor(target, launch.threads, usage.registers, shared)
    return blocks * (up_to(launch.threads, 32) // 32) / MULTIPROCESSORS[target].warps


def usages(log: str) -> Iterator[tuple[str, str, Usage]]:
    """Return the mangled name, the architecture and the usage of each kernel in a log of ptxas."""
    entries = re.split(r"ptxas info\s*: Compiling entry function ", log)[1:]
    for entry in entries:
        name, target = re.match(r"'(\S+)' for '(\S+)'", entry).groups()  # type: ignore[union-attr]
        # Functions that were not inlined into the kernel have their own lines. So spills are summed.
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", entry)))
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        assert registers is not None
        yield name, target, Usage(int(registers[1]), int(shared[1]) if shared else 0, spilled)


def launches(ptx: str) -> dict[str, Launch]:
    """Return the launch of each kernel in the PTX, by its mangled name."""
    dynamic_names = re.findall(r"^\.extern \.shared .*?(\w+)\[\];", ptx, re.MULTILINE)
    found = {}
    for entry in re.split(r"^\.visible \.entry |^\.entry |^\.weak \.entry ", ptx, flags=re.MULTILINE)[1:]:
        name = re.match(r"\w+", entry)[0]  # type: ignore[index]
        threads = re.search(r"^\.maxntid (\d+)(?:, (\d+), (\d+))?", entry, re.MULTILINE)
        count = 1024  # without __launch_bounds__, ptxas allows the largest block
        if threads is not None:
            count = int(threads[1]) * int(threads[2] or 1) * int(threads[3] or 1)
        said = DYNAMIC.search(entry)
        uses = any(re.search(rf"\b{variable}\b", entry) for variable in dynamic_names)
        found[name] = Launch(count, int(said[1]) if said else None if uses else 0)
    return found


#: Opcodes of SASS, without their suffixes, by kind. HFMA2.MMA and IMAD also move registers, so they are left out.
_KINDS = {
    "mma": ("HMMA", "IMMA", "DMMA", "BMMA", "QMMA", "OMMA", "HGMMA", "IGMMA", "UTCHMMA"),
    "fma": ("FFMA", "FFMA2", "DFMA", "HFMA2"),
    "shared_loads": ("LDS", "LDSM"),
    "global_loads": ("LDG", "LD"),
    "copies": ("LDGSTS",),
}


def instructions(sass: str) -> dict[str, Instructions]:
    """Return the instructions of each kernel in the output of cuobjdump -sass, by its mangled name."""
    found = {}
    for function in re.split(r"^\s*Function : ", sass, flags=re.MULTILINE)[1:]:
        name = re.match(r"\S+", function)[0]  # type: ignore[index]
        full = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)", function, re.MULTILINE)
        counts = Counter(opcode.split(".")[0] for opcode in full if not opcode.startswith("HFMA2.MMA"))
        found[name] = Instructions(**{kind: sum(counts[o] for o in opcodes) for kind, opcodes in _KINDS.items()})
    return found
