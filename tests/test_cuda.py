"""The cuda backend without a GPU: absent with a reason, right in the simulator, and what the compiler says of it.

What needs a GPU is in ``test_gpu.py``.
"""

import ctypes
import math
import os
import shutil
import subprocess
import sys
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

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
    "full_gradient_tiles",
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

    def test_a_table_that_would_fill_the_memory_is_refused(self, ours):
        problem = fastconv.Problem.create("conv1d", (1, 1, 2**20), (1, 1, 2**10))
        refused = {
            kernel.name: why for kernel, why in registry.verdicts(problem, registry.find_backend("cuda"))
        }
        assert "2**26 pairs" in refused["conv_dense"]


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


@pytest.fixture(scope="module")
def compiler():
    """Return what compiles without a GPU, if NVVM and ptxas are here."""
    cuda = pytest.importorskip("numba.cuda")
    compiled = pytest.importorskip("fastconv.backends.cuda.compiled")
    if compiled.find_ptxas() is None:
        absent("ptxas is neither on the PATH nor among NVIDIA's packages")
    try:
        cuda.compile_ptx(lambda: None, (), cc=(8, 0))
    except Exception as error:  # whatever is missing of the toolkit
        absent(f"NVVM cannot be used: {str(error).splitlines()[0]}")
    return compiled


def absent(what):
    """Skip, but fail where all of the peers are meant to be there."""
    (pytest.fail if os.environ.get("FASTCONV_EXPECT_CUDA_COMPILER") else pytest.skip)(what)


def to_compile():
    try:
        from fastconv.backends.cuda.compiled import entries
    except ImportError:
        return []
    return [pytest.param(name, entry, id=name) for name, entry in entries().items()]


# Blocks that fit on a multiprocessor at least, by the beginning of a kernel's name; 2 for the others.
THREE_BLOCKS = ("conv 128x16", "conv 128x4", "conv 64x", "conv_depthwise", "deform_conv2d ")
# Turing has half of Ampere's shared memory.
ONE_BLOCK = ("deform_conv2d_grad_atomic NCHW float64", "deform_conv2d_grad_ordered NCHW float64")
TABLE = Path(__file__).parents[1] / "docs" / "pages" / "cuda.md"


