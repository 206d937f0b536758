"""How near plans are to what the machine can do."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..analysis.cost import inbounds_flops
from ..plan import Plan
from .axes import ACCENT, MUTED, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Position", "intensity", "positions", "roofline"]

SECONDS = 0.2  # of calls of each plan, whose shortest counts


class Position(NamedTuple):
    """Where a plan stands: FLOP/byte, GFLOP/s, and the GFLOP/s that the machine allows for it."""

    problem: str
    groups: int
    kernel: str
    flops: int
    seconds: float
    intensity: float
    speed: float
    roof: float

    @property
    def share(self) -> float:
        """How much of the roof is reached."""
        return self.speed / self.roof

    @property
    def at_roof(self) -> float:
        """The seconds that it would take at the roof."""
        return self.flops / self.roof / 1e9


def roofline(
    plans: Plan | Sequence[Plan],
    *,
    seconds: Sequence[float] | None = None,
    limits: Mapping[str, Any] | None = None,
    threads: int = 1,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the speed of plans over their intensity, under the roof of the machine.

    Operations are those on the image, bytes the compulsory ones (:func:`fastconv.cost`); a kernel that needs fewer
    operations, such as Winograd's, can lie above the roof.

    Parameters
    ----------
    plans : Plan or sequence of Plan
    seconds : sequence of float, optional
        Time of a call of each; measured if not given.
    limits : dict, optional
        From :func:`fastconv.benchmark.machine.measure_limits`; measured if not given, in about two seconds.
    threads : int, optional
        Threads of the calls, and of the limits.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> from fastconv import plot
    >>> plan = fastconv.plan("conv2d", (1, 8, 16, 16), np.ones((8, 8, 3, 3), np.float32), backend="numpy")
    >>> limits = {
    ...     "peak_gflops": {"baseline": {"float32": {"1": 50.0}}},
    ...     "bandwidth_gbs": {"1": {"L1": 100.0, "DRAM": 10.0}},
    ...     "caches": {"L1": 32768},
    ... }
    >>> print(plot.text.roofline(plan, seconds=[1e-5], limits=limits))
    FLOP/byte  GFLOP/s  roof  share  plan
         13.5     22.6    50    45%  conv2d n1 c8 h16 w16 o8 k3 s1 p0 g1 float32 [numpy conv_direct]
    """
    limits = _limits(limits, threads)
    found = positions(plans, seconds, limits, threads)
    ax = new_axes(ax, 6, 4.2)
    dtype = _as_list(plans)[0].problem.dtype.name
    isas = limits["peak_gflops"]
    peak = max(isas[isa][dtype][str(threads)] for isa in isas)
    x = np.geomspace(
        min(0.1, *(0.5 * p.intensity for p in found)), max(1000, *(40 * p.intensity for p in found)), 200
    )
    levels = limits["bandwidth_gbs"][str(threads)].items()
    for grey, (level, bandwidth) in zip(np.linspace(0.3, 0.75, len(levels)), levels, strict=True):
        roof = np.minimum(peak, x * bandwidth)
        ax.plot(x, roof, color=str(grey), lw=1.2, zorder=1, label=f"{level} {bandwidth:.0f} GB/s")
    ax.plot(x[-1:], [peak], color=MUTED, lw=1.2, label=f"peak {peak:.0f} GFLOP/s")
    for number, p in enumerate(found, 1):
        label = f"{number}: {p.kernel}, {p.speed:.3g} GFLOP/s, {p.share:.0%} of the roof"
        ax.plot([p.intensity] * 2, [p.speed, p.roof], color=ACCENT, lw=0.8, ls=":", zorder=2)
        ax.scatter(p.intensity, p.speed, color=ACCENT, zorder=3, s=28, label=label)
        place: dict[str, Any] = {"xytext": (5, 3), "textcoords": "offset points"}
        ax.annotate(str(number), (p.intensity, p.speed), fontsize=8, color=ACCENT, **place)
    ax.legend(fontsize=7, loc="lower right")
    ax.set(xscale="log", yscale="log", xlabel="FLOP/byte", ylabel="GFLOP/s")
    ax.set_title(f"{dtype}, {threads} thread{'s' * (threads > 1)}", fontsize=10)
    return ax


