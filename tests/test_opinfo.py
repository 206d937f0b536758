"""PyTorch's own sample inputs for its six convolutions (OpInfo): fastconv's answers against torch's."""

import warnings
from functools import cache

import numpy as np
import pytest
from helpers import FLOAT32, FLOAT32_LONG, FLOAT64, describe, normals, run

import fastconv
from fastconv.problem import CONV, CONV_TRANSPOSE
from fastconv.testing import assert_close, assert_exact

torch = pytest.importorskip("torch", reason="torch brings the samples and the reference")
internal = "torch.testing._internal.common_methods_invocations"  # where torch keeps its OpInfo database

OPS = CONV + CONV_TRANSPOSE
POSITIONAL = {  # the arguments after input and weight, in torch's order and ours
    "conv": ("bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose": ("bias", "stride", "padding", "output_padding", "groups", "dilation"),
}


@cache
def op_info(op):
    """Return torch's description of one function."""
    invocations = pytest.importorskip(internal, reason="this torch does not ship its OpInfo database")
    return next(info for info in invocations.op_db if info.name == f"nn.functional.{op}")


def to_numpy(value):
    """Return a tensor as an array (bfloat16 as that of ml_dtypes) and anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    if value.dtype == torch.bfloat16:
        bfloat16 = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays come from ml_dtypes").bfloat16
        return value.view(torch.int16).numpy().view(bfloat16)
    return value.numpy()


def samples(op, dtype):
    """Yield (torch arguments, our arguments, options, text) of every sample."""
    drawn = op_info(op).sample_inputs("cpu", dtype, requires_grad=False)
    for number, sample in enumerate(drawn):
        given = (sample.input, *sample.args)
        ours = tuple(map(to_numpy, given))
        yield given, ours, sample.kwargs, f"sample {number}: {describe(op, *ours, **sample.kwargs)}"


def wide(values):
    """Return torch arguments with every tensor in float64."""
    return [value.double() if isinstance(value, torch.Tensor) else value for value in values]


def reference(op, arguments, options):
    """Return torch's answer in float64, whose rounding errors are far below those of any smaller type."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using padding='same'")  # of a copy that torch makes
        return getattr(torch.nn.functional, op)(*wide(arguments), **options).numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", FLOAT32), ("float64", FLOAT64)])
@pytest.mark.parametrize("op", OPS)
def test_samples(backend, op, dtype, tolerance):
    count = 0
    for given, ours, options, text in samples(op, getattr(torch, dtype)):
        actual = run(backend, op, *ours, **options)
        assert actual.dtype == dtype, text
        assert_close(actual, reference(op, given, options), tolerance, text)
        count += 1
    assert count >= 10, "torch gave fewer samples than it used to"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("op", OPS)
def test_samples_in_half_precision(backend, op, dtype):
    """What comes back is float32's answer rounded: within one unit in the last place of the true one."""
    for given, ours, options, text in samples(op, getattr(torch, dtype)):
        actual = run(backend, op, *ours, **options)
        expected = reference(op, given, options)
        assert actual.dtype == ours[0].dtype, text
        unit = 2.0**-10 if dtype == "float16" else 2.0**-7  # distance of neighbours, relative
        assert_close(actual.astype(np.float64), expected, unit, text)
        longer = [array.astype(np.float32) if isinstance(array, np.ndarray) else array for array in ours]
        assert_exact(actual, run(backend, op, *longer, **options).astype(actual.dtype), text)


@pytest.mark.parametrize("op", OPS)
def test_samples_of_whole_numbers(backend, op):
    for given, ours, options, text in samples(op, torch.int64):
        actual = run(backend, op, *ours, **options)
        assert_exact(actual, reference(op, given, options), text)


def error_of(backend, op, arguments, options):
    """Return the exception that a call raises, or its result."""
    try:
        return getattr(fastconv, op)(*arguments, **options, backend=backend)
    except Exception as error:
        return error


@pytest.mark.parametrize("op", OPS)
def test_complex_samples_are_refused(backend, op):
    for _, ours, options, text in samples(op, torch.complex64):
        error = error_of(backend, op, ours, options)
        assert type(error) is TypeError, text
        assert "must hold real numbers, got dtype complex64" in str(error), text


@pytest.mark.parametrize("op", CONV)
def test_what_torch_refuses(backend, op):
    """An error of torch's is one of ours, but for integer weights and a float input: those NumPy promotes."""
    for error in op_info(op).error_inputs("cpu"):
        sample = error.sample_input
        ours = tuple(map(to_numpy, (sample.input, *sample.args)))
        text = describe(op, *ours, **sample.kwargs)
        kinds = {array.dtype.kind for array in ours if isinstance(array, np.ndarray)}
        if kinds == {"f", "i"} and "same" in error.error_regex:
            assert_close(
                run(backend, op, *ours, **sample.kwargs),
                reference(op, (sample.input, *sample.args), sample.kwargs),
                FLOAT64,
                text,
            )
            continue
        ours_says = error_of(backend, op, ours, sample.kwargs)
        expected = TypeError if "c" in kinds else ValueError
        assert isinstance(ours_says, expected), f"{text}: torch says {error.error_regex!r}, we {ours_says!r}"


@pytest.mark.parametrize("op", OPS)
def test_arguments_have_torchs_order(backend, op):
    """Code moves over unchanged: everything by position."""
    order = POSITIONAL[op[:-2]]
    values = {"stride": 2, "padding": 1, "dilation": 3, "groups": 2, "output_padding": 1}
    ndim = int(op[-2])
    rng = np.random.default_rng(0)
    shapes = {"input": (2, 4, *(13, 9, 11)[:ndim]), "weight": (4, 2, *(3, 2, 4)[:ndim]), "bias": (4,)}
    arrays = {name: normals(rng, shape) for name, shape in shapes.items()}
    arguments = [arrays["input"], arrays["weight"], arrays["bias"], *(values[name] for name in order[1:])]
    tensors = [torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in arguments]
    expected = getattr(torch.nn.functional, op)(*tensors).numpy()
    assert_close(run(backend, op, *arguments), expected, FLOAT64, describe(op, *arguments))


# (function, C, O, G, size, kernel, options): layers of known networks, on small images
LAYERS = {
    "conv1d-speech": ("conv1d", 80, 64, 1, (50,), (11,), {"stride": 2, "padding": 5}),
    "conv1d-wavenet": ("conv1d", 32, 64, 1, (90,), (2,), {"dilation": 16}),
    "conv2d-stem": ("conv2d", 3, 64, 1, (39, 45), (7, 7), {"stride": 2, "padding": 3}),
    "conv2d-pointwise": ("conv2d", 256, 64, 1, (7, 9), (1, 1), {}),
    "conv2d-depthwise": ("conv2d", 96, 96, 96, (15, 22), (7, 7), {"padding": 3}),
    "conv2d-grouped": ("conv2d", 128, 128, 32, (14, 13), (3, 3), {"padding": 1}),
    "conv2d-atrous": ("conv2d", 64, 32, 1, (17, 19), (3, 3), {"padding": 6, "dilation": 6}),
    "conv3d-video": ("conv3d", 16, 32, 1, (4, 9, 11), (3, 3, 3), {"padding": 1, "stride": (1, 2, 2)}),
    "conv_transpose1d-vocoder": ("conv_transpose1d", 64, 32, 1, (33,), (16,), {"stride": 8, "padding": 4}),
    "conv_transpose2d-upsample": ("conv_transpose2d", 64, 32, 1, (7, 9), (4, 4), {"stride": 2, "padding": 1}),
    "conv_transpose2d-depthwise": (
        "conv_transpose2d",
        24,
        24,
        24,
        (9, 8),
        (3, 3),
        {"stride": 2, "padding": 1, "output_padding": 1},
    ),
    "conv_transpose3d-unet": ("conv_transpose3d", 32, 16, 1, (3, 5, 4), (2, 2, 2), {"stride": 2}),
}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", FLOAT32), ("float64", FLOAT64)])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(backend, name, dtype, tolerance, layout):
    op, c, o, groups, size, kernel, options = LAYERS[name]
    rng = np.random.default_rng(len(name))
    first, second = (c, o // groups) if op in CONV_TRANSPOSE else (o, c // groups)
    x, weight, bias = (
        normals(rng, shape, dtype) for shape in ((2, c, *size), (first, second, *kernel), (o,))
    )
    options = options | {"groups": groups}
    expected = reference(op, map(torch.from_numpy, (x, weight, bias)), options)
    if layout == "NHWC":
        x, expected = (np.moveaxis(array, 1, -1) for array in (x, expected))
    actual = run(backend, op, x, weight, bias, **options, layout=layout)
    assert_close(actual, expected, tolerance, describe(op, x, weight, bias, **options, layout=layout))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d"])
def test_a_sum_over_4608_terms(backend, op, layout):
    rng = np.random.default_rng(0)
    shape = (16, 512, 3, 3) if op == "conv2d" else (512, 16, 3, 3)
    x, weight = normals(rng, (1, 512, 7, 7), "float32"), normals(rng, shape, "float32")
    expected = reference(op, map(torch.from_numpy, (x, weight)), {"padding": 1})
    if layout == "NHWC":
        x, expected = (np.moveaxis(array, 1, -1) for array in (x, expected))
    for accuracy in (None, "high"):
        options = {"padding": 1, "layout": layout, "accuracy": accuracy}
        assert_close(
            run(backend, op, x, weight, **options), expected, FLOAT32_LONG, describe(op, x, weight, **options)
        )
