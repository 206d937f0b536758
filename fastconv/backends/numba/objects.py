"""Object code on disk: engines compiled once a machine, and loaded without numba.

Importing numba takes ten times as long as loading an engine, so code that was found here needs llvmlite alone. An
entry is the key, the name of the function, the names it needs, a checksum, and the object code. The key is
everything the code depends on; an entry whose key or checksum differs does not exist.

Code is taken only from folders that nobody but the user (or root) can write to.
"""

import ctypes
import functools
import os
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ... import config
from ...lowering import program

__all__ = ["find", "store", "used_before"]

# Settings of numba that do not change the code.
NEUTRAL = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER")
# Of numba's runtime, which is only there once numba is imported: engines mention it where they would raise an
# exception, which they never do.
RUNTIME = ("numba_", "NRT_")

# Entries of one name that a folder keeps: for some processors that share it, or versions that take turns.
KEPT = 8

_loaded: list[Any] = []  # what owns the code in use


@functools.cache
def edition() -> int:
    """Return a number that changes with any of the sources that engines are compiled from."""
    sources = [*sorted(Path(__file__).parent.glob("*.py")), Path(program.__file__)]
    return functools.reduce(lambda seen, source: zlib.crc32(source.read_bytes(), seen), sources, 0)


def package_version(name: str) -> int:
    """Return a number that changes with the version of a package, without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.origin:
        raise ImportError(f"no package {name}")
    return zlib.crc32((Path(spec.origin).parent / "_version.py").read_bytes())


@functools.cache
def key() -> str:
    """Return what all engines depend on: sources, packages, the processor, and settings of numba.

    Raises
    ------
    Exception
        If llvmlite or numba are not there, or not as expected.
    """
    from llvmlite import binding

    versions = [package_version("numba"), package_version("llvmlite"), np.__version__]
    processor = [binding.get_process_triple(), binding.get_host_cpu_name()]
    features = binding.get_host_cpu_features().flatten()
    settings = sorted(
        (name, value)
        for name, value in os.environ.items()
        if name.startswith("NUMBA_") and name not in NEUTRAL
    )
    return repr((edition(), versions, processor, features, settings))


def folders() -> list[Path]:
    """Return where code may lie, the first choice first."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return [Path(chosen) / "fastconv"]
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [Path(__file__).parent / "__pycache__" / "fastconv", Path(user) / "fastconv"]


def trusted(folder: Path) -> bool:
    """Whether nobody but the user (or root, whom everybody has to trust) can put files there."""
    try:
        state = folder.stat()
    except OSError:
        return False
    return not hasattr(os, "geteuid") or (state.st_uid in (0, os.geteuid()) and not state.st_mode & 0o022)


def file_name(name: str) -> str:
    return f"{name}-{zlib.crc32(key().encode()):08x}.o"


def used_before() -> bool:
    """Whether numba, as it is installed and set now, has compiled engines for this machine before."""
    try:
        pattern = file_name("*")
        return any(trusted(folder) and any(folder.glob(pattern)) for folder in folders())
    except Exception as error:  # whatever hinders loading code is no reason not to compile it
        config.log("DEBUG", "compiled engines on disk: %s", error)
        return False


def find(name: str) -> int | None:
    """Return the address of a function that was stored, loaded into this process, or None."""
    try:
        for folder in folders():
            path = folder / file_name(name)
            if trusted(folder) and path.is_file():
                found = read(path.read_bytes())
                if found is not None:
                    return load(*found)
    except Exception as error:
        config.log("DEBUG", "compiled engines on disk: %s: %s", name, error)
    return None


def store(name: str, function: str, needed: list[str], code: bytes) -> None:
    """Keep object code for later processes, if there is a folder for it."""
    for folder in folders():
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            if not trusted(folder):
                continue
            # Readers find the whole entry or none, whoever else is writing it.
            unfinished = folder / f".{name}-{os.getpid()}"
            unfinished.write_bytes(entry(function, needed, code))
            unfinished.replace(folder / file_name(name))
            by_age = sorted(folder.glob(f"{name}-*.o"), key=lambda path: path.stat().st_mtime_ns)
            for path in by_age[:-KEPT]:
                path.unlink(missing_ok=True)
            return
        except Exception as error:
            config.log("DEBUG", "compiled engines on disk: %s: %s", folder, error)


def entry(function: str, needed: list[str], code: bytes) -> bytes:
    head = "\n".join([key(), function, " ".join(needed)]).encode() + b"\n"
    return b"%08x\n" % zlib.crc32(code, zlib.crc32(head)) + head + code


def read(content: bytes) -> tuple[str, list[str], bytes] | None:
    """Return what was stored, or None if it is damaged or was made for something else."""
    checksum, body = content[:8], content[9:]
    if b"%08x" % zlib.crc32(body) != checksum:
        return None
    its_key, function, needed, code = body.split(b"\n", 3)
    return (function.decode(), needed.decode().split(), code) if its_key.decode() == key() else None


def load(function: str, needed: list[str], code: bytes) -> int | None:
    """Return the address of a function in object code, or None if it needs what is not in this process."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    for name in needed:  # LLVM ends the process over a name that it cannot find
        if binding.address_of_symbol(name) is None:
            if not name.startswith(RUNTIME):
                return None
            binding.add_symbol(name, _address_of_abort())
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _loaded.append(engine)
    return engine.get_function_address(function) or None


def _address_of_abort() -> int:
    address = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    assert address is not None
    return address
