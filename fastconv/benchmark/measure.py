"""How times are taken: implementations in turn, in short blocks, on a machine that is watched.

Whatever disturbs a machine for a second, disturbs all implementations of a layer alike when each has a block of
about 28 ms before the next one's turn. Between blocks there is idleness until the threads of the library before
have gone to sleep, because waiting they would slow the next (OpenMP's spin for 8 ms, ONNX Runtime's for 45 ms); the
order is rotated from round to round. After each round it is asked whether others had the cores meanwhile, or share
them now (see `QuietCheck`); if so, the round is repeated.

Where the arrays of an implementation lie can move its time by a quarter: lines that share a place in a cache, loads
that wait for stores a multiple of 4096 bytes away. So an implementation may come in several copies with arrays of
their own, which take turns from round to round; its minimum is that of the luckier one.
"""

import os
import statistics
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["QuietCheck", "Samples", "interleave"]

Call = Callable[[], Any]

BLOCK_SECONDS = 0.028
GAP_SECONDS = 0.005  # longer than the tick after which the system knows what a running thread has used
MOST_GAP_SECONDS = 0.15
IDLE_SHARE = 0.2
ROUNDS = 7
LEAST_ROUNDS = 2  # for what takes longer than SLOW_SECONDS a call
SLOW_SECONDS = 0.3
SHORT_SECONDS = 50e-6  # calls shorter than this are timed several at once, so that the clock costs nothing
WARM_UP_SHARE = 0.1  # of a block: caches and clock rate are back before anything counts

SPIN_STEPS = 10_000  # 0.1 ms
SPINS = 20
SPIN_TOLERANCE = 1.5
OTHERS_SHARE = 0.05  # of the time, on all cores together
OTHERS_SECONDS = 0.03  # the system counts in ticks of 10 ms, on each core


@dataclass
class Samples:
    """What one implementation's blocks gave, in seconds a call.

    Attributes
    ----------
    minima, medians : list of float
        One a block.
    disturbed : bool
        Whether a round stayed noisy although it was repeated.
    """

    minima: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    disturbed: bool = False

    @property
    def minimum(self) -> float:
        return min(self.minima)

    @property
    def median(self) -> float:
        return statistics.median(self.medians)


