"""How many blocks of a kernel a multiprocessor runs at a time, by the formula of NVIDIA's ``cuda_occupancy.h``.

What a multiprocessor has is told by the CUDA C++ Programming Guide, "Technical Specifications per Compute
Capability". Registers are given out by the warp, from the quarter of a multiprocessor that runs it; shared memory
by the block.
"""

from dataclasses import dataclass

__all__ = ["Multiprocessor", "Occupancy", "occupancy"]

WARP = 32
QUARTERS = 4
REGISTERS = 65536
REGISTER_UNIT = 256  # of a warp
REGISTERS_MOST = 255  # of a thread
KIB = 1024


@dataclass(frozen=True)
class Multiprocessor:
    """What blocks share: bytes of shared memory, threads and blocks at most; bytes that each block costs besides."""

    shared: int
    threads: int
    blocks: int
    reserved: int = KIB
    shared_unit: int = 128


MULTIPROCESSORS = {
    (7, 0): Multiprocessor(96 * KIB, 2048, 32, 0, 256),
    (7, 2): Multiprocessor(96 * KIB, 2048, 32, 0, 256),
    (7, 5): Multiprocessor(64 * KIB, 1024, 16, 0, 256),
    (8, 0): Multiprocessor(164 * KIB, 2048, 32),
    (8, 6): Multiprocessor(100 * KIB, 1536, 16),
    (8, 7): Multiprocessor(164 * KIB, 1536, 16),
    (8, 9): Multiprocessor(100 * KIB, 1536, 24),
    (9, 0): Multiprocessor(228 * KIB, 2048, 32),
    (10, 0): Multiprocessor(228 * KIB, 2048, 32),
    (10, 3): Multiprocessor(228 * KIB, 2048, 32),
    (11, 0): Multiprocessor(228 * KIB, 1536, 24),
    (12, 0): Multiprocessor(100 * KIB, 1536, 24),
    (12, 1): Multiprocessor(100 * KIB, 1536, 24),
}


@dataclass(frozen=True)
class Occupancy:
    """Blocks that run at a time, and their threads as a share of the most there can be."""

    blocks: int
    share: float

    def __str__(self) -> str:
        return f"{self.blocks} blocks on a multiprocessor, occupancy {self.share:.0%}"


def occupancy(capability: tuple[int, int], registers: int, shared: int, threads: int) -> Occupancy | None:
    """Return the occupancy of a kernel, or None for a compute capability that is not known here.

    Parameters
    ----------
    capability : tuple of int
        The compute capability, (8, 0) for sm_80.
    registers : int
        Of a thread.
    shared : int
        Bytes of a block.
    threads : int
        Of a block.
    """
    has = MULTIPROCESSORS.get(capability)
    if has is None:
        return None
    warps = -(-threads // WARP)
    of_warp = _rounded(registers * WARP, REGISTER_UNIT)
    # Before it runs a block, the hardware asks for registers as if its warps filled all quarters evenly.
    if registers > REGISTERS_MOST or of_warp * _rounded(warps, QUARTERS) > REGISTERS:
        return Occupancy(0, 0.0)
    limits = [has.blocks, has.threads // WARP // warps]
    if registers:
        limits.append(REGISTERS // QUARTERS // of_warp * QUARTERS // warps)
    if shared + has.reserved:
        limits.append(has.shared // _rounded(shared + has.reserved, has.shared_unit))
    blocks = min(limits)
    return Occupancy(blocks, blocks * warps * WARP / has.threads)


def _rounded(count: int, unit: int) -> int:
    return -(-count // unit) * unit
