"""The cuda backend without a GPU: absent with a reason, right in the simulator, and what the compiler says of it.

What needs a GPU is in ``test_gpu.py``.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import registry, testing

SIMULATED = Path(__file__).with_name("simulated_cuda.py")
PARTS = (
    "conv",
    "conv_transpose",
    "deform_conv",
    "gradients",
    "full_tiles",
    "activations special_offsets",
    "forms device_arrays",
)


@pytest.fixture
def ours():
    return registry.find_backend("cuda").ready()


class TestAbsent:
    def test_without_numba_cuda_the_reason_names_the_extra(self, ours, monkeypatch):
        monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
        monkeypatch.setattr(sys.modules[type(ours).__module__], "find_spec", lambda name: None)
        assert ours.unavailable() == "numba-cuda is not installed: pip install 'fastconv[cuda]'"

    def test_without_a_driver_the_reason_names_it(self, ours, monkeypatch):
        cuda = pytest.importorskip("numba.cuda")
        monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
        monkeypatch.setattr(sys.modules[type(ours).__module__], "find_spec", lambda name: object())
        monkeypatch.setattr(cuda, "is_available", lambda: False)
        monkeypatch.setattr(cuda, "cuda_error", lambda: "no libcuda.so")
        assert "there is no NVIDIA driver with a GPU here (no libcuda.so)" in ours.unavailable()

    def test_a_call_that_names_it_says_why_not(self, ours, monkeypatch):
        monkeypatch.setattr(type(ours), "unavailable", lambda self: "it is not there")
        with pytest.raises(fastconv.BackendError, match=r"'cuda' .* cannot be used: it is not there"):
            fastconv.conv1d([[1.0, 2.0]], [[[1.0]]], backend="cuda")
        y = fastconv.conv1d([[1.0, 2.0]], [[[1.0]]], backend=["cuda", "numpy"])
        np.testing.assert_array_equal(y, [[1.0, 2.0]])

    def test_it_never_runs_unasked(self, ours, monkeypatch):
        monkeypatch.setattr(type(ours), "unavailable", lambda self: None)
        told = fastconv.explain("conv2d", (8, 64, 56, 56), (64, 64, 3, 3))
        assert told.backend != "cuda"
        assert told.refusals["cuda conv_dense"] == "cuda runs only where it is named"


def test_the_atomic_kernel_is_refused_where_the_same_bits_are_asked_for(ours, monkeypatch):
    case = next(iter(testing.cases("deform_conv2d_grad", 1)))
    entry = registry.find_backend("cuda")
    monkeypatch.setattr("fastconv.config.environment_deterministic", lambda: False)
    chosen = {kernel.name: refusal for kernel, refusal in registry.verdicts(case.problem(), entry)}
    assert chosen == {"deform_conv_grad_atomic": None, "deform_conv_grad_ordered": None}
    monkeypatch.setattr("fastconv.config.environment_deterministic", lambda: True)
    chosen = {kernel.name: refusal for kernel, refusal in registry.verdicts(case.problem(), entry)}
    assert "FASTCONV_DETERMINISTIC" in chosen["deform_conv_grad_atomic"]
    assert chosen["deform_conv_grad_ordered"] is None


@pytest.mark.parametrize("part", PARTS)
def test_in_the_simulator(part):
    pytest.importorskip("numba.cuda")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("FASTCONV_", "NUMBA_"))
    }
    environment["NUMBA_ENABLE_CUDASIM"] = "1"
    environment.pop("PYTHONSAFEPATH", None)  # the script imports its neighbour
    run = subprocess.run(
        [sys.executable, str(SIMULATED), *part.split()], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "done\n"


# Blocks that fit on a multiprocessor at least, by the beginning of a kernel's name; 2 for the others.
THREE_BLOCKS = (
    "conv_dense 128x16",
    "conv_dense 128x4",
    "conv_dense 64x",
    "conv_depthwise",
    "deform_conv2d_tile",
)
# Turing has half of Ampere's shared memory.
ONE_BLOCK = {("deform_conv2d_grad_atomic float64", (7, 5)), ("deform_conv2d_grad_ordered float64", (7, 5))}


@pytest.fixture(scope="module")
def compiler():
    """Return what compiles without a GPU, if NVVM and ptxas are here."""
    cuda = pytest.importorskip("numba.cuda")
    compiled = pytest.importorskip("fastconv.backends.cuda.compiled")
    if compiled.find_ptxas() is None:
        pytest.skip("ptxas is neither on the PATH nor among NVIDIA's packages")
    try:
        cuda.compile_ptx(lambda: None, (), cc=(8, 0))
    except Exception as error:  # whatever is missing of the toolkit
        pytest.skip(f"NVVM cannot be used: {str(error).splitlines()[0]}")
    return compiled


def to_compile():
    try:
        from fastconv.backends.cuda.compiled import entries
    except ImportError:
        return []
    return [pytest.param(entry, id=entry.name) for entry in entries()]


@pytest.mark.parametrize("entry", to_compile())
def test_compiled_kernels_fit_as_planned(entry, compiler):
    for architecture in compiler.ARCHITECTURES:
        found = compiler.compile_entry(entry, architecture, compiler.find_ptxas())
        assert found.spills == 0
        assert found.stack == 0
        assert abs(entry.shared_bytes - found.shared) < 16  # as the launch reckons, alignment aside
        planned = 1 if (entry.name, architecture) in ONE_BLOCK else 2 + entry.name.startswith(THREE_BLOCKS)
        assert found.blocks >= planned, architecture


class TestDLPack:
    """The capsule is read right, on memory of the host: what it holds does not depend on the device."""

    @pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
    def test_a_capsule_says_where_the_array_is(self, dtype):
        read = pytest.importorskip("fastconv.backends.cuda.dlpack").read_capsule
        array = np.arange(24, dtype=dtype).reshape(2, 3, 4)[:, 1:]
        found = read(array.__dlpack__())
        assert found["shape"] == array.shape
        assert np.dtype(found["typestr"]) == array.dtype
        assert found["data"] == (array.ctypes.data, False)
        assert found["strides"] == array.strides
        first = ctypes.string_at(found["data"][0], array.itemsize)
        assert np.frombuffer(first, dtype)[0] == 4

    def test_other_types_are_refused(self):
        read = pytest.importorskip("fastconv.backends.cuda.dlpack").read_capsule
        with pytest.raises(TypeError, match="no real number"):
            read(np.zeros(3, np.complex64).__dlpack__())
