"""What the whole suite shares: which backends and instruction sets it runs on, and fresh settings for each test.

``pytest --backend=NAME`` (repeatable) runs every test that takes the ``backend`` fixture on that backend, a
plugin's too; without it on every backend of the package. One that cannot be used here fails its tests: it must not
go untested unnoticed.
"""

import os

import hypothesis
import pytest

import fastconv

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("dev", deadline=None, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="backend to test (repeatable); all of the package by default",
    )


def pytest_generate_tests(metafunc):
    wanted = [name for name in ("backend", "isa") if name in metafunc.fixturenames]
    names = metafunc.config.getoption("--backend") or own_backends()
    if wanted == ["backend"]:
        metafunc.parametrize("backend", names)
    elif wanted == ["isa"]:
        metafunc.parametrize("isa", usable_isas("cython"))
    elif wanted:
        pairs = [(name, isa) for name in names for isa in usable_isas(name)]
        metafunc.parametrize("backend, isa", pairs, ids=["-".join(filter(None, pair)) for pair in pairs])


def own_backends():
    return [status.name for status in fastconv.backends() if status.origin == "fastconv"]


def usable_isas(backend):
    """Name the instruction sets of this machine that a backend has kernels for; None if it knows of none."""
    if backend not in ("cython", "numba"):
        return [None]
    from fastconv import _native

    return list(_native.isas())


@pytest.fixture(autouse=True)
def default_settings():
    """Undo what a test did to the process-wide default."""
    yield
    fastconv.set_default_backend(None)


@pytest.fixture(scope="session")
def photograph():
    """Return the portrait that matplotlib ships, as float32 (3, 512, 437) between 0 and 1."""
    pytest.importorskip("matplotlib", reason="matplotlib ships the photograph")
    pytest.importorskip("PIL", reason="pillow reads it")
    from fastconv.demo.photo import load_photo

    return load_photo()
