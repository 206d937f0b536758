"""The vocabulary that the engines are written in: LLVM vectors, typed pointers and tables of words.

Numba has no types for these, so this file teaches it three:

- ``Vector``: a register of so many lanes, with ``+ - * /`` and the verbs below;
- ``Pointer``: an address that knows its element type and how wide a vector is here: ``p[i]``, ``p + n``;
- ``Record``: a pointer to 64-bit words that have names (``fastconv.lowering.program.WORDS``):
  ``a.x_image``, ``sums[i].taps``.

An engine gets a Record, and everything else follows from the type of that argument: the same Python function
compiles for float32 and float64 and for every vector width, helpers included.

Functions named ``emit_*`` write LLVM instructions, for the verbs that are emitted whole, like the tile.
"""

import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.imputils import lower_builtin, lower_getattr_generic, lower_setattr_generic
from numba.core.typing import templates
from numba.core.typing.templates import signature
from numba.extending import intrinsic, register_model

from ...lowering.program import WORDS

# A helper of an engine: compiled into it, never called from Python. Nothing is ever divided by zero.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
helper: Any = njit(**_OPTIONS)

# Stretches of consecutive pixels: read from x on, results at..at+count of a buffer, written from y on.
LAYOUTS = WORDS | {"run": ("x", "at", "count", "y")}

# Tables that engines write to. All others are constant while an engine runs.
MUTABLE = ("run",)

WORD = ir.IntType(64)
INDEX = ir.IntType(32)
INTEGER_POINTER = WORD.as_pointer()
# Of vectors whose masked stores are as fast as whole ones: those of AVX-512.
MASKED_BYTES = 64

word = types.int64
void = types.void


# ---- Types -------------------------------------------------------------------------------------------------


class Vector(types.Type):
    """`lanes` elements in one register; elements of 1 bit are the outcome of a comparison."""

    def __init__(self, element: types.Type, lanes: int):
        self.element, self.lanes = element, lanes
        super().__init__(f"vector({element} x {lanes})")


class Pointer(types.CPointer):
    """An address of elements, which is also told how many of them a vector has."""

    def __init__(self, element: types.Type, lanes: int):
        self.element, self.lanes = element, lanes
        super().__init__(element)
        self.name = f"pointer({element} x {lanes})"

    @property
    def key(self) -> str:
        return self.name


class Record(types.Type):
    """A table of 64-bit words with names; like a pointer, it knows the element type and the vector width."""

    def __init__(self, layout: str, element: types.Type, lanes: int):
        self.layout, self.element, self.lanes = layout, element, lanes
        super().__init__(f"record({layout}, {element} x {lanes})")

    @property
    def fields(self) -> tuple[str, ...]:
        return LAYOUTS[self.layout]

    def of(self, layout: str) -> "Record":
        return Record(layout, self.element, self.lanes)


INTEGERS = Pointer(types.int64, 1)


def ll_element(element: Any) -> ir.Type:
    if isinstance(element, types.Boolean):
        return ir.IntType(1)
    return {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.int64: WORD}[element]


def ll_reals(kind: Any) -> ir.PointerType:
    return ll_element(kind.element).as_pointer()


def ll_vector(kind: Any) -> ir.VectorType:
    return ir.VectorType(ll_element(kind.element), kind.lanes)


def bytes_of(element: Any) -> int:
    return element.bitwidth // 8


def vector_of(kind: Any) -> Vector:
    return Vector(kind.element, kind.lanes)


def reals_of(kind: Any) -> Pointer:
    return Pointer(kind.element, kind.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector):
        super().__init__(manager, kind, ll_vector(kind))


register_model(Pointer)(models.PointerModel)


@register_model(Record)
class _RecordModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Record):
        super().__init__(manager, kind, INTEGER_POINTER)


# ---- Operators ---------------------------------------------------------------------------------------------


