"""What the whole suite shares: which backends and instruction sets it runs on, and fresh settings for each test.

``pytest --backend=NAME`` (repeatable) runs every test that takes the ``backend`` fixture on that backend, a
plugin's too; without it on every backend of the package that needs no GPU. One that cannot be used here fails its
tests: it must not go untested unnoticed. ``cuda`` has tests of its own, in ``test_cuda.py`` and ``test_gpu.py``.
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


# Tests that share nothing, and take long: they are handed out one by one.
ONE_BY_ONE = ("test_conformance.py", "test_cuda.py")


def pytest_collection_modifyitems(config, items):
    """Say which tests `pytest -n 2 --dist loadgroup` runs in one process, so that no two do the same work twice."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        group = group_of(item)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))


def group_of(item):
    """Return a name for all tests that need numba's engines of one vector width compiled, or else are of one file."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if parameters.get("backend") == "numba" or item.path.name == "test_numba.py":
        return f"numba {parameters.get('isa') or usable_isas('numba')[-1]}"
    return None if item.path.name in ONE_BY_ONE else item.path.name


def own_backends():
    return [
        status.name for status in fastconv.backends() if status.origin == "fastconv" and status.name != "cuda"
    ]


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


@pytest.fixture
def exact_kernels():
    """Leave out kernels that round sums of whole numbers: they would break an equality by a bit."""
    with fastconv.accuracy("high"):
        yield
