"""What this machine can do at best, measured: the roof that every kernel is held against.

The peak is that of multiply-adds in registers, the bandwidth that of reading an array which lies in one level
of the caches; both by kernels of this project, in the same process as what is compared with them.
"""

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import _native, config
from ..about import cpu_model

__all__ = [
    "bandwidth_gbs",
    "best_limits",
    "cache_sizes",
    "describe_machine",
    "measure_limits",
    "peak_gflops",
    "roofline_seconds",
]

DTYPES = ("float32", "float64")
LIBRARIES = (
    "fastconv", "numpy", "scipy", "numba", "llvmlite", "torch", "torchvision", "onnxruntime", "openvino",
    "jax", "opencv-python-headless",
)  # fmt: skip

# One measurement is short, so that nothing else runs meanwhile. It comes again in every pass, because the cores of
# a virtual machine are at times two halves of one, for seconds.
SECONDS = 2.0
PASSES_PER_DRAM = 12
REPEATS = 8
PEAK_FLOPS = 4_000_000
READ_BYTES = 4 << 20
GRAIN = 512  # bytes that a read takes at a time
MOST_DRAM_BYTES = 512 << 20

USUAL_CACHES = {"L1": 32 << 10, "L2": 1 << 20}  # where the system tells nothing
SYSTEM_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def measure_limits(threads: int | Iterable[int] = 1) -> dict[str, Any]:
    """Measure the peak and the bandwidths, in about two seconds.

    Parameters
    ----------
    threads : int or iterable of int
        Thread counts to measure; one thread always is.

    Returns
    -------
    dict
        ``peak_gflops[isa][dtype][threads]``, ``bandwidth_gbs[threads][level]`` and ``caches[level]`` in bytes;
        levels are L1, L2, L3 and DRAM, and thread counts are strings, as in JSON.

    Examples
    --------
    >>> from fastconv.benchmark.machine import measure_limits, peak_gflops
    >>> limits = measure_limits(1)
    >>> peak_gflops(limits, "float32", "baseline", 1) > 0
    True
    """
    counts = sorted({1, *([threads] if isinstance(threads, int) else threads)})
    caches = cache_sizes()
    isas = _native.isas()
    peaks: dict[str, dict[str, dict[str, float]]] = {
        isa: {dtype: {str(count): 0.0 for count in counts} for dtype in DTYPES} for isa in isas
    }
    bandwidths: dict[str, dict[str, float]] = {str(count): {} for count in counts}
    begun, turn = time.perf_counter(), -1
    while turn < 0 or time.perf_counter() - begun < SECONDS:
        turn += 1
        for count in counts:
            for isa in isas:
                for dtype in DTYPES:
                    of = peaks[isa][dtype]
                    of[str(count)] = max(of[str(count)], _peak(isa, dtype, count))
            isa = isas[turn % len(isas)]  # each level has another instruction set that reads it fastest
            for level, size in _set_sizes(caches, count).items():
                if level == "DRAM" and turn % PASSES_PER_DRAM:
                    continue  # one takes as long as several passes
                of = bandwidths[str(count)]
                of[level] = max(of.get(level, 0.0), _bandwidth(isa, size, count))
    return {"peak_gflops": peaks, "bandwidth_gbs": bandwidths, "caches": caches}


