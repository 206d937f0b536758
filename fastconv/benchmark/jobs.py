"""What there is to do: a job is one layer on some implementations, in one section and on one number of threads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from . import implementations, measure
from .implementations import STATELESS, Implementation
from .workloads import TINY, Workload, load, scaling, select

__all__ = ["DTYPES", "SECTIONS", "Job", "Settings", "jobs_of", "make_job"]

SECTIONS = ("forward", "backward", "overhead", "first-call", "scaling")
DTYPES = ("float32", "float64")

QUICK_ROUNDS = 3
# Every so many layers, one implementation is timed twice, and then again in another process.
CONTROL_EVERY = 4
CONTROLLED = "cython.*"
FIRST_LAYERS = ("rn50_c2_3x3", "dcn2_rn50_c3")
QUICK_BACKWARD = ("rn50_c2_3x3", "rnx50_c4_g32", "mbv2_dw3_28", "dcgan_16to32", "dcn2_rn50_c3")
SCALING_IMPLEMENTATIONS = (
    "cython.call",
    "cython.plan",
    "numba.plan",
    "torch.nchw",
    "onednn.*",
    "onnxruntime",
)

Job = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is asked for.

    Attributes
    ----------
    sections : sequence of str
        Of `SECTIONS`.
    threads : sequence of int
    implementations, peers, workloads : sequence of str
        Patterns; all that are installed if empty. `peers` may be ``("none",)``.
    dtype : str
    layout : str or None
    quick : bool
        A few layers of each family, fewer rounds.
    rounds : int
        Blocks each implementation gets.
    """

    sections: Sequence[str] = SECTIONS
    threads: Sequence[int] = (1,)
    implementations: Sequence[str] = ()
    peers: Sequence[str] = ("all",)
    workloads: Sequence[str] = ()
    dtype: str = "float32"
    layout: str | None = None
    quick: bool = False
    rounds: int = measure.ROUNDS

    def chosen(self, backward: bool = False) -> list[Implementation]:
        """Return the implementations to time."""
        return implementations.choose(self.implementations, self.peers, self.layout, backward)


def jobs_of(settings: Settings) -> list[Job]:
    """Return what the workers are to do, in order: a job is one layer on some implementations.

    Examples
    --------
    >>> from fastconv.benchmark.jobs import Settings, jobs_of
    >>> todo = jobs_of(Settings(sections=["forward"], peers=["none"], workloads=["unet_up2"], threads=[1, 2]))
    >>> [(job["workload"]["name"], job["threads"]) for job in todo if not job["again"]]
    [('unet_up2', 1), ('unet_up2', 2)]
    >>> todo[0]["implementations"][:2]
    ['cython.call', 'cython.plan']
    """
    makers = {
        "forward": _forward,
        "backward": _backward,
        "overhead": _overhead,
        "first-call": _first_call,
        "scaling": _scaling,
    }
    return [
        job
        for threads in settings.threads
        for name in settings.sections
        for job in makers[name](settings, threads)
        if job["implementations"]
    ]


def make_job(settings: Settings, threads: int, section: str, workload: Workload, **changes: Any) -> Job:
    """Return a job as it is handed to a worker; `changes` take the place of what the settings say.

    Examples
    --------
    >>> from fastconv.benchmark.jobs import Settings, make_job
    >>> from fastconv.benchmark.workloads import TINY
    >>> make_job(Settings(), 2, "forward", TINY, rounds=1)["rounds"]
    1
    """
    return {
        "kind": "layers",
        "section": section,
        "workload": workload.as_dict(),
        "implementations": [entry.name for entry in settings.chosen(section == "backward")],
        "dtype": settings.dtype,
        "threads": threads,
        "rounds": QUICK_ROUNDS if settings.quick else settings.rounds,
        "block": measure.BLOCK_SECONDS,
        "check": True,
        "control": False,
        "again": False,
        "alone": False,
    } | changes


def _layers(settings: Settings) -> list[Workload]:
    found = select(load(), settings.workloads)
    return [w for w in found if w.quick] if settings.quick and not settings.workloads else found


def _forward(settings: Settings, threads: int) -> Iterator[Job]:
    layers = _layers(settings)
    for index, workload in enumerate(layers):
        yield make_job(settings, threads, "forward", workload, control=index % CONTROL_EVERY == 0)
    # A process lays out its memory in its own way, which moves times by more than the noise within one.
    names = [entry.name for entry in settings.chosen() if fnmatchcase(entry.name, CONTROLLED)]
    for workload in layers[::CONTROL_EVERY] if names else ():
        yield make_job(settings, threads, "forward", workload, implementations=names, again=True, alone=True)


def _backward(settings: Settings, threads: int) -> Iterator[Job]:
    for workload in _layers(settings):
        if workload.pointwise:  # has no gradients of its own
            continue
        if not settings.quick or settings.workloads or workload.name in QUICK_BACKWARD:
            yield make_job(settings, threads, "backward", workload)


def _overhead(settings: Settings, threads: int) -> Iterator[Job]:
    if TINY in select([TINY], settings.workloads) or not settings.workloads:
        yield make_job(settings, threads, "overhead", TINY, phase="call")
        yield make_job(settings, threads, "overhead", TINY, phase="create", kind="creation")
        if threads == min(settings.threads):
            yield make_job(settings, threads, "overhead", TINY, phase="import", kind="imports")


def _first_call(settings: Settings, threads: int) -> Iterator[Job]:
    if threads != min(settings.threads):
        return
    layers = select([w for w in load() if w.name in FIRST_LAYERS], settings.workloads)
    channels_first = [
        entry for entry in settings.chosen() if entry.layout == "NCHW" and entry.name != "scipy.fftconvolve"
    ]
    for entry in channels_first:
        own_process = {"implementations": [entry.name], "alone": True}
        for workload in layers[:1] if settings.quick else layers:
            if entry.name == "numba.call":  # into an empty cache, and then with the cache of that process
                yield make_job(
                    settings, threads, "first-call", workload, kind="first_call", phase="cold", **own_process
                )
            yield make_job(
                settings, threads, "first-call", workload, kind="first_call", phase="first", **own_process
            )
        if entry.column == STATELESS and layers:
            mixed = Workload(
                "mixed_sizes", "first-call", "first-call", "conv2d", (1, 16, 40, 40), 16, (3, 3), padding=1
            )
            yield make_job(
                settings,
                threads,
                "first-call",
                mixed,
                kind="mixed_sizes",
                phase="mixed sizes",
                step=3 if settings.quick else 1,
                **own_process,
            )


def _scaling(settings: Settings, threads: int) -> Iterator[Job]:
    names = settings.implementations or SCALING_IMPLEMENTATIONS
    entries = implementations.choose(names, settings.peers, settings.layout)
    layers = select(scaling(), settings.workloads)
    for workload in layers[::4] if settings.quick and not settings.workloads else layers:
        yield make_job(
            settings, threads, "scaling", workload, implementations=[entry.name for entry in entries]
        )
