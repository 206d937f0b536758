"""Chunked convolutions: equal to those of the whole image, however it is cut; and lazy enough for any size."""

from contextlib import contextmanager

import numpy as np
import pytest
from helpers import integers
from samples import call, sample
from test_against_scipy import GEOMETRIES, MODES, PADDED, ids

import fastconv
from fastconv.problem import CONV, DEFORM_CONV, OPS
from fastconv.testing import assert_exact

da = pytest.importorskip("dask.array", reason="dask is optional")

import fastconv.dask  # noqa: E402 (needs dask)

pytestmark = pytest.mark.usefixtures("exact_kernels")


def rng(seed=3):
    return np.random.default_rng(seed)


def cut(array, seed=0):
    """Return a dask array of an array, cut at random places on every axis."""
    draw = rng([seed, array.ndim])

    def along(size):
        borders = sorted({0, size, *draw.integers(1, size + 1, 2)})
        return tuple(int(n) for n in np.diff(borders))

    return da.from_array(array, chunks=tuple(along(size) for size in array.shape))


def chunked(op, arrays, **options):
    return getattr(fastconv.dask, op)(**arrays, **options).compute(scheduler="synchronous")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=ids)
def test_it_equals_the_whole_however_it_is_cut(geometry, seed):
    (c, o, g), ndim = geometry.channels, geometry.ndim
    weight = integers(rng(), geometry.weight_shape)
    options = geometry.options | {"groups": g}
    x, y = integers(rng(), (3, c, *geometry.size)), integers(rng(), (3, o, *geometry.output))
    whole = call(f"conv{ndim}d", {"input": x, "weight": weight}, **options)
    assert_exact(chunked(f"conv{ndim}d", {"input": cut(x, seed), "weight": weight}, **options), whole)
    options["output_size"] = geometry.size
    whole = call(f"conv_transpose{ndim}d", {"input": y, "weight": weight}, **options)
    found = chunked(f"conv_transpose{ndim}d", {"input": cut(y, seed), "weight": weight}, **options)
    assert_exact(found, whole)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("geometry", PADDED, ids=ids)
def test_padding_that_copies_pixels(geometry, mode):
    (c, _, g), op = geometry.channels, f"conv{geometry.ndim}d"
    limits = (n - 1 for n in geometry.size)
    padding = tuple((min(b, n), min(a, n)) for (b, a), n in zip(geometry.padding, limits, strict=True))
    options = {**geometry.options, "padding": padding, "groups": g, "padding_mode": mode}
    x, weight = integers(rng(), (2, c, *geometry.size)), integers(rng(), geometry.weight_shape)
    try:
        whole = call(op, {"input": x, "weight": weight}, **options)
    except fastconv.ShapeError:
        pytest.skip("the smaller padding leaves no output")
    assert_exact(chunked(op, {"input": cut(x), "weight": weight}, **options), whole)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("op", OPS)
