"""The words an engine is told, and the builder that collects the stages of a program.

Each engine is ``void engine(const int64_t *words, int64_t begin, int64_t end, int64_t thread)`` and reads its
words as a struct of 64-bit fields (src/program.h). The tuples here name those fields in the same order.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..problem import Problem

__all__ = ["ACTIVATION_CODES", "WORDS", "Builder", "Engines", "Operand", "Words"]

# Partial sums stay small (and errors with them) and a panel of one tile's width stays in L1.
K_BLOCK = 128
# Bytes of input and output, all images together, that no level of cache holds for long where others share it. With 9.6 MB
# fetching rows ahead takes 0.3 to 0.5 of the time on a shared cache of 32 MB, and 1.0 to 1.1 while nobody else uses it or on two
# threads; with 12.8 MB 0.3 to 0.65 on either; with 6.4 MB 0.3 to 1.4.
BEYOND_CACHES = 8 << 20
# More tasks than this for an image are enough to keep threads busy.
ENOUGH_TASKS = 8
# Weights of one task of the packing stage, along k.
PACK_PIECE = 128
# Scratch of a chunk of images: half of a common L2 cache.
CHUNK_BYTES = 1 << 19

ACTIVATION_CODES = {None: 0, "relu": 1, "relu6": 2, "silu": 3, "gelu": 4, "hardswish": 5}

_SUM = "task_begin taps x_offsets x_most w_offsets w_places w w_group w_block x x_d x_h x_w y y_d y_h y_w n_d n_h n_w"
_HALO = (
    "x y images x_image x_channel x_d x_h x_w y_image y_block y_d y_h y_phase y_w repeat blocks starts "
    "rows_d rows_h h_phases w_phases w_lines band by_bands zeros map_d map_h map_w runs"
)
_PACK = "x y offsets places count groups rows width blocks pieces by_blocks x_group x_row y_group y_block"
_DENSE = (
    "x x_end w b y work work_stride images images_per_task tasks x_image x_group y_image y_group y_channel "
    "groups channels chunks chunk w_width w_row sums sum_count pixel_block k_block activation direct by_groups "
    "in_turn ahead together seven depth"
)
_WINOGRAD_WEIGHTS = "x y outputs kernel rank channels width pieces x_block y_block y_point"
_WINOGRAD = (
    "x w weight b y work work_stride images outputs kernel rank x_image x_group x_h x_w y_image y_group "
    "y_channel y_h y_w y_next groups depth taps pieces channels parts sums sum_count block images_per_task "
    "blocks in_a_row ahead block_sources v v_row width w_width w_block w_point k_block activation columns weight_group w_row"
)
_WINOGRAD_SUM = "tiles tile_count sources source_count w points terms w_offsets x_offsets"
_WINOGRAD_TILE = "source step y rows columns row"
_WINOGRAD_POINT = "begin end"
_DEPTHWISE_PLANES = (
    "x w b y work work_stride images x_image x_channel x_d x_h x_w y_image y_channel channels "
    "multiplier bands band by_bands lines_d h_phases h_lines band_lines w_phases w_lines map_d map_h map_w runs copies "
    "line_d line_phase line_h band_size sums sum_count kernel_taps activation in_place x_band w_sums spare "
    "spare_sum out_w"
)
_PLANE_SUM = "x_row w_step rows x_d y y_d y_h y_w y_row n_d n_h ahead ahead_lines ahead_line"
_PLANE_ROW = "rows x y tiles"
_PLANE_TILE = "size part x y groups blocks"
_PLANE_COLUMN = "x w lines mask next_mask last_mask"
_COPY = "rows n step to odd third to_row at at_row"
_DEPTHWISE_PIXELS = (
    "x w b y work work_stride images x_image y_image channels w_stride row_words list_words sums sum_count tasks band "
    "blocks piece on_lines k_block activation ahead x_row"
)
_PIXEL_SUM = (
    "task_begin taps_d taps_h map_d map_h w_rows w_step tiles tile_count strip y y_d y_h y_row n_d n_h"
)
_PIXEL_TILE = "pixels y columns list"
_SETTLE = (
    "y b images y_image y_channel y_pixel channels pixels tasks activation engine engine_words engine_tasks"
)
_JOIN = (
    "first_engine second_engine first_words second_words first_y second_x panel work_stride bands band_count "
    "first_tasks second_tasks room"
)
_JOIN_BAND = "first first_end second second_end y_bytes x_bytes"
_DEFORM = (
    "x w b offset mask y work work_stride images x_image offset_image mask_image y_image y_channel y_w "
    "ndim size_d size_h size_w line_d line_h width outside out_d out_h out_w stride_d stride_h stride_w "
    "pad_d pad_h pad_w dil_d dil_h dil_w kernel_d kernel_h kernel_w blocks block_count groups channels "
    "w_width w_blocks w_block given w_row panel tile tiles splits vectors seven seven_row tap_block k_block activation"
)
_DCN = f"{_DEFORM} x_group points skipped middle_d middle_h middle_w scale offset_pixel mask_pixel softmax"
_STRASSEN = "x y pairs block places sizes piece_count"
_BLOCK = "x channels group offset_group w last given offsets places"
_WEIGHT_GRAD = (
    "x gy gw sums work work_stride images first_image batch x_image x_group x_d x_h x_w n_d n_h n_w gy_image "
    "gy_block channels blocks width units unit_parts unit_part taps tap_count places w_row unmet unmet_places k_block "
    "together"
)
_WINOGRAD_GRAD = (
    "x gy v u source_marks tile_marks gw sums direct work work_stride images first_image batch chunk band bands "
    "together points x_image x_h x_w gy_image gy_block gy_h gy_w inputs v_row v_point u_block u_point sources source_count "
    "source_pieces tiles tile_count tile_pieces taps tap_sources groups channels blocks width units unit_parts "
    "unit_part unit k_block"
)
_WINOGRAD_GRAD_TILE = "source gy rows columns"
_PLANE_GRAD = (
    "x gy gw work work_stride images x_image x_channel x_d x_h x_w gy_image gy_channel gy_d gy_h gy_w "
    "channels outputs n_d n_h n_w band lines_d h_phases h_lines band_lines w_phases w_lines map_d map_h "
    "map_w runs line_channel line_d line_phase line_h pitch kernel_taps x_offsets places pairs"
)
_DEPTHWISE_GRAD = (
    "x gy gw sums work work_stride images first_image batch x_image x_channel gy_image gy_channel channels "
    "outputs kernel_taps parts part_count"
)
_PLANE_PART = "rows columns stride tap tap_row tap_column x x_d x_row x_column gy gy_d gy_row n_d n_h begin end vectors masks"
_PIXEL_PART = (
    "rows columns tap tap_row tap_column x x_d x_h x_w x_row x_column gy gy_d gy_h gy_w n_d n_h n_w together"
)
_DEFORM_GRAD = (
    "geometry x gy w offset mask gx goffset gw gmask progress kept work work_stride images first_image batch "
    "x_image gy_image gy_row mask_image gx_image gx_channel gx_d gx_h gx_w w_row channels blocks block_count "
    "band bands tap_block row as_given k_block turned turned_pixels"
)
_GRAD_BLOCK = "x channel channels group offset_group shared w"
_GRAD_TAP = "x_offsets begin_d end_d begin_h end_h begin_w end_w"

WORDS = {
    "sum": tuple(_SUM.split()),
    "halo": tuple(_HALO.split()),
    "pack": tuple(_PACK.split()),
    "dense": tuple(_DENSE.split()),
    "winograd_weights": tuple(_WINOGRAD_WEIGHTS.split()),
    "winograd": tuple(_WINOGRAD.split()),
    "winograd_sum": tuple(_WINOGRAD_SUM.split()),
    "winograd_tile": tuple(_WINOGRAD_TILE.split()),
    "winograd_point": tuple(_WINOGRAD_POINT.split()),
    "depthwise_planes": tuple(_DEPTHWISE_PLANES.split()),
    "plane_sum": tuple(_PLANE_SUM.split()),
    "plane_row": tuple(_PLANE_ROW.split()),
    "plane_tile": tuple(_PLANE_TILE.split()),
    "plane_column": tuple(_PLANE_COLUMN.split()),
    "copy": tuple(_COPY.split()),
    "depthwise_pixels": tuple(_DEPTHWISE_PIXELS.split()),
    "pixel_sum": tuple(_PIXEL_SUM.split()),
    "pixel_tile": tuple(_PIXEL_TILE.split()),
    "settle": tuple(_SETTLE.split()),
    "join": tuple(_JOIN.split()),
    "join_band": tuple(_JOIN_BAND.split()),
    "deform": tuple(_DEFORM.split()),
    "strassen": tuple(_STRASSEN.split()),
    "dcn": tuple(_DCN.split()),
    "block": tuple(_BLOCK.split()),
    "weight_grad": tuple(_WEIGHT_GRAD.split()),
    "grad_tap": tuple(_GRAD_TAP.split()),
    "deform_grad": tuple(_DEFORM_GRAD.split()),
    "grad_block": tuple(_GRAD_BLOCK.split()),
    "winograd_grad": tuple(_WINOGRAD_GRAD.split()),
    "winograd_grad_tile": tuple(_WINOGRAD_GRAD_TILE.split()),
    "plane_grad": tuple(_PLANE_GRAD.split()),
    "depthwise_grad": tuple(_DEPTHWISE_GRAD.split()),
    "plane_part": tuple(_PLANE_PART.split()),
    "pixel_part": tuple(_PIXEL_PART.split()),
}

# Which table each engine reads.
ENGINES = {
    "halo_planes": "halo",
    "halo_pixels": "halo",
    "pack": "pack",
    "dense_rows": "dense",
    "dense_lanes": "dense",
    "dense_seven": "dense",
    "winograd_weights": "winograd_weights",
    "winograd_inputs": "winograd",
    "winograd": "winograd",
    "depthwise_planes": "depthwise_planes",
    "depthwise_pixels": "depthwise_pixels",
    "settle": "settle",
    "strassen_weights": "strassen",
    "deform": "deform",
    "dcn": "dcn",
    "weight_grad": "weight_grad",
    "winograd_grad_tiles": "winograd_grad",
    "winograd_grad": "winograd_grad",
    "plane_grad": "plane_grad",
    "depthwise_plane_grad": "depthwise_grad",
    "depthwise_pixel_grad": "depthwise_grad",
    "deform_grad": "deform_grad",
    "dcn_grad": "deform_grad",
}


class Engines(Protocol):
    """What a backend provides: compiled engines and the sizes they were compiled for.

    ``tile`` is (rows, vectors) of the register tile with pixels in the vectors, ``lane_tile`` the same with
    channels in the vectors; ``address(engine, dtype)`` returns the address of the compiled function, and
    ``activation(problem)`` what its engines take the word `activation` for: one of ``ACTIVATION_CODES``, or
    whatever they know beside.
    """

    @property
    def isa(self) -> str: ...

    @property
    def vec_bytes(self) -> int: ...

    @property
    def tile(self) -> tuple[int, int]: ...

    @property
    def lane_tile(self) -> tuple[int, int]: ...

    def address(self, engine: str, dtype: np.dtype) -> int: ...

    def activation(self, problem: Problem) -> int: ...


@dataclass(frozen=True)
class Operand:
    """An address known only at the call: an array of the caller, or a piece of scratch.

    Attributes
    ----------
    name : str
        One of ``fastconv._native.OPERAND_NAMES``. ``input_end`` is where readable input ends; ``images``,
        ``first_image`` and ``thread_stride`` are no addresses but the images of the chunk, which of all is its
        first, and the bytes of a thread's scratch.
    image_bytes : int
        From one image to the next; 0 for what is not per image.
    offset : int
        In bytes.
    """

    name: str
    image_bytes: int = 0
    offset: int = 0


Words = dict[str, int | Operand]


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass
class Builder:
    """Collects tables, scratch and stages, and makes the program."""

    problem: Problem
    engines: Engines
    images_per_chunk: int = 1 << 40
    stages: list[tuple[int, int, int, int, bool, bool]] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    patches: list[tuple[int, int, int, int]] = field(default_factory=list)
    tables: list[np.ndarray] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    scratch_bytes: int = 0
    thread_bytes: int = 0
    packed_bytes: int = 0
    given: dict[str, Operand] = field(default_factory=dict)

    @contextmanager
    def part(self, problem: Problem, **given: Operand) -> Iterator[None]:
        """Lower another problem to stages of this program; `given` stands for its arrays."""
        whole = self.problem, self.given
        self.problem, self.given = problem, given
        yield
        self.problem, self.given = whole

    @property
    def lanes(self) -> int:
        return self.engines.vec_bytes // self.itemsize

    @property
    def itemsize(self) -> int:
        return self.problem.dtype.itemsize

    def table(self, values: Any) -> int:
        """Keep an int64 table and return its address."""
        array = np.ascontiguousarray(values, np.int64)
        self.tables.append(array)
        return array.ctypes.data

    def records(self, kind: str, records: Sequence[dict[str, int]]) -> int:
        """Keep a table of records, with fields in the order of ``WORDS[kind]``, and return its address."""
        return self.table([[record[name] for name in WORDS[kind]] for record in records])

    def operand(self, name: str) -> Operand:
        """Return the operand for an array of the caller, or 0 where the problem has none."""
        if name in self.given:
            return self.given[name]
        p = self.problem
        if name in ("bias", "mask") and not getattr(p, name):
            return Operand("bias", 0) if name == "bias" else Operand("mask", 0)
        shapes = {"input": p.input_shape, "output": p.output_shape}
        if p.offset_groups:
            shapes.update(offset=p.offset_shape, mask=p.mask_shape)
        shape = shapes.get(name.removeprefix("grad_"))
        return Operand(name, math.prod(shape[1:]) * self.itemsize if shape else 0)

    def chunked(self, image_bytes: int, multiple: int = 1) -> None:
        """Run as many images at a time as keep their scratch in cache, a multiple of `multiple`."""
        most = max(CHUNK_BYTES // max(image_bytes, 1) // multiple, 1) * multiple
        self.images_per_chunk = min(self.images_per_chunk, most)

    def writes_far(self) -> int:
        """Return 1 if what is written are planes of large images, whose lines are worth asking for, else 0.

        With 4 MB of output it takes up to a tenth more time. Channels last, the processor foresees the lines.
        """
        return int(self.problem.layout == "NCHW" and self.problem.bytes > BEYOND_CACHES)

    def scratch(self, image_elements: int, slack: int, what: str = "") -> Operand:
        """Reserve scratch for a chunk of images, with `slack` elements behind it."""
        images = min(self.images_per_chunk, max(self.problem.batch, 1))
        found = Operand("scratch", 0, self.scratch_bytes)
        size = (image_elements * images + slack) * self.itemsize
        self.scratch_bytes = round_up(self.scratch_bytes + size, 64)
        if what:
            self.copies.append(f"{what}: {_bytes(image_elements * self.itemsize)} an image")
        return found

    def scratch_of_all_chunks(self, elements: int) -> Operand:
        """Reserve scratch that all chunks of images share."""
        found = Operand("scratch", 0, self.scratch_bytes)
        self.scratch_bytes = round_up(self.scratch_bytes + elements * self.itemsize, 64)
        return found

    def thread(self, elements: int) -> Operand:
        """Reserve scratch of each thread, which any stage may overwrite."""
        self.thread_bytes = max(self.thread_bytes, elements * self.itemsize)
        return Operand("thread")

    def packed(self, elements: int) -> Operand:
        """Reserve what a plan keeps of the weights."""
        found = Operand("packed", 0, self.packed_bytes)
        self.packed_bytes = round_up(self.packed_bytes + elements * self.itemsize, 64)
        self.copies.append(f"packed weights: {_bytes(elements * self.itemsize)}")
        return found

    def pack(
        self,
        offsets: np.ndarray,
        places: np.ndarray,
        block: int,
        width: int,
        blocks: int,
        *,
        rows: int,
        x_row: int,
        groups: int = 1,
        x_group: int = 0,
        keep: bool = True,
    ) -> Operand:
        """Add the stage that packs weights, and return where they go: what a plan keeps, or else scratch.

        The weights of a group at `offsets` go to `places` in a block of `block` elements, `width` output
        channels side by side; there are `blocks` of them in a group, `rows` output channels in all. Where an
        offset is negative there is a weight of zero.
        """
        order = np.argsort(offsets, kind="stable")
        elements = groups * blocks * block
        y = self.packed(elements) if keep else self.scratch(0, elements)
        # Pieces so small that what is read of a cache line is still in L2 for the next block.
        pieces = max(-(-len(offsets) // PACK_PIECE), 1)
        words: Words = dict(
            x=self.operand("weight"),
            y=y,
            offsets=self.table(offsets[order]),
            places=self.table(places[order]),
            count=len(offsets),
            groups=groups,
            rows=rows,
            width=width,
            blocks=blocks,
            pieces=pieces,
            by_blocks=int(x_row < len(offsets)),
            x_group=x_group,
            x_row=x_row,
            y_group=blocks * block,
            y_block=block,
        )
        self.stage("pack", groups * blocks * pieces, words, weights_only=True)
        return y

    def stage(
        self,
        engine: str,
        tasks: int,
        words: Words,
        images_per_task: int = 1,
        weights_only: bool = False,
        in_turn: bool = False,
    ) -> None:
        """Add a stage. `tasks` counts those of `images_per_task` images; those `in_turn` may wait for earlier ones."""
        first = self.table_of_words(ENGINES[engine], words)
        address = self.engines.address(engine, self.problem.dtype)
        self.stages.append((address, first, tasks, images_per_task, weights_only, in_turn))

    def join(self, one: tuple, other: tuple, panel: int, bands: list[dict[str, int]], room: int = 0) -> None:
        """Add a stage in which two engines take turns on each of some bands, with `panel` elements of scratch between them.

        The engines are stages that were taken from `stages`, each with the name of its table.
        """
        from .._native import JOIN

        first, first_at, first_tasks, *_, first_table = one
        second, second_at, second_tasks, *_, second_table = other
        here = len(self.words)
        at = round_up(self.thread_bytes, 64)
        self.thread_bytes = at + panel * self.itemsize
        words: Words = dict(
            bands=self.records("join_band", bands),
            band_count=len(bands),
            room=room,
            first_engine=first,
            second_engine=second,
            first_words=first_at - here,
            second_words=second_at - here,
            first_y=first_at - here + WORDS[first_table].index("y"),
            second_x=second_at - here + WORDS[second_table].index("x"),
            first_tasks=first_tasks,
            second_tasks=second_tasks,
            panel=Operand("thread", 0, at),
            work_stride=Operand("thread_stride"),
        )
        self.table_of_words("join", words)
        self.stages.append((JOIN, here, len(bands), 1, False, False))

    def table_of_words(self, kind: str, words: Words) -> int:
        """Add the words of a stage and return where they begin."""
        from .._native import OPERAND_NAMES

        names = WORDS[kind]
        if set(names) != set(words):
            raise TypeError(f"{kind}: words {set(names) ^ set(words)}")
        first = len(self.words)
        for i, name in enumerate(names):
            value = words[name]
            if isinstance(value, Operand):
                operand = OPERAND_NAMES.index(value.name)
                self.patches.append((first + i, operand, value.image_bytes, value.offset))
                value = 0
            self.words.append(int(value))
        return first

    def finish(self, work: float, tile: str) -> Any:
        """Return the program; `work` is the estimated time of an image on one thread, in nanoseconds."""
        from .._native import Program

        return Program(
            self.stages,
            self.words,
            self.patches,
            images_per_chunk=self.images_per_chunk,
            scratch=self.scratch_bytes,
            thread=self.thread_bytes,
            packed=self.packed_bytes,
            work=work,
            tasks=max(stage[2] for stage in self.stages),
            input_bytes=math.prod(self.problem.input_shape[1:]) * self.itemsize,
            keep=(self.tables, self.engines),
            isa=self.engines.isa,
            tile=tile,
            copies=tuple(self.copies),
        )


def _bytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count / 1e3:.3g} kB"