def _operator(op: Callable, formals: tuple, resolve: Callable, emit: Callable) -> None:
    """Give `op` a meaning on types of these classes: `resolve` returns the signature, `emit` the value."""

    class Meaning(templates.AbstractTemplate):
        key = op

        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == len(formals) and all(map(isinstance, args, formals)):
                return resolve(*args)
            return None

    templates.infer_global(op)(Meaning)
    lower_builtin(op, *formals)(lambda context, builder, sig, args: emit(builder, sig, *args))


def _arithmetic(op: Callable, on_reals: str, on_integers: str) -> None:
    def resolve(a: Vector, b: Vector) -> Any:
        return signature(a, a, b) if a == b else None

    def emit(builder: Any, sig: Any, a: Any, b: Any) -> Any:
        verb = on_reals if isinstance(sig.return_type.element, types.Float) else on_integers
        return getattr(builder, verb)(a, b)

    _operator(op, (Vector, Vector), resolve, emit)


_arithmetic(operator.add, "fadd", "add")
_arithmetic(operator.sub, "fsub", "sub")
_arithmetic(operator.mul, "fmul", "mul")
_arithmetic(operator.truediv, "fdiv", "sdiv")
_arithmetic(operator.and_, "", "and_")
_arithmetic(operator.or_, "", "or_")


def _comparison(op: Callable, symbol: str) -> None:
    def resolve(a: Vector, b: Vector) -> Any:
        return signature(Vector(types.boolean, a.lanes), a, b) if a == b else None

    # As in C, nothing is true of a NaN but that it differs.
    verb = "fcmp_unordered" if symbol == "!=" else "fcmp_ordered"
    _operator(op, (Vector, Vector), resolve, lambda builder, sig, a, b: getattr(builder, verb)(symbol, a, b))


_comparison(operator.lt, "<")
_comparison(operator.gt, ">")
_comparison(operator.eq, "==")
_comparison(operator.ne, "!=")

_operator(
    operator.add,
    (Pointer, types.Integer),
    lambda p, n: signature(p, p, types.int64),
    lambda builder, sig, p, n: builder.gep(p, [n]),
)
_operator(
    operator.getitem,
    (Record, types.Integer),
    lambda record, i: signature(record, record, types.int64),
    lambda builder, sig, record, i: builder.gep(record, [builder.mul(i, WORD(len(sig.args[0].fields)))]),
)


@templates.infer_getattr
class _RecordFields(templates.AttributeTemplate):
    key = Record

    def generic_resolve(self, record: Any, field: str) -> Any:  # type: ignore[override]
        return types.int64 if field in record.fields else None


def _word(builder: Any, kind: Record, record: Any, field: str) -> Any:
    return builder.gep(record, [INDEX(kind.fields.index(field))])


@lower_getattr_generic(Record)
def _get_word(context: Any, builder: Any, kind: Record, record: Any, field: str) -> Any:
    value = builder.load(_word(builder, kind, record, field))
    if kind.layout not in MUTABLE:
        # No store to an array can change it. LLVM cannot know, and would load it again in every round.
        value.set_metadata("invariant.load", builder.module.add_metadata([]))
    return value


@lower_setattr_generic(Record)
def _set_word(context: Any, builder: Any, sig: Any, args: Any, field: str) -> None:
    record, value = args
    builder.store(value, _word(builder, sig.args[0], record, field))


# ---- Verbs -------------------------------------------------------------------------------------------------