@pytest.mark.parametrize(("name", "entry"), to_compile())
def test_compiled_kernels_fit_as_planned_and_as_documented(name, entry, compiler):
    ptxas = compiler.find_ptxas()
    found = compiler.compile_entry(entry, ptxas)
    assert tuple(found) == ((7, 5), (8, 0), (9, 0))
    for architecture, one in found.items():
        assert one.spills == 0
        assert one.stack == 0
        assert abs(entry.shared_bytes - one.shared) < 16  # as the launch reckons, alignment aside
        planned = 1 if name in ONE_BLOCK and architecture == (7, 5) else 2 + name.startswith(THREE_BLOCKS)
        assert one.blocks >= planned, architecture
    text = TABLE.read_text()
    (documented,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    if compiler.versions(ptxas) in text:
        assert documented == compiler.row(name, entry, found)
    else:  # another compiler gives out other registers, but memory and threads are ours
        assert documented.split("|")[:4] == compiler.row(name, entry, found).split("|")[:4]


def test_the_table_has_all_kernels_and_no_others():
    names = [case.values[0] for case in to_compile()]
    documented = [line.split("`")[1] for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    if names:  # numba.cuda is there
        assert sorted(documented) == sorted(names)


def test_helpers_compile_too(compiler):
    helpers = [(name, entry) for name, entry in compiler.all_entries() if name.endswith("2d float32")]
    helpers += [pair for pair in compiler.all_entries() if pair[0].startswith(("pack", "clear", "add_parts"))]
    assert len(helpers) == 7
    for name, entry in helpers:
        found = compiler.compile_entry(entry, compiler.find_ptxas())
        assert all(one.spills == 0 for one in found.values()), name


def test_all_kernels_have_shared_memory_enough():
    """Those that no test compiles too: a block has 48 KiB, and more would be refused at launch only."""
    compiled = pytest.importorskip("fastconv.backends.cuda.compiled")
    from fastconv.backends.cuda.entry import SHARED_MOST

    kernels = dict(compiled.all_entries())
    assert len(kernels) == 104
    for name, entry in kernels.items():
        assert entry.shared_bytes <= SHARED_MOST, name


class TestOccupancy:
    """Blocks on a multiprocessor, by the formula that NVIDIA documents."""

    @pytest.mark.parametrize(
        ("capability", "registers", "shared", "threads", "blocks", "share"),
        [
            # CUDA C++ Best Practices Guide, "Calculating Occupancy"
            ((7, 0), 32, 0, 128, 16, 1.0),
            ((7, 0), 37, 0, 128, 12, 0.75),
            ((7, 0), 37, 0, 320, 4, 0.625),
            # CUDA C++ Programming Guide, "Multiprocessor Level": 64 registers and 512 threads: two blocks; one more
            # register, and it is one.
            ((7, 0), 64, 0, 512, 2, 0.5),
            ((7, 0), 65, 0, 512, 1, 0.25),
            # Limits of the tables of compute capabilities, one each: blocks, threads, shared memory.
            ((7, 5), 16, 0, 32, 16, 0.5),
            ((8, 6), 16, 0, 1024, 1, 2 / 3),
            ((8, 0), 16, 48 * 1024, 128, 3, 3 * 128 / 2048),
            ((9, 0), 256, 0, 128, 0, 0.0),
        ],
    )
    def test_published_examples(self, capability, registers, shared, threads, blocks, share):
        from fastconv.backends.cuda.occupancy import occupancy

        found = occupancy(capability, registers, shared, threads)
        assert (found.blocks, found.share) == (blocks, pytest.approx(share))

    def test_an_architecture_to_come_is_not_guessed_at(self):
        from fastconv.backends.cuda.occupancy import occupancy

        assert occupancy((99, 0), 32, 0, 128) is None

    def test_equals_nvidias_own_calculator(self, tmp_path):
        """That is a header of the CUDA toolkit and of NVIDIA's packages, which a C compiler takes."""
        from fastconv.backends.cuda.occupancy import MULTIPROCESSORS, occupancy

        header = next(headers(), None)
        compiler = shutil.which("cc")
        if header is None or compiler is None:
            pytest.skip("cuda_occupancy.h or a C compiler is not here")
        source, program = tmp_path / "calculator.c", tmp_path / "calculator"
        source.write_text(CALCULATOR)
        subprocess.run([compiler, f"-I{header.parent}", source, "-o", program, "-lm"], check=True)
        rng, questions = np.random.default_rng(0), []
        for capability, has in MULTIPROCESSORS.items():
            for registers, shared, warps in rng.integers([1, 0, 1], [256, 48 * 1024, 33], (200, 3)):
                questions.append((capability, has, int(registers), int(shared), 32 * int(warps)))
        asked = "\n".join(
            f"{major} {minor} {has.shared} {has.threads} {has.reserved} {registers} {shared} {threads}"
            for (major, minor), has, registers, shared, threads in questions
        )
        run = subprocess.run([program], input=asked, capture_output=True, text=True, check=True)
        expected = [int(word) for word in run.stdout.split()]
        assert len(expected) == len(questions)
        if -2 in expected:
            pytest.skip("this header is older than some of the architectures")
        for (capability, _, registers, shared, threads), blocks in zip(questions, expected, strict=True):
            found = occupancy(capability, registers, shared, threads)
            assert found.blocks == blocks, (capability, registers, shared, threads)


def headers():
    """Yield where NVIDIA's occupancy calculator is."""
    packages = (Path(folder) / "nvidia" for folder in sys.path if folder)
    for folder in packages:
        yield from sorted(folder.glob("*/include/cuda_occupancy.h"))
    yield from sorted(Path("/usr/local").glob("cuda*/include/cuda_occupancy.h"))


# Answers of NVIDIA's calculator; its errors as negative numbers, -2 for a device it does not know.
CALCULATOR = r"""
#include <stdio.h>
#include <string.h>
#include "cuda_occupancy.h"
int main(void) {
    int major, minor, shared_each, threads_each, reserved, registers, shared, threads;
    while (scanf("%d%d%d%d%d%d%d%d", &major, &minor, &shared_each, &threads_each, &reserved,
                 &registers, &shared, &threads) == 8) {
        cudaOccDeviceProp device;
        cudaOccFuncAttributes kernel;
        cudaOccDeviceState state;
        cudaOccResult result;
        memset(&device, 0, sizeof device);
        memset(&kernel, 0, sizeof kernel);
        memset(&state, 0, sizeof state);
        device.computeMajor = major;
        device.computeMinor = minor;
        device.warpSize = 32;
        device.numSms = 1;
        device.maxThreadsPerBlock = kernel.maxThreadsPerBlock = 1024;
        device.maxThreadsPerMultiprocessor = threads_each;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536;
        device.sharedMemPerBlock = 49152;
        device.sharedMemPerMultiprocessor = shared_each;
        device.sharedMemPerBlockOptin = shared_each - reserved;
        device.reservedSharedMemPerBlock = reserved;
        kernel.numRegs = registers;
        kernel.sharedSizeBytes = shared;
        state.carveoutConfig = 100;
        int error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0);
        printf("%d\n", error ? -error : result.activeBlocksPerMultiprocessor);
    }
    return 0;
}
"""


class Driver:
    """What numba is asked for on a GPU, as far as these tests go: devices, events and streams that are told about."""

    def __init__(self, monkeypatch, module):
        self.log, self.finished, self.current = [], False, 0
        monkeypatch.setattr(module, "simulated", lambda: False)
        stand_in = SimpleNamespace(
            event=self.event,
            default_stream=lambda: SimpleNamespace(synchronize=lambda: self.log.append("settled")),
            get_current_device=lambda: SimpleNamespace(id=self.current, compute_capability=(8, 0)),
            to_device=lambda array: self.log.append(f"to {self.current}") or array.copy(),
        )
        monkeypatch.setattr(module, "cuda", stand_in)

    def event(self, timing):
        return SimpleNamespace(
            record=lambda stream: self.log.append(f"event on {stream}"), query=lambda: self.finished
        )


class TestOrder:
    """What streams and devices do not order is ordered by us."""

    @pytest.fixture
    def launch(self):
        return pytest.importorskip("fastconv.backends.cuda.launch")

    @pytest.fixture
    def driver(self, launch, monkeypatch):
        monkeypatch.setattr(launch, "_kept", type(launch._kept)())
        return Driver(monkeypatch, launch)

    def test_tables_are_uploaded_once_to_each_device_and_waited_for(self, launch, driver):
        tables = launch.OnEachDevice(np.arange(3), np.arange(4))
        first = tables()
        assert driver.log == ["to 0", "to 0", "settled"]
        assert tables() is first
        driver.current = 1
        assert tables() is not first
        assert driver.log == ["to 0", "to 0", "settled", "to 1", "to 1", "settled"]

    def test_what_a_running_kernel_reads_is_kept_until_it_is_done(self, launch, driver):
        class Memory:
            pass

        held = [Memory(), Memory()]
        gone = [weakref.ref(memory) for memory in held]
        for memory in held:
            launch.keep("stream", memory)
        held.clear()
        del memory
        assert all(ref() is not None for ref in gone)
        driver.finished = True
        launch.keep("stream")
        assert all(ref() is None for ref in gone)
        assert driver.log == ["event on stream"] * 3

    def test_more_blocks_than_a_grid_holds_are_refused(self, launch):
        with pytest.raises(fastconv.BackendError, match="split the batch"):
            launch.run(None, 2**31, 128, 0)


class TestOtherLibraries:
    """Their streams and their memory are asked for by name, for what derives from their arrays too."""

    @pytest.fixture
    def arrays(self):
        return pytest.importorskip("fastconv.backends.cuda.arrays")

    def test_results_are_made_by_the_library_of_the_input(self, arrays, monkeypatch):
        with_device = []
        array = type("ndarray", (), {"__module__": "cupy._core", "device": nullcontext(), "dtype": "float32"})
        mine = type("MyArray", (array,), {"__module__": "mine"})
        library = SimpleNamespace(empty=lambda shape, dtype: with_device.append((shape, dtype)) or "empty")
        monkeypatch.setitem(sys.modules, "cupy", library)
        assert arrays.new((2, 3), np.float32, mine()) == "empty"
        assert with_device == [((2, 3), np.float32)]
        assert arrays.library_of(np.zeros(1)) is None

    def test_the_stream_is_the_one_current_on_the_tensors_device(self, arrays, monkeypatch):
        tensor = type("Parameter", (), {"__module__": "torch.nn.parameter", "device": "cuda:1"})
        mine = type("Picture", (tensor,), {"__module__": "mine"})
        asked = []
        stream = lambda device: asked.append(device) or SimpleNamespace(cuda_stream=4096)
        monkeypatch.setitem(
            sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(current_stream=stream))
        )
        monkeypatch.setattr(arrays.cuda, "external_stream", lambda pointer: f"stream {pointer}")
        assert arrays.stream_of(mine()) == "stream 4096"
        assert asked == ["cuda:1"]

    def test_what_came_by_dlpack_alone_is_borrowed(self, arrays):
        class Lender:
            def __dlpack__(self, stream):
                raise NotImplementedError

        array = SimpleNamespace(__cuda_array_interface__={})
        assert [arrays.borrowed(value) for value in (Lender(), array, None)] == [True, False, False]


def test_registers_and_occupancy_are_the_drivers_on_a_device(monkeypatch):
    cuda = pytest.importorskip("numba.cuda")
    resources = pytest.importorskip("fastconv.backends.cuda.resources")
    entry = pytest.importorskip("fastconv.backends.cuda.entry")
    compiled = []
    kernel = SimpleNamespace(
        compile=compiled.append,
        get_regs_per_thread=lambda signature: 37,
        get_local_mem_per_thread=lambda signature: 8,
        get_shared_mem_per_block=lambda signature: 1024,
    )
    device = SimpleNamespace(compute_capability=(7, 0))
    monkeypatch.setattr(cuda, "get_current_device", lambda: device)
    one = entry.Entry(kernel, entry.FORWARD, np.dtype(np.float32), 128, 1024)
    told = resources.of_this_device([one])
    assert told == (
        "37 a thread and 8 B of local memory; 12 blocks on a multiprocessor, occupancy 75% (sm_70)"
    )
    assert len(compiled[0].args) == 21
    device.compute_capability = (99, 0)
    assert "not known" in resources.of_this_device([one])


class TestActivations:
    """Functions of the user's are compiled when a call is prepared, for the device that is there."""

    @pytest.fixture
    def activation(self, compiler, monkeypatch):
        from numba import cuda

        device = SimpleNamespace(compute_capability=(8, 0))
        monkeypatch.setattr(cuda, "get_current_device", lambda: device)
        return lambda function: compiled_activation(function, np.dtype(np.float32))

    @pytest.mark.parametrize("function", [lambda v: v * v, math.tanh, np.tanh, abs])
    def test_functions_and_what_numpy_and_python_have_built_in(self, activation, function):
        activation(function)

    @pytest.mark.parametrize("function", [lambda v: "text", lambda v: (v, v), lambda: 1, lambda v: v.nothing])
    def test_what_cannot_be_compiled_is_a_type_error(self, activation, function):
        with pytest.raises(TypeError, match=r"^activation .* cannot be compiled"):
            activation(function)


def compiled_activation(function, dtype):
    from fastconv.backends.cuda.activation import activation

    return activation(function, dtype)


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
