"""Types of the compiled module; src/native.pyx is the source."""

from collections.abc import Sequence
from typing import Any

import numpy as np

JOIN: int
OPERAND_NAMES: tuple[str, ...]

def isas() -> tuple[str, ...]: ...
def engines(isa: str) -> dict[str, Any]: ...
def share_threads(parallel: int, most: int) -> None: ...
def word_tables() -> dict[str, tuple[str, ...]]: ...
def limits() -> dict[str, int]: ...
def limit_seconds(
    isa: str, limit: str, dtype: str, size: int, count: int, repeats: int, threads: int
) -> float: ...

class Program:
    isa: str
    tile: str
    copies: tuple[str, ...]

    def __init__(
        self,
        stages: Sequence[tuple[int, int, int, int, bool, bool]],
        words: Sequence[int],
        patches: Sequence[tuple[int, int, int, int]],
        *,
        images_per_chunk: int,
        scratch: int,
        thread: int,
        packed: int,
        work: float,
        tasks: int,
        input_bytes: int,
        keep: object = None,
        isa: str = "",
        tile: str = "",
        copies: tuple[str, ...] = (),
    ) -> None: ...
    def __call__(
        self,
        output: np.ndarray,
        input: np.ndarray,
        weight: np.ndarray | None,
        bias: np.ndarray | None,
        offset: np.ndarray | None,
        mask: np.ndarray | None,
        threads: int,
    ) -> None: ...
    def gradients(
        self,
        grads: dict[str, np.ndarray],
        grad_output: np.ndarray,
        input: np.ndarray,
        weight: np.ndarray | None,
        offset: np.ndarray,
        mask: np.ndarray | None,
        threads: int,
    ) -> None: ...
    def bind(self, weight: np.ndarray, bias: np.ndarray | None) -> Program: ...
    def scratch_bytes(self, threads: int = 1) -> int: ...
    def threads_used(self, images: int, threads: int) -> int: ...