def interleave(
    calls: Mapping[str, Call | Sequence[Call]],
    *,
    rounds: int = ROUNDS,
    block: float = BLOCK_SECONDS,
    gap: float = GAP_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
    is_quiet: Callable[[], bool] | None = None,
) -> dict[str, Samples]:
    """Time several callables against each other.

    Parameters
    ----------
    calls : mapping of str to callable, or to several
        Several do the same with arrays in different places, and take turns from round to round.
    rounds : int
        How many blocks each gets; fewer where one call takes longer than a third of a second.
    block, gap : float
        Seconds of work in a block, and of idleness before it, at least.
    clock : callable
        Returns seconds.
    is_quiet : callable, optional
        Tells after a round whether it was undisturbed; noisy rounds are repeated, up to half as many as
        there are rounds.

    Returns
    -------
    dict of str to Samples

    Examples
    --------
    >>> from fastconv.benchmark.measure import interleave
    >>> times = interleave({"short": lambda: sum(range(10)), "long": lambda: sum(range(9999))}, rounds=2, block=1e-3)
    >>> times["short"].minimum < times["long"].minimum
    True
    """
    is_quiet = is_quiet or _always
    names = list(calls)
    copies = {name: (call,) if callable(call) else tuple(call) for name, call in calls.items()}
    repeats = {name: _repeats(copies[name], clock) for name in names}
    kept: list[tuple[bool, dict[str, tuple[float, float]]]] = []
    _settle(gap)
    is_quiet()
    for turn in range(rounds + max(1, rounds // 2)):
        quiet_so_far = sum(quiet for quiet, _ in kept)
        if quiet_so_far >= rounds:
            break
        first = turn % len(names) if names else 0
        measured = {}
        for name in names[first:] + names[:first]:
            count, seconds = repeats[name]
            if seconds > SLOW_SECONDS and turn >= LEAST_ROUNDS:
                continue
            _settle(gap)
            measured[name] = _block(copies[name][turn % len(copies[name])], count, block, clock)
        _settle(gap)
        kept.append((is_quiet(), measured))
    return {name: _gather(name, kept) for name in names}


def _settle(gap: float) -> None:
    """Wait until no thread of this process works."""
    latest = time.perf_counter() + MOST_GAP_SECONDS
    while gap and time.perf_counter() < latest:
        before = time.process_time()
        time.sleep(gap)
        if time.process_time() - before < IDLE_SHARE * gap:
            return


def _gather(name: str, kept: list[tuple[bool, dict[str, tuple[float, float]]]]) -> Samples:
    """Return the blocks of the quiet rounds; of all rounds, marked as disturbed, if less than half were quiet."""
    mine = [(quiet, measured[name]) for quiet, measured in kept if name in measured]
    calm = [block for quiet, block in mine if quiet]
    disturbed = 2 * len(calm) < len(mine)
    blocks = [block for _, block in mine] if disturbed else calm
    return Samples([least for least, _ in blocks], [middle for _, middle in blocks], disturbed)


def _repeats(copies: Sequence[Call], clock: Callable[[], float]) -> tuple[int, float]:
    """Return how many calls are timed at once, and about how long one takes."""
    seconds = min(_timed(call, 1, clock) for call in copies for _ in range(2))
    return max(1, round(SHORT_SECONDS / max(seconds, 1e-9))), seconds


def _timed(call: Call, count: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(count):
        call()
    return (clock() - start) / count


def _block(call: Call, count: int, seconds: float, clock: Callable[[], float]) -> tuple[float, float]:
    """Return minimum and median of the calls of one block."""
    end = clock() + WARM_UP_SHARE * seconds
    call()
    while clock() < end:
        call()
    times: list[float] = []
    end = clock() + seconds
    while not times or clock() < end:
        times.append(_timed(call, count, clock))
    return min(times), statistics.median(times)


def _always() -> bool:
    return True


class QuietCheck:
    """Tells whether the machine was left to this process since it was last asked.

    Two things are looked at, on each core that this process may use: how much time others had there, and whether a
    fixed loop takes as long as at its best. A neighbour on the other half of a core, which a virtual machine does not
    show, makes the loop 1.6 to 2 times as long, and convolutions up to 1.1 times; less than that they do not notice.

    Examples
    --------
    >>> from fastconv.benchmark.measure import QuietCheck
    >>> QuietCheck()() in (True, False)
    True
    """

    def __init__(self) -> None:
        self._cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self._best = min(_spin() for _ in range(SPINS))
        self._seen = self._times()

    def __call__(self) -> bool:
        before, self._seen = self._seen, self._times()
        others, elapsed = (now - then for now, then in zip(self._seen, before, strict=True))
        alone = others <= max(OTHERS_SECONDS, OTHERS_SHARE * elapsed)
        return self._calm() and alone

    def _times(self) -> tuple[float, float]:
        """Return the seconds that others have had on our cores, and the time."""
        return _busy_seconds(self._cores) - time.process_time(), time.perf_counter()

    def _calm(self) -> bool:
        if len(self._cores) < 2:
            return self._steady()
        try:
            steady = True
            for core in self._cores:
                os.sched_setaffinity(0, {core})
                steady &= self._steady()
            return steady
        finally:
            os.sched_setaffinity(0, self._cores)

    def _steady(self) -> bool:
        for _ in range(SPINS // 4):  # this core may have slept
            _spin()
        spins = [_spin() for _ in range(SPINS)]
        self._best = min(self._best, *spins)
        return statistics.median(spins) <= SPIN_TOLERANCE * self._best


def _busy_seconds(cores: Container[int]) -> float:
    """Return how long these cores have worked since the machine was started; 0 where the system does not tell."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 0.0
    ticks = 0
    for line in lines:
        name, *counts = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cores:
            user, nice, system, _, _, irq, softirq, stolen = map(int, counts[:8])
            ticks += user + nice + system + irq + softirq + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def _spin() -> float:
    start = time.perf_counter()
    for _ in range(SPIN_STEPS):
        pass
    return time.perf_counter() - start