def test_layouts_batches_and_biases(op, batch, layout):
    arrays = sample(op)
    for name in {"input", "offset", "mask"} & set(arrays):
        arrays[name] = arrays[name] if batch else arrays[name][0]
        if layout == "NHWC":
            arrays[name] = np.ascontiguousarray(np.moveaxis(arrays[name], 1 if batch else 0, -1))
    options = {"layout": layout, "activation": "relu"}
    lazy = {name: cut(array) if name == "input" else array for name, array in arrays.items()}
    reach = {"reach": 2} if op in DEFORM_CONV else {}
    found = getattr(fastconv.dask, op)(**lazy, **options, **reach)
    whole = call(op, arrays, **options)
    assert found.shape == whole.shape
    assert found.dtype == whole.dtype == np.float32
    assert_exact(found.compute(scheduler="synchronous"), whole)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_displacements_reach_across_chunks(stride):
    x, weight = integers(rng(), (1, 4, 23, 19)), integers(rng(), (2, 4, 3, 3))
    out = tuple((n + 2 - 3) // stride + 1 for n in x.shape[2:])
    offset, mask = rng().integers(-20, 21, (1, 36, *out)) / 4, integers(rng(), (1, 18, *out))
    offset[0, 3, 1, 1], offset[0, 7, 2, 0] = np.nan, -np.inf
    options = {"stride": stride, "padding": 1}
    whole = fastconv.deform_conv2d(x, offset, weight, mask=mask, **options)
    for seed in range(3):
        lazy = {
            "input": cut(x, seed),
            "offset": cut(offset, seed + 9),
            "mask": cut(mask, seed),
            "weight": weight,
        }
        assert_exact(chunked("deform_conv2d", lazy, reach=5, **options), whole)


def test_a_displacement_beyond_reach_is_told():
    x, offset = da.ones((1, 6, 6), chunks=3), np.full((2, 6, 6), 1.5)
    lazy = fastconv.dask.deform_conv2d(x, offset, np.ones((1, 1, 1, 1)), reach=1)
    with pytest.raises(ValueError, match=r"displacement of 1\.5 pixels, more than reach=1"):
        lazy.compute(scheduler="synchronous")


def test_chunks_follow_those_of_the_input():
    x = da.ones((2, 3, 64, 48), chunks=(1, 2, 16, 24))
    weight = np.ones((5, 3, 3, 3))
    assert fastconv.dask.conv2d(x, weight, padding=1).chunks == ((1, 1), (5,), (16,) * 4, (24, 24))
    assert fastconv.dask.conv2d(x, weight, padding=1, stride=2).chunks[2:] == ((8,) * 4, (12, 12))
    up = fastconv.dask.conv_transpose2d(x, np.ones((3, 5, 2, 2)), stride=2)
    assert up.chunks[2:] == ((32,) * 4, (48, 48))


def test_it_reads_what_it_needs_and_no_more():
    read = []

    def block(block_info=None):
        read.append(block_info[None]["chunk-location"])
        return np.ones(block_info[None]["chunk-shape"])

    x = da.map_blocks(block, chunks=((1,), (8,) * 10, (8,) * 10), dtype=float, meta=np.empty((0, 0, 0)))
    y = fastconv.dask.conv2d(x, np.ones((1, 1, 5, 5)), padding=2, stride=2)
    assert y.chunks[1:] == ((4,) * 10,) * 2
    assert read == []
    y[:, 12:16, 20:24].compute(scheduler="synchronous")
    assert sorted(read) == [(0, i, j) for i in (2, 3, 4) for j in (4, 5, 6)]


SIDE = 131_072  # 17 gigapixels


def hills(block_info=None):
    """Return the pixels of one chunk of an image that is known everywhere."""
    (top, bottom), (left, right) = block_info[None]["array-location"][1:]
    y, x = np.arange(top, bottom)[:, None], np.arange(left, right)
    return ((y // 7 * 31 + x // 5 * 17) % 64 - 32.0)[None].astype(np.float32)


def check_places(network, image, places, size=40, **running):
    """Compare small pieces of a huge result with those of a small image cut out around them."""
    (x, layers), halo = network, 64
    for top, left in places:
        ends = [min(t + size + 2 * halo, SIDE) for t in (top, left)]
        begins = [e - size - 2 * halo for e in ends]
        piece = np.asarray(image(*begins, *ends))
        for layer in layers:
            piece = layer(fastconv, piece)
        # What the border of the piece has changed is left out.
        inner = slice(halo // 2, (halo + size) // 2)
        found = x[:, begins[0] // 2 :, begins[1] // 2 :][:, inner, inner]
        assert_exact(found.compute(**running), piece[:, inner, inner])


def layers():
    w1, w2 = integers(rng(1), (2, 1, 5, 5), np.float32), integers(rng(2), (1, 2, 3, 3), np.float32)
    return [
        lambda f, x: f.conv2d(x, w1, padding=4, dilation=2, backend="cython", accuracy="high"),
        lambda f, x: f.conv2d(x, w2, padding=1, stride=2, backend="cython", accuracy="high"),
    ]


def seventeen_gigapixels(chunk=2048):
    """Return an image that is never there at once, what two layers make of it, and a function that cuts pieces out."""
    count = SIDE // chunk
    x = da.map_blocks(
        hills,
        chunks=((1,), (chunk,) * count, (chunk,) * count),
        dtype=np.float32,
        meta=np.empty((0, 0, 0), np.float32),
    )
    y = x
    for layer in layers():
        y = layer(fastconv.dask, y)
    assert y.shape == (1, SIDE // 2, SIDE // 2)

    def piece(top, left, bottom, right):
        return x[:, top:bottom, left:right].compute(scheduler="synchronous")

    return (y, layers()), piece


def test_seventeen_gigapixels_at_a_few_places():
    network, piece = seventeen_gigapixels()
    places = [(2048 - 80, 5 * 2048 - 80), 2 * rng(4).integers(0, SIDE // 2 - 200, 2)]
    check_places(network, piece, places, scheduler="threads", num_workers=1)


@contextmanager
def cluster():
    distributed = pytest.importorskip("distributed", reason="the cluster is optional")
    options = {"dashboard_address": None, "n_workers": 2, "threads_per_worker": 1, "processes": False}
    with distributed.LocalCluster(**options) as workers, distributed.Client(workers):
        yield


def test_on_a_cluster():
    x, weight = integers(rng(), (2, 3, 30, 34), np.float32), integers(rng(), (4, 3, 3, 3), np.float32)
    network, piece = seventeen_gigapixels()
    with cluster():
        found = fastconv.dask.conv2d(cut(x), weight, padding=1, stride=2).compute()
        check_places(network, piece, 2 * rng(5).integers(0, SIDE // 2 - 200, (2, 2)))
    assert_exact(found, fastconv.conv2d(x, weight, padding=1, stride=2))


def test_backend_and_accuracy_chosen_here_hold_there(monkeypatch):
    ran = []
    find = fastconv.functional.find_call
    monkeypatch.setattr(fastconv.functional, "find_call", lambda *a: ran.append(found := find(*a)) or found)
    with fastconv.use_backend("numpy"), fastconv.accuracy("high"):
        y = fastconv.dask.conv1d(da.ones((1, 8), chunks=4), np.ones((1, 1, 3)))
    y.compute(scheduler="threads", num_workers=1)
    assert [(call.kernel.backend, call.problem.accuracy) for call in ran] == [("numpy", "high")] * 2


@pytest.mark.parametrize("op", OPS)
def test_signatures_are_those_of_the_functions(op):
    import inspect

    own = list(inspect.signature(getattr(fastconv.dask, op)).parameters)
    theirs = [name for name in inspect.signature(getattr(fastconv, op)).parameters if name != "out"]
    assert own == theirs + ["reach"] * (op in DEFORM_CONV)
    assert f":func:`fastconv.{op}`" in getattr(fastconv.dask, op).__doc__


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(input=np.ones((1, 8))), TypeError, "input must be a dask array"),
        (dict(weight=np.ones((1, 2, 3))), fastconv.ShapeError, "weight has 2 input channels"),
        (dict(padding=-1), ValueError, "padding must be at least 0"),
        (dict(mode="reflect"), TypeError, "mode"),
    ],
)
def test_wrong_arguments_are_told_before_any_work(change, error, text):
    arguments = {"input": da.ones((1, 8), chunks=4), "weight": np.ones((1, 1, 3))} | change
    with pytest.raises(error, match=text):
        fastconv.dask.conv1d(**arguments)


def test_chunks_of_unknown_size_are_told():
    x = da.ones((1, 8), chunks=4)
    with pytest.raises(ValueError, match="chunks of known sizes"):
        fastconv.dask.conv1d(x[:, x[0] > 0], np.ones((1, 1, 3)))


@pytest.mark.parametrize("op", CONV)
def test_more_padding_than_image(op):
    ndim = int(op[-2])
    x, weight = integers(rng(), (1, 2, *(3,) * ndim)), integers(rng(), (1, 2, *(2,) * ndim))
    whole = call(op, {"input": x, "weight": weight}, padding=6, stride=2)
    assert_exact(chunked(op, {"input": cut(x), "weight": weight}, padding=6, stride=2), whole)


@pytest.mark.parametrize("cuts", [2, 1])
def test_outputs_that_no_input_reaches(cuts):
    x, weight, bias = np.ones((1, 1, 5)), np.ones((1, 3, 1, 1)), np.array([1.0, -2.0, 3.0])
    options = {"padding": ((1, 0), (0, 2)), "output_padding": 3, "dilation": 4, "activation": "relu"}
    whole = fastconv.conv_transpose2d(x, weight, bias, **options)
    lazy = da.from_array(x, chunks=(1, 1, cuts))
    found = fastconv.dask.conv_transpose2d(lazy, weight, bias, **options)
    assert_exact(found.compute(scheduler="synchronous"), whole)
    assert set(whole.ravel()) == {0.0, 1.0, 3.0}
