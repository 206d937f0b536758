"""A separable convolution as two convolutions: for backends that have no kernel of its own for it."""

from typing import Any

import numpy as np

from .separable_problem import SeparableProblem

__all__ = ["TwoCalls"]


class TwoCalls:
    """Two executables, the second of which reads what the first has written to an array between them."""

    def __init__(self, problem: SeparableProblem, runs: list[Any]):
        depthwise, _ = problem.parts()
        self.problem, self.runs = problem, runs
        self.between = depthwise.output_shape
        self.copies = (
            f"between the two: {problem.saved_bytes / 2e6:.3g} MB",
            *(copy for run in runs for copy in getattr(run, "copies", ())),
        )
        self.isa = getattr(runs[0], "isa", None)
        self.tile = "; ".join(str(run.tile) for run in runs if hasattr(run, "tile")) or None

    def __call__(
        self,
        output: np.ndarray,
        input: np.ndarray,
        weight: np.ndarray | None,
        bias: np.ndarray | None,
        pointwise_weight: np.ndarray | None,
        pointwise_bias: np.ndarray | None,
        threads: int,
    ) -> None:
        between = np.empty(self.between, output.dtype)
        self.runs[0](between, input, weight, bias, None, None, threads)
        self.runs[1](output, between, pointwise_weight, pointwise_bias, None, None, threads)

    def bind(
        self,
        weight: np.ndarray,
        bias: np.ndarray | None,
        pointwise_weight: np.ndarray,
        pointwise_bias: np.ndarray | None,
    ) -> "TwoCalls":
        """Return the two with their weights packed, where they can be."""
        constant = ((weight, bias), (pointwise_weight, pointwise_bias))
        return TwoCalls(
            self.problem,
            [
                run.bind(*arrays) if hasattr(run, "bind") else _Bound(run, *arrays)
                for run, arrays in zip(self.runs, constant, strict=True)
            ],
        )

    def scratch_bytes(self, threads: int) -> int:
        """Return the bytes of scratch of both, and those between them."""
        own = sum(run.scratch_bytes(threads) for run in self.runs if hasattr(run, "scratch_bytes"))
        return own + self.problem.saved_bytes // 2


class _Bound:
    """An executable that is called with these weights, whatever weights it is called with."""

    def __init__(self, run: Any, weight: np.ndarray, bias: np.ndarray | None):
        self.run, self.weight, self.bias = run, weight, bias

    def __call__(
        self,
        output: np.ndarray,
        input: np.ndarray,
        weight: Any,
        bias: Any,
        offset: Any,
        mask: Any,
        threads: int,
    ) -> None:
        self.run(output, input, self.weight, self.bias, offset, mask, threads)
