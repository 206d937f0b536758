"""The ONNX project's node tests for Conv, ConvTranspose and DeformConv, and random nodes against onnxruntime.

A node is turned into a call of fastconv by the rules of the operator's specification, here in the test.
"""

import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers import FLOAT32, describe, integers, run

from fastconv.testing import assert_close, assert_exact

onnx = pytest.importorskip("onnx", reason="onnx brings the node tests")

FUNCTIONS = {"Conv": "conv", "ConvTranspose": "conv_transpose", "DeformConv": "deform_conv"}
# The answers that onnx ships were computed in float32: theirs and our rounding errors add up.
SHIPPED = 2 * FLOAT32


def as_call(node, arrays):
    """Return (function, operands, options) of fastconv for a node and its arrays in the node's order."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    order = (
        ("input", "weight", "offset", "bias", "mask")
        if node.op_type == "DeformConv"
        else ("input", "weight", "bias")
    )
    present = [name for name, given in zip(order, node.input, strict=False) if given]
    operands = dict(zip(present, arrays, strict=True))
    size, kernel = operands["input"].shape[2:], operands["weight"].shape[2:]
    ndim = len(size)
    assert tuple(attributes.get("kernel_shape", kernel)) == kernel
    options = {
        "stride": tuple(attributes.get("strides", (1,) * ndim)),
        "dilation": tuple(attributes.get("dilations", (1,) * ndim)),
    }
    span = [d * (k - 1) + 1 for k, d in zip(kernel, options["dilation"], strict=True)]
    auto_pad = attributes.get("auto_pad", b"NOTSET").decode()
    given_pads = attributes.get("pads", (0,) * 2 * ndim)
    options["padding"] = tuple(zip(given_pads[:ndim], given_pads[ndim:], strict=True))
    if node.op_type != "DeformConv":  # whose groups follow from the shapes
        options["groups"] = attributes.get("group", 1)
    if node.op_type == "ConvTranspose":
        extra = tuple(attributes.get("output_padding", (0,) * ndim))
        wanted = attributes.get("output_shape")
        if wanted is None and auto_pad.startswith("SAME"):
            wanted = [n * s for n, s in zip(size, options["stride"], strict=True)]
        if wanted is None:
            options["output_padding"] = extra
        else:  # padding is what makes the output that large; if none can, zeros are added at the end
            wanted = tuple(wanted[-ndim:])
            totals = [
                max(0, s * (n - 1) + e + w - out)
                for n, s, e, w, out in zip(size, options["stride"], extra, span, wanted, strict=True)
            ]
            options |= {"padding": split(totals, upper=auto_pad == "SAME_UPPER"), "output_size": wanted}
    elif auto_pad.startswith("SAME"):
        totals = [
            max(0, (-(-n // s) - 1) * s + w - n)
            for n, s, w in zip(size, options["stride"], span, strict=True)
        ]
        options["padding"] = split(totals, upper=auto_pad == "SAME_UPPER")
    elif auto_pad == "VALID":
        options["padding"] = "valid"
    return f"{FUNCTIONS[node.op_type]}{ndim}d", operands, options


def split(totals, *, upper):
    """Return (before, after) for each total; the odd one goes after if `upper`, else before."""
    return tuple(
        (total // 2, total - total // 2) if upper else (total - total // 2, total // 2) for total in totals
    )


@cache
def node_tests():
    """Return {name: (node, inputs, outputs)} of every test of the ONNX project for our operators."""
    from onnx.backend.test.case.node import collect_testcases
    from onnx.backend.test.loader import load_model_tests

    found = {}
    state = np.random.get_state()  # noqa: NPY002 (the collection seeds NumPy's global generator)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it makes NaN and overflow on purpose, for other operators
            cases = collect_testcases()
    finally:
        np.random.set_state(state)  # noqa: NPY002
    for case in cases:
        if is_ours(case.model):
            found[case.name] = (case.model.graph.node[0], *case.data_sets[0])
    for kind in ("pytorch-converted", "pytorch-operator"):
        for case in load_model_tests(kind=kind):
            model = onnx.load(Path(case.model_dir, "model.onnx"))
            if is_ours(model):
                found[case.name] = stored_test(model, Path(case.model_dir, "test_data_set_0"))
    return found


def is_ours(model):
    return len(model.graph.node) == 1 and model.graph.node[0].op_type in FUNCTIONS


def stored_test(model, folder):
    """Return (node, inputs, outputs) of a model that lies on disk with its data; weights are in the model."""
    node = model.graph.node[0]
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    fed = [value.name for value in model.graph.input if value.name not in arrays]
    for number, name in enumerate(fed):
        arrays[name] = read_tensor(folder / f"input_{number}.pb")
    return node, [arrays[name] for name in node.input if name], [read_tensor(folder / "output_0.pb")]


def read_tensor(path):
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


def is_whole(arrays):
    return all(np.array_equal(array, np.round(array)) for array in arrays)


@pytest.mark.parametrize(("op_type", "least"), [("Conv", 33), ("ConvTranspose", 14), ("DeformConv", 4)])
def test_node_tests_of_the_onnx_project(backend, op_type, least):
    done = 0
    for name, (node, arrays, outputs) in sorted(node_tests().items()):
        if node.op_type != op_type:
            continue
        op, operands, options = as_call(node, arrays)
        text = f"{name}: {describe(op, **operands, **options)}"
        actual = run(backend, op, **operands, **options)
        if is_whole([*arrays, *outputs]):
            assert_exact(actual, outputs[0], text)
        else:
            assert_close(actual, outputs[0], SHIPPED, text)
        done += 1
    assert done >= least, f"onnx brought {done} tests for {op_type}, fewer than it used to"


def random_node(op_type, seed):
    """Return a node with attributes drawn at random, and its arrays of whole numbers."""
    rng = np.random.default_rng([seed, list(FUNCTIONS).index(op_type)])
    ndim = 2 if op_type == "DeformConv" else int(rng.integers(1, 4))
    groups = int(rng.integers(1, 4))
    c, o = groups * int(rng.integers(1, 5)), groups * int(rng.integers(1, 9))
    kernel, strides = rng.integers(1, 4, ndim), rng.integers(1, 4, ndim)
    dilations = rng.integers(1, 3, ndim)
    auto_pad = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")[seed % 4]
    if auto_pad.startswith("SAME"):
        dilations[:] = 1  # onnxruntime refuses others here,
        strides = np.minimum(strides, kernel)  # and adds no zeros at the end of a transposed convolution
    span = dilations * (kernel - 1) + 1
    size = span + rng.integers(0, (40, 9, 5)[ndim - 1], ndim)
    pads = np.concatenate([rng.integers(0, span), rng.integers(0, span)])
    attributes = {"strides": strides, "dilations": dilations, "kernel_shape": kernel, "group": groups}
    x = integers(rng, (2, c, *size), np.float32)
    first, second = (c, o // groups) if op_type == "ConvTranspose" else (o, c // groups)
    arrays = [x, integers(rng, (first, second, *kernel), np.float32)]
    names = ["X", "W"]
    if op_type == "DeformConv":
        attributes |= {
            "pads": pads,
            "offset_group": int(rng.choice([d for d in range(1, c + 1) if c % d == 0])),
        }
        out = (size + pads[:ndim] + pads[ndim:] - span) // strides + 1
        taps = attributes["offset_group"] * int(np.prod(kernel))
        arrays.append((rng.integers(-12, 13, (2, 2 * taps, *out)) / 4).astype(np.float32))
        arrays += [integers(rng, (o,), np.float32), integers(rng, (2, taps, *out), np.float32)]
        names = ["X", "W", "offset", "B", "mask"]
        if seed % 3 == 0:
            names, arrays = names[:3], arrays[:3]
        elif seed % 3 == 1:
            names[3], arrays = "", [*arrays[:3], arrays[4]]
    else:
        if auto_pad != "NOTSET":
            attributes["auto_pad"] = auto_pad
        else:
            attributes["pads"] = pads
        if op_type == "ConvTranspose" and auto_pad == "NOTSET":
            # padding that leaves something, and at most what a kernel can have touched at the end
            natural = strides * (size - 1) + span
            attributes["pads"] = np.minimum(pads, np.tile((natural - 1) // 2, 2))
            attributes["output_padding"] = np.array([rng.integers(0, s) for s in strides])
            if seed % 8 == 4:
                del attributes["pads"], attributes["output_padding"]
                attributes["output_shape"] = np.maximum(1, natural - rng.integers(0, 3, ndim))
        if rng.integers(0, 2):
            arrays.append(integers(rng, (o,), np.float32))
            names.append("B")
    plain = {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in attributes.items()
    }
    return onnx.helper.make_node(op_type, names, ["Y"], **plain), arrays


@pytest.mark.parametrize("op_type", FUNCTIONS)
def test_random_nodes_equal_onnxruntime(backend, op_type):
    for seed in range(24):
        node, arrays = random_node(op_type, seed)
        op, operands, options = as_call(node, arrays)
        actual = run(backend, op, **operands, **options)
        assert_exact(
            actual, runtime_answer(op_type, seed), f"seed {seed}: {describe(op, **operands, **options)}"
        )


@cache
def runtime_answer(op_type, seed):
    """Return what onnxruntime gives for a random node; the same for every backend of ours."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is the reference for random nodes")
    node, arrays = random_node(op_type, seed)
    names = [name for name in node.input if name]
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [
            onnx.helper.make_tensor_value_info(name, float32, array.shape)
            for name, array in zip(names, arrays, strict=True)
        ],
        [onnx.helper.make_tensor_value_info("Y", float32, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # the shape of Y is left open on purpose
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, arrays, strict=True)))[0]