def verb(define: Callable) -> Callable:
    """Make a verb of `define`, which maps the types of the arguments to (signature, emit(builder, *values)).

    Numbers and strings that are written out, or are constants of the module, arrive as literal types.
    """

    @functools.wraps(define)
    def typing(context: Any, *args: Any) -> Any:
        sig, emit = define(*args)

        def generate(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if sig.return_type is void else value

        return sig, generate

    parameters = list(inspect.signature(define).parameters.values())
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    # It is from here that numba takes the names and number of the arguments.
    typing.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
    return intrinsic(prefer_literal=True)(typing)


# Addresses.


@verb
def reals(like, address):
    """The elements at an address found in a record, of the element type and vector width of `like`."""
    return reals_of(like)(like, word), lambda builder, _, at: builder.inttoptr(at, ll_reals(like))


@verb
def integers(address):
    """The 64-bit integers at an address."""
    return INTEGERS(word), lambda builder, at: builder.inttoptr(at, INTEGER_POINTER)


def emit_prefetch(builder: Any, at: Any) -> None:
    byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
    function = builder.module.declare_intrinsic("llvm.prefetch", (), kind)
    builder.call(function, [builder.bitcast(at, byte), flag(0), flag(2), flag(1)])


@verb
def prefetch(pointer):
    """Fetch the cache line at an address into L2."""
    return void(pointer), emit_prefetch


@verb
def records(like, address, layout):
    """The records of a layout at an address."""
    kind = like.of(layout.literal_value)
    return kind(like, word, layout), lambda builder, _, at, __: builder.inttoptr(at, INTEGER_POINTER)


@verb
def address(pointer):
    """The address itself."""
    return word(pointer), lambda builder, at: builder.ptrtoint(at, WORD)


@verb
def elements_before(pointer, end):
    """How many elements there are from the pointer to an end given as an address."""

    def emit(builder, pointer_, end_):
        room = builder.sub(end_, builder.ptrtoint(pointer_, WORD))
        return builder.ashr(room, WORD({4: 2, 8: 3}[bytes_of(pointer.element)]))

    return word(pointer, word), emit


@verb
def narrow(pointer, lanes):
    """The same address for vectors of another width."""
    return Pointer(pointer.element, lanes.literal_value)(pointer, lanes), lambda builder, at, _: at


def emit_stack(builder: Any, element: ir.Type, count: int) -> Any:
    room = cgutils.alloca_once(builder, ir.ArrayType(element, count))
    room.align = 64
    return builder.bitcast(room, element.as_pointer())


@verb
def stack_integers(count):
    """Room for integers in the frame of the function that says so."""
    return INTEGERS(count), lambda builder, _: emit_stack(builder, WORD, count.literal_value)


@verb
def stack_vectors(like, count):
    """Room for the elements of so many vectors in the frame of the function that says so."""
    element, elements = ll_element(like.element), like.lanes * count.literal_value
    return reals_of(like)(like, count), lambda builder, *_: emit_stack(builder, element, elements)


@verb
def stack_runs(like, count):
    """Room for runs in the frame of the function that says so."""
    kind = like.of("run")
    words = count.literal_value * len(kind.fields)
    return kind(like, count), lambda builder, *_: emit_stack(builder, WORD, words)


@verb
def call(function, values, count):
    """Call ``void function(real *values, int64_t count)`` at an address."""

    def emit(builder, function, *args):
        kind = ir.FunctionType(ir.VoidType(), [args[0].type, WORD])
        builder.call(builder.inttoptr(function, kind.as_pointer()), args)

    return void(word, values, word), emit


@verb
def call_engine(function, words, begin, end, thread):
    """Call an engine at an address."""

    def emit(builder, function, *args):
        kind = ir.FunctionType(ir.VoidType(), [INTEGER_POINTER, WORD, WORD, WORD])
        builder.call(builder.inttoptr(function, kind.as_pointer()), args)

    return void(word, INTEGERS, word, word, word), emit


@verb
def words_of(record):
    """The words of a record and those around it."""
    return INTEGERS(record), lambda builder, at: at


# Vectors.


def emit_at(builder: Any, pointer: Any, offset: Any) -> Any:
    """The pointer that lies so many elements further."""
    return builder.gep(pointer, [WORD(offset) if isinstance(offset, int) else offset])


def emit_get(builder: Any, pointer: Any, offset: Any) -> Any:
    """The element that lies so many elements further."""
    return builder.load(emit_at(builder, pointer, offset))


def emit_shuffle(builder: Any, a: Any, b: Any, chosen: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INDEX, len(chosen)), chosen))


