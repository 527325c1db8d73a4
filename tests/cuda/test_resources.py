"""The table of `make cuda`: what it reads from nvcc's and cuobjdump's texts, and the occupancy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "csrc" / "cuda"))
pytest.importorskip("resources", reason="the sources are not here")

import resources
import toolkit
from resources import Instructions, Launch, Usage

LOG = """\
ptxas info    : 28 bytes gmem
ptxas info    : Compiling entry function '_Z4gemmPf' for 'sm_90'
ptxas info    : Function properties for _Z4gemmPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 179 registers, used 1 barriers, 35968 bytes smem
ptxas info    : Compile time = 50.095 ms
ptxas info    : Compiling entry function '_Z4thinPf' for 'sm_75'
ptxas info    : Function properties for _Z4thinPf
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Function properties for _ZN3sumEf
    8 bytes stack frame, 8 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 380 bytes cmem[0]
"""

PTX = """\
.target sm_90
.extern .shared .align 16 .b8 dynamic_memory[];

.visible .entry _Z4gemmPf(
	.param .u64 _Z4gemmPf_param_0
)
.maxntid 128, 1, 1
.minnctapersm 2
{
	// begin inline asm
	// dynamic shared memory: 4096 bytes
	// end inline asm
	mov.u32 	%r3, dynamic_memory;
	ret;
}
.visible .entry _Z4evenPf(
	.param .u64 _Z4evenPf_param_0
)
.maxntid 16, 8, 2
{
	mov.u32 	%r3, dynamic_memory;
	ret;
}
.visible .entry _Z4thinPf(
	.param .u64 _Z4thinPf_param_0
)
{
	ret;
}
"""

SASS = """\
	code for sm_90
		Function : _Z4gemmPf
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;              /* 0x00000a00ff017b82 */
                                                                       /* 0x000fe20000000800 */
        /*0010*/                   LDG.E.128.CONSTANT R4, desc[UR8][R8.64] ;  /* 0x0000000804047981 */
        /*0020*/              @!P0 LDGSTS.E.BYPASS.128 [R3], [R4.64] ;  /* 0x0000000004037fae */
        /*0030*/                   LDSM.16.M88.4 R8, [R2] ;            /* 0x000000000208783b */
        /*0040*/               @P2 LDS.128 R12, [R16] ;                /* 0x00000000100c2984 */
        /*0050*/              @UP0 UMOV UR4, URZ ;                     /* 0x0000003f00047c82 */
        /*0060*/                   HMMA.16816.F32 R20, R8, R12, R20 ;  /* 0x0000000c0814723c */
        /*0070*/                   HMMA.1688.F32.TF32 R24, R8, R12, R24 ;  /* 0x0000000c0818723c */
        /*1080*/                   FFMA R0, R1, R2, R0 ;               /* 0x0000000201007223 */
        /*1090*/                   HFMA2.MMA R6, -RZ, RZ, 0, 0 ;       /* 0x00000000ff067435 */
        /*10a0*/                   HFMA2 R6, R7, R8, R9 ;              /* 0x0000000807067231 */
        /*10b0*/                   IMAD.MOV.U32 R5, RZ, RZ, RZ ;       /* 0x000000ffff057224 */
		..........
		Function : _Z4thinPf
        /*0000*/                   DFMA R0, R2, R4, R0 ;               /* 0x000000040200722b */
        /*0010*/                   EXIT ;                              /* 0x000000000000794d */
"""


def test_the_log_of_ptxas_gives_registers_shared_memory_and_spills() -> None:
    assert list(resources.usages(LOG)) == [
        ("_Z4gemmPf", "sm_90", Usage(registers=179, shared=35968, spilled=0)),
        ("_Z4thinPf", "sm_75", Usage(registers=32, shared=0, spilled=24)),
    ]


def test_the_ptx_gives_the_threads_of_a_block_and_its_dynamic_shared_memory() -> None:
    assert resources.launches(PTX) == {
        "_Z4gemmPf": Launch(threads=128, dynamic=4096),
        "_Z4evenPf": Launch(threads=256, dynamic=None),
        "_Z4thinPf": Launch(threads=1024, dynamic=0),
    }


def test_the_disassembly_gives_the_instructions_of_each_kind() -> None:
    assert resources.instructions(SASS) == {
        "_Z4gemmPf": Instructions(mma=2, fma=2, shared_loads=2, global_loads=1, copies=1),
        "_Z4thinPf": Instructions(mma=0, fma=1, shared_loads=0, global_loads=0, copies=0),
    }


@pytest.mark.parametrize(
    ("target", "threads", "registers", "shared", "blocks"),
    [
        ("sm_90", 256, 32, 0, 8),  # limited by the warps
        ("sm_90", 32, 16, 0, 32),  # by the blocks
        ("sm_86", 32, 16, 0, 16),
        ("sm_120", 32, 16, 0, 24),
        ("sm_90", 128, 179, 0, 2),  # by the registers: 2 warps of 5,888 in each part, 8 warps in all
        ("sm_90", 128, 128, 0, 4),
        ("sm_90", 128, 129, 0, 3),  # a warp gets 256 more registers for one more in a thread
        ("sm_80", 256, 255, 0, 1),
        ("sm_80", 96, 168, 0, 4),  # 12 warps: a part has room for 3, so 4 blocks of 3 warps
        ("sm_90", 128, 32, 48 * 1024, 4),  # by the shared memory: 49 KiB with what is reserved
        ("sm_90", 128, 32, 227 * 1024, 1),
        ("sm_90", 128, 32, 228 * 1024, 0),
        ("sm_75", 128, 32, 32 * 1024, 2),  # nothing is reserved
        ("sm_75", 64, 32, 16 * 1024 + 1, 3),
        ("sm_86", 128, 32, 49 * 1024, 2),
    ],
)
def test_the_blocks_of_a_multiprocessor(target: str, threads: int, registers: int, shared: int, blocks: int) -> None:
    assert resources.blocks_of_multiprocessor(target, threads, registers, shared) == blocks


def test_the_occupancy_counts_static_and_dynamic_shared_memory() -> None:
    usage = Usage(registers=32, shared=24 * 1024, spilled=0)
    assert resources.occupancy("sm_90", usage, Launch(128, 0)) == 9 * 4 / 64
    assert resources.occupancy("sm_90", usage, Launch(128, 24 * 1024)) == 4 * 4 / 64
    assert resources.occupancy("sm_90", usage, Launch(128, None)) is None


def test_every_architecture_has_its_limits() -> None:
    assert set(resources.MULTIPROCESSORS) == {f"sm_{name.replace('.', '')}" for name in toolkit.ARCHITECTURES}
