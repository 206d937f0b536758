"""Tasks that add to the same sums take turns, in the order of their numbers.

So the sums have the same bits whatever thread a task ran on, and no task needs sums of its own in memory. A task
tells how far it has come, and waits only for tasks with smaller numbers; a stage whose tasks are handed out one by
one in rising order always goes on.
"""

from numba.core import cgutils

from .simd import INDEX, INTEGERS, ir, verb, void, word

WORD_BYTES = 8


@verb
def await_progress(progress, wanted):
    """Return when *progress is at least `wanted`; what was written before it was told is then there."""

    def emit(builder, at, wanted):
        # More threads than cores: who is waited for may not be running.
        let_others_run = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(INDEX, []), "sched_yield"
        )
        function = builder.function
        look, wait, after = (function.append_basic_block(name) for name in ("look", "wait", "turn"))
        builder.branch(look)
        builder.position_at_end(look)
        reached = builder.load_atomic(at, "acquire", WORD_BYTES)
        builder.cbranch(builder.icmp_signed("<", reached, wanted), wait, after)
        builder.position_at_end(wait)
        builder.call(let_others_run, [])
        builder.branch(look)
        builder.position_at_end(after)

    return void(INTEGERS, word), emit


@verb
def tell_progress(progress, reached):
    def emit(builder, at, reached):
        builder.store_atomic(reached, at, "release", WORD_BYTES)

    return void(INTEGERS, word), emit