def best_limits(*measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the highest of each limit over several measurements, such as before and after a run.

    Examples
    --------
    >>> from fastconv.benchmark.machine import best_limits
    >>> best_limits({"peak_gflops": {"avx2": 110.0}}, {"peak_gflops": {"avx2": 117.0}})
    {'peak_gflops': {'avx2': 117.0}}
    """
    names = {name: None for limits in measured for name in limits}
    best = {}
    for name in names:
        values = [limits[name] for limits in measured if name in limits]
        best[name] = best_limits(*values) if isinstance(values[0], Mapping) else max(values)
    return best


def _peak(isa: str, dtype: str, threads: int) -> float:
    seconds = _native.limit_seconds(isa, "peak", dtype, GRAIN, PEAK_FLOPS, REPEATS, threads)
    return threads * PEAK_FLOPS / seconds / 1e9


def _bandwidth(isa: str, size: int, threads: int) -> float:
    passes = max(1, READ_BYTES // size)
    repeats = REPEATS if size <= READ_BYTES else 2
    seconds = _native.limit_seconds(isa, "read", "float32", size, passes, repeats, threads)
    return threads * passes * size / seconds / 1e9


def _set_sizes(caches: Mapping[str, int], threads: int) -> dict[str, int]:
    """Return the bytes each thread reads so that they come from one level."""
    sizes = {"L1": caches["L1"] // 2, "L2": caches["L2"] // 2}
    last = caches["L2"] * threads
    if "L3" in caches:
        # All threads share it, and so may strangers: not more than needed to leave L2.
        sizes["L3"] = max(2 * caches["L2"], min(4 * caches["L2"], caches["L3"] // (2 * threads)))
        last += caches["L3"]
    sizes["DRAM"] = max(4 * caches["L2"], min(4 * last, MOST_DRAM_BYTES) // threads)
    return {level: size // GRAIN * GRAIN for level, size in sizes.items()}


def cache_sizes() -> dict[str, int]:
    """Return the bytes of the data caches: L1 and L2 of a core, and L3, if there is one, of all.

    Examples
    --------
    >>> from fastconv.benchmark.machine import cache_sizes
    >>> cache_sizes()["L1"] >= 8192
    True
    """
    found = {}
    for index in sorted(SYSTEM_CACHES.glob("index*")):
        try:
            level, kind, text = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}"] = int(text.rstrip("KMG")) * UNITS.get(text[-1], 1)
    for level in ("L1", "L2", "L3"):
        name = f"SC_LEVEL{level[1]}_{'DCACHE' if level == 'L1' else 'CACHE'}_SIZE"
        if level not in found and name in os.sysconf_names and os.sysconf(name) > 0:
            found[level] = os.sysconf(name)
    return {
        level: size for level in ("L1", "L2", "L3") if (size := found.get(level, USUAL_CACHES.get(level, 0)))
    }


def peak_gflops(limits: Mapping[str, Any], dtype: str, isa: str, threads: int) -> float:
    """Return the most GFLOP/s that code for an instruction set can reach; it may use the older ones too.

    Parameters
    ----------
    limits : dict
        From :func:`measure_limits`.
    dtype, isa : str
    threads : int
        One of the counts measured.
    """
    peaks = limits["peak_gflops"]
    usable = config.ISAS[: config.ISAS.index(isa) + 1]
    return max(peaks[name][dtype][str(threads)] for name in usable if name in peaks)


def bandwidth_gbs(limits: Mapping[str, Any], bytes: int, threads: int) -> tuple[str, float]:
    """Return the first level that holds so many bytes, and the GB/s at which `threads` threads read it."""
    caches, bandwidths = limits["caches"], limits["bandwidth_gbs"][str(threads)]
    for level in ("L1", "L2", "L3"):
        room = caches.get(level, 0) * (1 if level == "L3" else threads)
        if bytes <= room and level in bandwidths:
            return level, bandwidths[level]
    return "DRAM", bandwidths["DRAM"]


def roofline_seconds(
    limits: Mapping[str, Any], flops: float, bytes: int, dtype: str, isa: str, threads: int
) -> float:
    """Return the time below which no kernel can get that does all operations and moves every byte once.

    Parameters
    ----------
    limits : dict
        From :func:`measure_limits`.
    flops : float
        Operations of the problem; a kernel that needs fewer, such as Winograd's, can be quicker.
    bytes : int
        Input, weight and output, once each. They are taken to lie in the first level that holds them all.
    dtype, isa : str
    threads : int
        One of the counts measured.

    Examples
    --------
    >>> from fastconv.benchmark.machine import roofline_seconds
    >>> limits = {
    ...     "peak_gflops": {"baseline": {"float32": {"1": 50.0}}},
    ...     "bandwidth_gbs": {"1": {"L1": 100.0, "DRAM": 10.0}},
    ...     "caches": {"L1": 1000},
    ... }
    >>> roofline_seconds(limits, 5e9, 1000, "float32", "baseline", 1)
    0.1
    >>> roofline_seconds(limits, 5e9, 5_000_000_000, "float32", "baseline", 1)
    0.5
    """
    moved = bytes / bandwidth_gbs(limits, bytes, threads)[1] / 1e9
    return max(flops / peak_gflops(limits, dtype, isa, threads) / 1e9, moved)


def describe_machine(limits: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a reader of times has to know about where they were taken.

    Parameters
    ----------
    limits : dict, optional
        From :func:`measure_limits`.

    Examples
    --------
    >>> from fastconv.benchmark.machine import describe_machine
    >>> sorted(describe_machine())
    ['caches', 'cores', 'cpu', 'isa', 'libraries', 'limits', 'python', 'system']
    """
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "isa": config.best_isa(_native.isas()),
        "caches": cache_sizes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "limits": dict(limits or {}),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
