"""Importing the package is light, silent and without side effects."""

import pkgutil

import pytest
from samples import python

import fastconv

HEAVY = ("numba", "llvmlite", "torch", "scipy", "matplotlib", "PIL", "rich", "logging", "importlib.metadata")


def test_import_loads_nothing_heavy():
    loaded = python(f"import fastconv, sys; print([name for name in {HEAVY} if name in sys.modules])")
    already = python(f"import numpy, sys; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded == already


def test_import_gives_no_warnings():
    assert python("import warnings; warnings.simplefilter('error'); import fastconv").strip() == ""


def test_import_leaves_environment_and_logging_alone():
    code = """
import os, sys, numpy
before = dict(os.environ), set(sys.path), sys.getswitchinterval()
import fastconv
assert before == (dict(os.environ), set(sys.path), sys.getswitchinterval())
import logging
assert not logging.getLogger().handlers
"""
    python(code)


def test_environment_is_not_read_at_import():
    wrong = dict.fromkeys(
        ("FASTCONV_BACKEND", "FASTCONV_NUM_THREADS", "FASTCONV_MAX_ISA", "FASTCONV_ACCURACY", "FASTCONV_LOG"),
        "nonsense",
    )
    python("import fastconv", **wrong)


def test_a_call_on_the_oracle_loads_no_compiler():
    code = """
import sys, numpy as np, fastconv
fastconv.conv2d(np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)), backend="numpy")
print([name for name in ("numba", "torch", "scipy") if name in sys.modules])
"""
    assert python(code).strip() == "[]"


def test_public_names_exist_once_and_are_documented():
    assert len(set(fastconv.__all__)) == len(fastconv.__all__)
    for name in fastconv.__all__:
        assert getattr(fastconv, name).__doc__, name


def test_public_names_survive_the_import_of_every_module():
    # Importing a subpackage sets it as an attribute: the folder backends/ would hide the function backends().
    fastconv.backends()
    assert callable(fastconv.backends)
    modules = [
        module.name
        for module in pkgutil.walk_packages(fastconv.__path__, "fastconv.")
        if module.name != "fastconv.__main__"
    ]
    code = f"""
import importlib, fastconv
before = {{name: getattr(fastconv, name) for name in fastconv.__all__}}
for name in {modules!r}:
    try:
        importlib.import_module(name)
    except ImportError:  # an optional dependency is absent
        pass
assert before == {{name: getattr(fastconv, name) for name in fastconv.__all__}}
"""
    python(code)


@pytest.mark.parametrize("optimize", ["-O", "-OO"])
def test_works_without_assertions_and_docstrings(optimize):
    code = f"""
import subprocess, sys
program = "import fastconv; print(fastconv.conv1d([[1.0, 2.0, 3.0]], [[[1.0, 1.0]]], backend='numpy'))"
subprocess.run([sys.executable, {optimize!r}, "-c", program], check=True)
"""
    assert "[[3. 5.]]" in python(code)
