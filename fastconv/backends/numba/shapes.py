"""Widths of vectors and shapes of tiles, which lowering asks for and which need no compiler."""

import platform

__all__ = ["VECTOR_BYTES", "tile_shapes"]

VECTOR_BYTES = {"baseline": 16, "avx2": 32, "avx512": 64}


def many_registers(vector_bytes: int) -> bool:
    """Whether there are 32 vector registers of this width and not 16."""
    return vector_bytes == 64 or platform.machine() in ("aarch64", "arm64")


def tile_shapes(vector_bytes: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (rows, vectors) of the full tile with pixels in the vectors, and with channels in the vectors.

    24 accumulators fit 32 registers and 12 fit 16, beside the columns and a broadcast.
    """
    return ((8, 3), (6, 4)) if many_registers(vector_bytes) else ((4, 3), (6, 2))
