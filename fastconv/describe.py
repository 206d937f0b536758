"""What one call or plan runs, as text."""

from .call import Call

__all__ = ["bytes_text", "describe"]


def describe(call: Call, threads: int, copies: tuple[str, ...] = ()) -> str:
    """Return the report on one call or plan."""
    problem, run = call.problem, call.executable
    scratch = run.scratch_bytes(threads) if hasattr(run, "scratch_bytes") else None
    copies = (*copies, *getattr(run, "copies", ()))
    lines = {
        "problem": str(problem),
        "kernel": f"{call.kernel.backend} {call.kernel.name}",
        "asked for by": call.source,
        "ISA": getattr(run, "isa", None),
        "tile": getattr(run, "tile", None),
        "grid": getattr(run, "launched", None),
        "registers": getattr(run, "registers", None),
        "threads": f"at most {threads}",
        "scratch": None if scratch is None else f"{bytes_text(scratch)}",
        "copies": "; ".join(copies) or "none",
        "operations": f"{problem.flops:,} FLOP",
        "traffic": f"{bytes_text(problem.bytes)} compulsory, {problem.flops / max(problem.bytes, 1):.3g} FLOP/byte",
    }
    return "\n".join(f"{name + ':':<14}{value}" for name, value in lines.items() if value is not None)


def bytes_text(count: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"