def intensity(
    plans: Plan | Sequence[Plan],
    *,
    seconds: Sequence[float] | None = None,
    limits: Mapping[str, Any] | None = None,
    threads: int = 1,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the time of plans over their intensity, such as those of a layer with more and more groups.

    With g groups the work falls to 1/g, the traffic of the images stays: the intensity falls with g, and from some g
    on time is what memory takes. Two lines tell it: the first plan's time in proportion to the work, and the time of
    direct sums at the roof of the machine.

    Parameters
    ----------
    plans, seconds, limits, threads, ax
        As for :func:`roofline`.

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> from fastconv import plot
    >>> plans = [
    ...     fastconv.plan("conv2d", (1, 8, 16, 16), np.ones((8, 8 // g, 3, 3), np.float32), groups=g, backend="numpy")
    ...     for g in (1, 2, 8)
    ... ]
    >>> limits = {
    ...     "peak_gflops": {"baseline": {"float32": {"1": 50.0}}},
    ...     "bandwidth_gbs": {"1": {"L1": 20.0, "DRAM": 10.0}},
    ...     "caches": {"L1": 32768},
    ... }
    >>> print(plot.text.intensity(plans, seconds=[1e-5, 8e-6, 4e-6], limits=limits))
    groups  FLOP/byte      us  by work   at roof  plan
         1       13.5      10       10      4.52  conv2d n1 c8 h16 w16 o8 k3 s1 p0 g1 float32 [numpy conv_direct]
         2       7.23       8        5      2.26  conv2d n1 c8 h16 w16 o8 k3 s1 p0 g2 float32 [numpy conv_direct]
         8       1.91       4     1.25     0.738  conv2d n1 c8 h16 w16 o8 k3 s1 p0 g8 float32 [numpy conv_direct]
    """
    found = positions(plans, seconds, limits, threads)
    ax = new_axes(ax, 6, 4.2)
    at = [p.intensity for p in found]
    ax.plot(at, [1e6 * t for t in by_work(found)], color=MUTED, ls="--", lw=1.2, label="first time by work")
    ax.plot(at, [1e6 * p.at_roof for p in found], color=MUTED, lw=1.2, label="direct sums, at the roof")
    ax.plot(at, [1e6 * p.seconds for p in found], color=ACCENT, lw=0.8, marker="o", ms=5, label="time")
    for p in found:
        place: dict[str, Any] = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
        ax.annotate(f"g{p.groups}", (p.intensity, 1e6 * p.seconds), fontsize=8, **place)
    ax.legend(fontsize=7, loc="lower right")
    ax.set(xscale="log", yscale="log", xlabel="FLOP/byte", ylabel="microseconds a call")
    return ax


def by_work(found: Sequence[Position]) -> list[float]:
    """Return the first plan's seconds in proportion to the operations of each."""
    return [found[0].seconds * p.flops / found[0].flops for p in found]


def positions(
    plans: Plan | Sequence[Plan],
    seconds: Sequence[float] | None,
    limits: Mapping[str, Any] | None,
    threads: int,
) -> list[Position]:
    """Return where each plan stands, timed here if no times are given."""
    from ..benchmark.machine import bandwidth_gbs

    limits, plans = _limits(limits, threads), _as_list(plans)
    seconds = [_time(plan, threads) for plan in plans] if seconds is None else list(seconds)
    if len(seconds) != len(plans):
        raise ValueError(f"seconds must have one time for each of the {len(plans)} plans, got {len(seconds)}")
    found = []
    for plan, time_of_one in zip(plans, seconds, strict=True):
        problem = plan.problem
        flops, isas = inbounds_flops(problem), limits["peak_gflops"]
        peak = max(isas[isa][problem.dtype.name][str(threads)] for isa in isas)
        _, bandwidth = bandwidth_gbs(limits, problem.bytes, threads)
        intensity = flops / max(problem.bytes, 1)
        kernel = f"{plan.kernel.backend} {plan.kernel.name}"
        roof = min(peak, intensity * bandwidth)
        speed = flops / time_of_one / 1e9
        found.append(
            Position(str(problem), problem.groups, kernel, flops, time_of_one, intensity, speed, roof)
        )
    return found


def _as_list(plans: Plan | Sequence[Plan]) -> list[Plan]:
    return [plans] if isinstance(plans, Plan) else list(plans)


def _limits(limits: Mapping[str, Any] | None, threads: int) -> Mapping[str, Any]:
    if limits is not None:
        return limits
    from ..benchmark.machine import measure_limits

    return measure_limits(threads)


def _time(plan: Plan, threads: int) -> float:
    """Return the shortest time of a call, on noise and without displacements."""
    rng = np.random.default_rng(0)
    problem = plan.problem
    x = rng.standard_normal(plan.input_shape).astype(plan.dtype)
    operands = [x]
    if problem.offset_groups:
        shapes = [problem.offset_shape, *([problem.mask_shape] if problem.mask else [])]
        operands += [np.ones(_as_given(plan, shape), plan.dtype) for shape in shapes]
    out = np.empty(plan.output_shape, plan.dtype)
    best, end = np.inf, time.perf_counter() + SECONDS
    while time.perf_counter() < end or best == np.inf:
        begun = time.perf_counter()
        plan(*operands, out=out, num_threads=threads)
        best = min(best, time.perf_counter() - begun)
    return best


def _as_given(plan: Plan, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a batched, channels-first shape as the calls of the plan bring it."""
    if plan.problem.layout == "NHWC":
        shape = (shape[0], *shape[2:], shape[1])
    return shape[1:] if len(plan.input_shape) == plan.problem.ndim + 1 else shape