def emit_splat(builder: Any, vector: ir.VectorType, value: Any) -> Any:
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, INDEX(0))
    return emit_shuffle(builder, first, first, [0] * vector.count)


def emit_load(builder: Any, kind: Any, pointer: Any, offset: Any = 0) -> Any:
    """Load a vector from so many elements further."""
    place = builder.bitcast(emit_at(builder, pointer, offset), ll_vector(kind).as_pointer())
    return builder.load(place, align=bytes_of(kind.element))


def emit_loads(builder: Any, kind: Any, pointer: Any, vectors: int) -> list:
    """Load so many vectors that lie side by side."""
    return [emit_load(builder, kind, pointer, v * kind.lanes) for v in range(vectors)]


def emit_store(builder: Any, kind: Any, pointer: Any, vector: Any) -> None:
    place = builder.bitcast(pointer, ll_vector(kind).as_pointer())
    builder.store(vector, place, align=bytes_of(kind.element))


def emit_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the processor has an instruction for it."""
    # llvm.fma would call a function of the C library, very slowly, where it has not.
    return emit_call(builder, "llvm.fmuladd", a.type, [a, b, c])


def emit_call(builder: Any, name: str, vector: ir.VectorType, args: list) -> Any:
    """Call an intrinsic of LLVM that maps vectors to a vector."""
    name += f".v{vector.count}f{32 if vector.element == ir.FloatType() else 64}"
    kind = ir.FunctionType(vector, [vector] * len(args))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def emit_first(builder: Any, kind: Any, n: Any) -> Any:
    """The mask of the first n lanes."""
    lanes = ir.VectorType(INDEX, kind.lanes)
    position = ir.Constant(lanes, list(range(kind.lanes)))
    return builder.icmp_unsigned("<", position, emit_splat(builder, lanes, builder.trunc(n, INDEX)))


def emit_mask(builder: Any, kind: Any, masks: Any, n: int) -> Any:
    """The n-th mask of a table of integers, each with a bit for a lane."""
    bits = builder.trunc(emit_get(builder, masks, n), ir.IntType(kind.lanes))
    return builder.bitcast(bits, ir.VectorType(ir.IntType(1), kind.lanes))


def emit_masked_load(builder: Any, kind: Any, pointer: Any, mask: Any) -> Any:
    """Load some lanes, zeros in the others."""
    (zero,) = zeros(kind, 1)
    place, align = builder.bitcast(pointer, zero.type.as_pointer()), INDEX(bytes_of(kind.element))
    return _masked(builder, kind, "load", zero.type, [place, align, mask, zero])


def emit_masked_store(builder: Any, kind: Any, pointer: Any, vector: Any, mask: Any) -> None:
    place, align = builder.bitcast(pointer, vector.type.as_pointer()), INDEX(bytes_of(kind.element))
    _masked(builder, kind, "store", ir.VoidType(), [vector, place, align, mask])


def emit_store_parts(builder: Any, kind: Any, places: list, vectors: list, n: Any) -> None:
    """Store the first n lanes of each vector to its place, or all where n is larger.

    Masks are for AVX-512: a masked store of AVX2 takes tens of cycles on some processors (91 planes of 75 x 101, 3x3: 3.8
    and not 0.4 ms). There one half of the lanes is stored, or none, then of the others one half, and so on.
    """
    size = kind.lanes
    if size * bytes_of(kind.element) == MASKED_BYTES:
        for place, vector in zip(places, vectors, strict=True):
            emit_masked_store(builder, kind, place, vector, emit_first(builder, kind, n))
        return
    n = builder.select(builder.icmp_signed("<", n, WORD(size)), n, WORD(size))
    while size:
        chosen = builder.icmp_signed("!=", builder.and_(n, WORD(size)), WORD(0))
        with builder.if_then(chosen):
            for place, vector in zip(places, vectors, strict=True):
                part = emit_shuffle(builder, vector, vector, list(range(size)))
                to = builder.bitcast(place, part.type.as_pointer())
                builder.store(part, to, align=bytes_of(kind.element))
        moved = [min(lane + size, kind.lanes - 1) for lane in range(kind.lanes)]
        places = [builder.select(chosen, emit_at(builder, place, size), place) for place in places]
        vectors = [builder.select(chosen, emit_shuffle(builder, v, v, moved), v) for v in vectors]
        size //= 2


def _masked(builder: Any, kind: Any, verb: str, result: ir.Type, args: list) -> Any:
    letter = "f" if isinstance(kind.element, types.Float) else "i"
    function = ir.FunctionType(result, [arg.type for arg in args])
    name = f"llvm.masked.{verb}.v{kind.lanes}{letter}{kind.element.bitwidth}.p0"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


@verb
def lanes(like):
    """How many elements a vector has here."""
    return word(like), lambda builder, _: WORD(like.lanes)


@verb
def bytes_each(like):
    """How many bytes an element has."""
    return word(like), lambda builder, _: WORD(bytes_of(like.element))


@verb
def real(like, value):
    """A number of the element type."""
    return like.element(like, like.element), lambda builder, _, value: value


@verb
def double_of(bits):
    """The double that a word holds the bits of."""
    return types.float64(word), lambda builder, value: builder.bitcast(value, ir.DoubleType())


@verb
def load(p):
    return vector_of(p)(p), lambda builder, at: emit_load(builder, p, at)


@verb
def store(p, vector):
    return void(p, vector), lambda builder, at, value: emit_store(builder, vector, at, value)


@verb
def load_part(p, n):
    """The first n elements, zeros behind them; nothing behind them is touched."""

    def emit(builder, at, n):
        return emit_masked_load(builder, p, at, emit_first(builder, p, n))

    return vector_of(p)(p, word), emit


@verb
def store_part(p, vector, n):
    def emit(builder, at, value, n):
        emit_store_parts(builder, vector, [at], [value], n)

    return void(p, vector, word), emit


@verb
def splat(like, value):
    """A vector all of whose lanes are `value`."""
    vector = vector_of(like)
    return vector(like, like.element), lambda builder, _, value: emit_splat(builder, ll_vector(like), value)


@verb
def fma(a, b, c):
    """a * b + c, rounded once where the processor has an instruction for it."""
    return a(a, b, c), emit_fma


@verb
def select(mask, yes, no):
    return yes(mask, yes, no), lambda builder, mask, yes, no: builder.select(mask, yes, no)


@verb
def at_least(a, b):
    """The greater of each pair of lanes; a NaN in `a` stays."""
    return a(a, b), lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), b, a)


@verb
def at_most(a, b):
    """The smaller of each pair of lanes; a NaN in `a` stays."""
    return a(a, b), lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), b, a)


@verb
def floor(v):
    return v(v), lambda builder, value: emit_call(builder, "llvm.floor", value.type, [value])


@verb
def to_integers(v):
    """A vector of 64-bit integers from whole numbers of less than 32 bits."""

    def emit(builder, value):
        # By way of 32 bits, to which every instruction set converts whole vectors.
        short = builder.fptosi(value, ir.VectorType(INDEX, v.lanes))
        return builder.sext(short, ir.VectorType(WORD, v.lanes))

    return Vector(word, v.lanes)(v), emit


@verb
def evens(a, b):
    """Every second lane of two vectors, from the first on."""
    chosen = list(range(0, 2 * a.lanes, 2))
    return a(a, b), lambda builder, a, b: emit_shuffle(builder, a, b, chosen)


@verb
def odds(a, b):
    """Every second lane of two vectors, from the second on."""
    chosen = list(range(1, 2 * a.lanes, 2))
    return a(a, b), lambda builder, a, b: emit_shuffle(builder, a, b, chosen)


@verb
def zipped(a, b, half):
    """The lanes of two vectors in turn: the first half of them (0), or the second (1)."""
    begin = half.literal_value * a.lanes // 2
    chosen = [begin + i // 2 + i % 2 * a.lanes for i in range(a.lanes)]
    return a(a, b, half), lambda builder, a, b, _: emit_shuffle(builder, a, b, chosen)


@verb
def thirds(a, b, c, first):
    """Every third lane of three vectors, from `first` on."""
    places = range(first.literal_value, 3 * a.lanes, 3)
    of_two = [at if at < 2 * a.lanes else 0 for at in places]
    chosen = [k if at < 2 * a.lanes else at - a.lanes for k, at in enumerate(places)]

    def emit(builder, a, b, c, _):
        return emit_shuffle(builder, emit_shuffle(builder, a, b, of_two), c, chosen)

    return a(a, b, c, first), emit


@verb
def store_spread(p, v):
    """Store the lanes of a vector to p[0], p[2], p[4]...; what lies between is not touched."""

    def emit(builder, at, value):
        half = v.lanes // 2
        mask = ir.Constant(ir.VectorType(ir.IntType(1), v.lanes), [1, 0] * half)
        for part in (0, 1):
            spread = emit_shuffle(builder, value, value, [part * half + i // 2 for i in range(v.lanes)])
            emit_masked_store(builder, v, emit_at(builder, at, part * v.lanes), spread, mask)

    return void(p, v), emit


@verb
def shuffle(a, b, i, j, k, m):
    """Four lanes out of the eight of two short vectors."""
    chosen = [index.literal_value for index in (i, j, k, m)]
    return a(a, b, i, j, k, m), lambda builder, a, b, *_: emit_shuffle(builder, a, b, chosen)


# ---- Code that is emitted whole ----------------------------------------------------------------------------


def emit_loop(builder: Any, count: Any, start: list, step: Callable) -> list:
    """Emit ``values = start; for k in range(count): values = step(k, values)``, the values in registers."""
    before, function = builder.block, builder.function
    loop, after = function.append_basic_block("loop"), function.append_basic_block("after")
    builder.cbranch(builder.icmp_signed(">", count, WORD(0)), loop, after)
    builder.position_at_end(loop)
    k = builder.phi(WORD)
    carried = [builder.phi(value.type) for value in start]
    updated = step(k, carried)
    following = builder.add(k, WORD(1))
    _as_written(builder.cbranch(builder.icmp_signed("<", following, count), loop, after))
    last = builder.block
    builder.position_at_end(after)
    final = [builder.phi(value.type) for value in start]
    k.add_incoming(WORD(0), before)
    k.add_incoming(following, last)
    for first, old, new, end in zip(start, carried, updated, final, strict=True):
        for phi in (old, end):
            phi.add_incoming(first, before)
            phi.add_incoming(new, last)
    return final


def _as_written(branch: Any) -> None:
    """Have LLVM leave a loop as it is.

    In the tiles the registers are full already, and two rounds at a time spill and take twice as long; loops
    that move single elements grow to hundreds of instructions, gathers among them, and are no faster.
    """
    module = branch.function.module
    wishes = [
        module.add_metadata(["llvm.loop.unroll.disable"]),
        module.add_metadata(["llvm.loop.vectorize.enable", ir.Constant(ir.IntType(1), 0)]),
    ]
    identity = ir.MDValue(module, wishes, name=str(len(module.metadata)))
    identity.operands = (identity, *wishes)  # LLVM wants a loop's description to begin with itself
    branch.set_metadata("llvm.loop", identity)


def zeros(kind: Any, count: int) -> list:
    """So many vectors of zeros, for sums to start from."""
    return [ir.Constant(ll_vector(kind), None)] * count


def emit_totals(builder: Any, kind: Any, totals: list, places: list, add: Any) -> None:
    """Store the totals of sums, or add them to what is there."""
    with builder.if_else(builder.icmp_signed("!=", add, WORD(0))) as (adding, storing):
        with adding:
            for total, place in zip(totals, places, strict=True):
                emit_store(builder, kind, place, builder.fadd(emit_load(builder, kind, place), total))
        with storing:
            for total, place in zip(totals, places, strict=True):
                emit_store(builder, kind, place, total)


def emit_function(builder: Any, name: str, kind: ir.FunctionType, emit: Callable) -> Any:
    """Return a function that is emitted at its first mention and never inlined: it has all registers to itself."""
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    if not function.blocks:
        function.linkage = "linkonce_odr"  # one copy, however many modules that have it are linked
        function.attributes.add("noinline")
        function.attributes.add("nounwind")
        inner = ir.IRBuilder(function.append_basic_block("entry"))
        value = emit(inner, *function.args)
        if value is None:
            inner.ret_void()
        else:
            inner.ret(value)
    return function


def emit_out_of_line(builder: Any, name: str, args: Sequence, emit: Callable) -> None:
    """Call a function of its own, which is emitted at its first use."""
    kind = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
    builder.call(emit_function(builder, name, kind, emit), args)


def emit_table(builder: Any, name: str, functions: dict[int, Any]) -> Any:
    """Return a constant table of the addresses of functions, by their numbers.

    An engine hands tables to its helpers, so that the functions are compiled with the engine alone: LLVM works
    on a helper by itself and then again on whatever it is linked into.
    """
    entries = [functions[n].ptrtoint(WORD) if n in functions else WORD(0) for n in range(max(functions) + 1)]
    kind = ir.ArrayType(WORD, len(entries))
    if name not in builder.module.globals:
        table = cgutils.add_global_variable(builder.module, kind, name)
        table.linkage, table.global_constant = "internal", True
        table.initializer = ir.Constant(kind, entries)
    return builder.bitcast(builder.module.globals[name], INTEGER_POINTER)


def emit_call_entry(builder: Any, table: Any, number: Any, kind: ir.FunctionType, args: Sequence) -> Any:
    """Call the function that has a number in a table."""
    function = builder.inttoptr(emit_get(builder, table, number), kind.as_pointer())
    return builder.call(function, args)


def emit_switch(builder: Any, value: Any, cases: dict[int, Callable]) -> None:
    """Jump on a value that is one of the cases."""
    function = builder.function
    nothing, after = function.append_basic_block("nothing"), function.append_basic_block("after")
    jump = builder.switch(value, nothing)
    builder.position_at_end(nothing)
    builder.unreachable()
    for case, emit in cases.items():
        block = function.append_basic_block(f"case_{case}")
        jump.add_case(WORD(case), block)
        builder.position_at_end(block)
        emit()
        builder.branch(after)
    builder.position_at_end(after)


class Term:
    """A vector of the function being emitted, for formulas: ``a + 2 * b``; numbers become vectors."""

    __array_ufunc__ = None  # so that a NumPy number on the left leaves the operation to us

    def __init__(self, builder: Any, value: Any):
        self.builder, self.value = builder, value

    def all_lanes(self, number: Any) -> Any:
        return ir.Constant(self.value.type, [float(number)] * self.value.type.count)

    def _apply(self, verb: str, other: Any) -> "Term":
        value = other.value if isinstance(other, Term) else self.all_lanes(other)
        return Term(self.builder, getattr(self.builder, verb)(self.value, value))

    def __add__(self, other: "Term") -> "Term":
        return self._apply("fadd", other)

    def __sub__(self, other: "Term") -> "Term":
        return self._apply("fsub", other)

    def __mul__(self, other: Any) -> "Term":
        return self._apply("fmul", other)

    __rmul__ = __mul__

    def __truediv__(self, number: Any) -> "Term":
        return self._apply("fdiv", number)

    def times_plus(self, number: Any, addend: "Term") -> "Term":
        """self * number + addend, as emit_fma rounds it."""
        value = emit_fma(self.builder, self.all_lanes(number), self.value, addend.value)
        return Term(self.builder, value)
