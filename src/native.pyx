# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""The compiled part: engines for each instruction set, and the class that runs programs of them.

Everything about convolutions is decided in ``fastconv.lowering``; this module moves addresses.
"""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, intptr_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

cimport numpy as cnp

cnp.import_array()

cdef extern from "native.h" nogil:
    const char *ENGINE_NAMES
    ctypedef void (*engine_fn)(const int64_t *, int64_t, int64_t, int64_t)
    ctypedef double (*limit_fn)(const void *, int64_t, int64_t)
    ctypedef struct isa_table:
        const char *name
        int64_t vec_bytes, tile_rows, tile_vectors, lane_rows, lane_vectors
        const engine_fn **engines
        const limit_fn **limits
    const isa_table **isa_tables
    int isa_level()
    ctypedef struct word_layout:
        const char *name
        const char *fields
    word_layout *word_layouts
    int WORD_LAYOUTS
    int MAX_K_BLOCK, MAX_PIXEL_BLOCK, LEAVING_PIXELS, MAX_WINOGRAD_TILES, WINOGRAD_WIDTH, COLUMN_ROWS, MAX_COLUMN_TAPS, PROGRESS_STEP
    int INPUT, WEIGHT, BIAS, OFFSET, MASK, OUTPUT, GRAD_INPUT, GRAD_OFFSET, GRAD_WEIGHT, GRAD_MASK, SCRATCH, PACKED, THREAD, INPUT_END
    int IMAGES, THREAD_STRIDE, FIRST_IMAGE, OPERANDS
    ctypedef struct stage_words:
        engine_fn run
        int64_t words, tasks, images_per_task, weights_only, in_turn
    ctypedef struct patch_words:
        int64_t word, operand, image_bytes, offset
    ctypedef struct program_words:
        const stage_words *stages
        const patch_words *patches
        const int64_t *words
        int64_t stage_count, patch_count, word_count, images_per_chunk, thread_bytes
    void join(const int64_t *, int64_t, int64_t, int64_t)
    void program_run(const program_words *, const int64_t *, int64_t, int, int)
    int64_t KEPT_BYTES
    double time_limit(limit_fn, int64_t, int64_t, int, int)
    void *allocate(int64_t)
    int watch_forks()
    ctypedef void (*team_fn)(void (*)(void *), void *, unsigned, unsigned)
    ctypedef int (*team_size_fn)()
    void use_team(team_fn, team_size_fn)

if watch_forks():
    raise ImportError("pthread_atfork failed")

# The engine that runs two others in turn, whatever made them.
JOIN = <intptr_t>&join

OPERAND_NAMES = ("input", "weight", "bias", "offset", "mask", "output", "grad_input", "grad_offset", "grad_weight", "grad_mask",
                 "scratch", "packed", "thread", "input_end", "images", "thread_stride", "first_image")

# Where adding threads begins to pay: a region costs some microseconds, an idle pool wakes slowly.
cdef double THREAD_NS = 20e3


def isas():
    """Return the instruction sets this machine can run, the most capable last."""
    return tuple(isa_tables[i].name.decode() for i in range(isa_level() + 1))


def engines(str isa):
    """Return the addresses and tile sizes of one instruction set as a dict."""
    names = ENGINE_NAMES.decode().split()
    for i in range(isa_level() + 1):
        table = isa_tables[i]
        if table.name.decode() == isa:
            addresses = {
                f"{name}_{kind}": <intptr_t>table.engines[k][e] for k, kind in enumerate(("f32", "f64")) for e, name in enumerate(names)
            }
            return {
                "isa": isa,
                "vec_bytes": table.vec_bytes,
                "tile": (table.tile_rows, table.tile_vectors),
                "lane_tile": (table.lane_rows, table.lane_vectors),
                "addresses": addresses,
            }
    raise ValueError(f"this machine runs {', '.join(isas())}, not {isa!r}")


def share_threads(intptr_t parallel, intptr_t most):
    """Run programs on the threads of an OpenMP library, where it has enough, and not on our own.

    It is known by the addresses of its ``GOMP_parallel`` and ``omp_get_max_threads``.
    """
    use_team(<team_fn>parallel, <team_size_fn>most)


def word_tables():
    """Return the field names of every word table, as the C structs have them."""
    return {word_layouts[i].name.decode(): tuple(word_layouts[i].fields.decode().split()) for i in range(WORD_LAYOUTS)}


def limits():
    """Return the sizes the engines were compiled for, which lowering has to know."""
    return {"k_block": MAX_K_BLOCK, "pixel_block": MAX_PIXEL_BLOCK, "leaving_pixels": LEAVING_PIXELS, "winograd_tiles": MAX_WINOGRAD_TILES, "winograd_width": WINOGRAD_WIDTH,
            "column_rows": COLUMN_ROWS, "column_taps": MAX_COLUMN_TAPS, "progress_step": PROGRESS_STEP}


def limit_seconds(str isa, str limit, str dtype, int64_t size, int64_t count, int repeats, int threads):
    """Return the shortest of `repeats` times that `threads` threads take for something that bounds every kernel.

    "peak" is `count` operations in registers, "read" `count` passes over `size` bytes, in each thread.
    """
    if size < 512 or size % 512 or count < 1 or repeats < 1 or threads < 1:
        raise ValueError(f"size must be a multiple of 512, the counts positive, got {size}, {count}, {repeats}, {threads}")
    cdef int kind = ("peak", "read").index(limit), real = ("float32", "float64").index(dtype)
    cdef limit_fn run = NULL
    cdef double seconds
    for i in range(isa_level() + 1):
        if isa_tables[i].name.decode() == isa:
            run = isa_tables[i].limits[real][kind]
    if run == NULL:
        raise ValueError(f"this machine runs {', '.join(isas())}, not {isa!r}")
    with nogil:
        seconds = time_limit(run, size, count, repeats, threads)
    if seconds < 0:
        raise MemoryError(f"cannot allocate {size} bytes for each of {threads} threads")
    return seconds


# Arenas for scratch, kept because a fresh page costs microseconds. Guarded by the GIL.
cdef enum:
    ARENAS = 16

cdef void *arena_at[ARENAS]
cdef int64_t arena_size[ARENAS]
cdef int arena_count = 0
cdef int64_t arena_total = 0


cdef void *take_arena(int64_t size, int64_t *got) except NULL:
    """The arena put back last, if it is large enough; else it makes way for a larger one."""
    global arena_count, arena_total
    cdef void *at = NULL
    if arena_count:
        arena_count -= 1
        at = arena_at[arena_count]
        got[0] = arena_size[arena_count]
        arena_total -= got[0]
        if got[0] >= size:
            return at
        free(at)
    at = allocate(size)
    if at == NULL:
        raise MemoryError(f"cannot allocate {size} bytes of scratch")
    got[0] = size
    return at


cdef void put_arena(void *at, int64_t size) noexcept:
    global arena_count, arena_total
    if arena_count == ARENAS or arena_total + size > KEPT_BYTES:
        free(at)
        return
    arena_at[arena_count] = at
    arena_size[arena_count] = size
    arena_count += 1
    arena_total += size


cdef inline int64_t address(object array):
    return 0 if array is None else <int64_t>cnp.PyArray_DATA(<cnp.ndarray>array)


cdef inline int64_t round_up(int64_t size):
    return (size + 63) & ~63


@cython.final
cdef class Program:
    """Stages of engines over one problem: an executable as fastconv.registry describes it.

    Parameters
    ----------
    stages : sequence of (address, first word, tasks, images per task, weights only, in turn)
    words : sequence of int
    patches : sequence of (word, operand, bytes an image, offset)
    images_per_chunk : int
    scratch, thread, packed : int
        Bytes of scratch shared by all threads, of each thread, and of the packed weights.
    work : float
        Estimated nanoseconds an image takes on one thread.
    tasks : int
        Most tasks an image has in any stage: more threads than that have nothing to do.
    keep : object
        What owns the tables that the words point to.
    isa, tile, copies
        What the program says about itself.
    """

    cdef program_words program
    cdef int64_t input_bytes, scratch, most_tasks
    cdef readonly int64_t packed
    cdef double work
    cdef object keep, weight, bias, offset, mask
    cdef void *packed_at
    cdef readonly str isa, tile
    cdef readonly tuple copies

    def __cinit__(self, stages, words, patches, *, int64_t images_per_chunk, int64_t scratch, int64_t thread, int64_t packed,
                  double work, int64_t tasks, int64_t input_bytes, keep=None, str isa="", str tile="", tuple copies=()):
        self.program.stage_count, self.program.patch_count, self.program.word_count = len(stages), len(patches), len(words)
        cdef stage_words *s = <stage_words *>PyMem_Malloc(max(1, len(stages)) * sizeof(stage_words))
        cdef patch_words *p = <patch_words *>PyMem_Malloc(max(1, len(patches)) * sizeof(patch_words))
        cdef int64_t *w = <int64_t *>PyMem_Malloc(max(1, len(words)) * sizeof(int64_t))
        self.program.stages, self.program.patches, self.program.words = s, p, w
        if s == NULL or p == NULL or w == NULL:
            raise MemoryError()
        for i, (run, first, count, images, weights_only, in_turn) in enumerate(stages):
            s[i].run = <engine_fn><intptr_t>run
            s[i].words, s[i].tasks, s[i].images_per_task, s[i].weights_only, s[i].in_turn = first, count, images, weights_only, in_turn
        for i, (word, operand, image_bytes, offset) in enumerate(patches):
            p[i].word, p[i].operand, p[i].image_bytes, p[i].offset = word, operand, image_bytes, offset
        for i, word in enumerate(words):
            w[i] = word
        self.program.images_per_chunk = images_per_chunk
        # A thread's words come first in its scratch; the patches of the operand `thread` point behind them.
        cdef int64_t head = round_up(len(words) * sizeof(int64_t))
        self.program.thread_bytes = round_up(head + thread)
        for i in range(self.program.patch_count):
            if p[i].operand == THREAD:
                p[i].offset += head
        self.scratch, self.packed, self.work, self.most_tasks = round_up(scratch), round_up(packed), work, tasks
        self.input_bytes = input_bytes
        self.keep, self.isa, self.tile, self.copies = keep, isa, tile, copies

    def __dealloc__(self):
        PyMem_Free(<void *>self.program.stages)
        PyMem_Free(<void *>self.program.patches)
        PyMem_Free(<void *>self.program.words)
        free(self.packed_at)

    def __reduce__(self):
        raise TypeError("a compiled program cannot be pickled")

    def scratch_bytes(self, int threads=1):
        """Return the bytes of scratch a call with that many threads takes, packed weights included."""
        return self.scratch + self.packed + threads * self.program.thread_bytes

    def threads_used(self, int64_t images, int threads):
        """Return how many threads a call would run on."""
        return self.count_threads(images, threads)

    cdef int count_threads(self, int64_t images, int64_t threads) noexcept:
        if threads > 1:
            threads = min(threads, <int64_t>min(1e6, images * self.work / THREAD_NS))
            threads = min(threads, images * self.most_tasks)
        return <int>max(threads, 1)

    cdef int run(self, int64_t *base, int64_t images, int weights, int threads) except -1:
        cdef int64_t packed = 0 if self.packed_at else self.packed, got = 0
        cdef char *arena = <char *>take_arena(self.scratch + packed + threads * self.program.thread_bytes, &got)
        base[SCRATCH] = <int64_t>arena
        base[PACKED] = <int64_t>self.packed_at if self.packed_at else <int64_t>(arena + self.scratch)
        base[THREAD] = <int64_t>(arena + self.scratch + packed)
        with nogil:
            program_run(&self.program, base, images, weights, threads)
        put_arena(arena, got)
        return 0

    def __call__(self, cnp.ndarray output not None, cnp.ndarray input not None, weight, bias, offset, mask, int threads):
        cdef int64_t base[24]
        cdef int64_t images = cnp.PyArray_DIMS(input)[0]
        memset(base, 0, sizeof(base))
        base[INPUT] = <int64_t>cnp.PyArray_DATA(input)
        base[INPUT_END] = base[INPUT] + images * self.input_bytes
        if self.weight is not None:
            weight, bias = self.weight, self.bias
            if self.offset is not None:
                offset, mask = self.offset, self.mask
        base[WEIGHT] = address(weight)
        base[BIAS] = address(bias)
        base[OFFSET] = address(offset)
        base[MASK] = address(mask)
        base[OUTPUT] = <int64_t>cnp.PyArray_DATA(output)
        self.run(base, images, self.weight is None, self.count_threads(images, threads))

    def gradients(self, dict grads not None, cnp.ndarray grad_output not None, cnp.ndarray input not None, weight, offset, mask, int threads):
        """Fill the arrays in `grads`: gradients of some of input, offset, weight and mask."""
        cdef int64_t base[24]
        cdef int64_t images = cnp.PyArray_DIMS(input)[0]
        memset(base, 0, sizeof(base))
        base[INPUT] = <int64_t>cnp.PyArray_DATA(input)
        base[INPUT_END] = base[INPUT] + images * self.input_bytes
        base[OUTPUT] = <int64_t>cnp.PyArray_DATA(grad_output)
        base[WEIGHT], base[OFFSET], base[MASK] = address(weight), address(offset), address(mask)
        base[GRAD_INPUT], base[GRAD_WEIGHT] = address(grads.get("input")), address(grads.get("weight"))
        base[GRAD_OFFSET], base[GRAD_MASK] = address(grads.get("offset")), address(grads.get("mask"))
        self.run(base, images, 1, self.count_threads(images, threads))

    def bind(self, weight, bias, offset=None, mask=None):
        """Return a program that has these weights packed, and owns copies of what it needs of them.

        Pointwise weights and biases come in the places of `offset` and `mask`.
        """
        cdef Program bound = Program.__new__(Program, (), (), (), images_per_chunk=1, scratch=0, thread=0, packed=0, work=0, tasks=0,
                                             input_bytes=0)
        bound.take_words(self)
        bound.weight = weight.copy()
        bound.bias = None if bias is None else bias.copy()
        bound.offset = None if offset is None else offset.copy()
        bound.mask = None if mask is None else mask.copy()
        cdef int64_t base[24]
        if self.packed:
            bound.packed_at = allocate(self.packed)
            if bound.packed_at == NULL:
                raise MemoryError(f"cannot allocate {self.packed} bytes for packed weights")
            memset(base, 0, sizeof(base))
            base[WEIGHT] = address(bound.weight)
            base[OFFSET] = address(bound.offset)
            bound.run(base, 1, 2, 1)
        return bound

    cdef int take_words(self, Program other) except -1:
        """Become a copy of another program."""
        PyMem_Free(<void *>self.program.stages)
        PyMem_Free(<void *>self.program.patches)
        PyMem_Free(<void *>self.program.words)
        self.program = other.program
        self.program.stages = <stage_words *>PyMem_Malloc(max(1, other.program.stage_count) * sizeof(stage_words))
        self.program.patches = <patch_words *>PyMem_Malloc(max(1, other.program.patch_count) * sizeof(patch_words))
        self.program.words = <int64_t *>PyMem_Malloc(max(1, other.program.word_count) * sizeof(int64_t))
        if self.program.stages == NULL or self.program.patches == NULL or self.program.words == NULL:
            raise MemoryError()
        memcpy(<void *>self.program.stages, other.program.stages, other.program.stage_count * sizeof(stage_words))
        memcpy(<void *>self.program.patches, other.program.patches, other.program.patch_count * sizeof(patch_words))
        memcpy(<void *>self.program.words, other.program.words, other.program.word_count * sizeof(int64_t))
        self.input_bytes, self.scratch, self.packed, self.most_tasks = other.input_bytes, other.scratch, other.packed, other.most_tasks
        self.work, self.keep, self.isa, self.tile, self.copies = other.work, other.keep, other.isa, other.tile, other.copies
        return 0
