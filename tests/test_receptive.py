"""Receptive fields: equal to what the product of the layers' matrices says, and to what is known of networks."""

from functools import reduce

import numpy as np
import pytest

import fastconv
from fastconv.analysis import Layer

CONV3 = {"kernel": 3}
STACKS = {
    "dilated": ((24,), [dict(kernel=3, dilation=r, padding=r) for r in (1, 2, 4)]),
    "strided": ((31,), [dict(kernel=5, stride=2, padding=2), dict(kernel=3, stride=3), dict(kernel=2, padding=1)]),
    "pool": ((20,), [dict(kernel=3, padding=1), dict(op="max_pool", kernel=2, stride=2), CONV3]),
    "transposed": ((6,), [CONV3, dict(op="conv_transpose", kernel=4, stride=2, padding=1), dict(kernel=3, padding=1)]),
    "gaps": ((5,), [dict(op="conv_transpose", kernel=2, stride=3, output_padding=2), dict(kernel=2)]),
    "dilated transposed": ((7,), [dict(op="conv_transpose1d", kernel=3, stride=2, dilation=3, padding=((2, 1),))]),
    "reflected": ((9,), [dict(kernel=5, padding=4, padding_mode="reflect"), dict(kernel=3, stride=2)]),
    "circular": ((6,), [dict(kernel=3, padding=1, padding_mode="circular", stride=2), dict(kernel=2)]),
    "image": ((9, 11), [dict(kernel=(3, 2), stride=(1, 2), padding=((1, 0), (0, 2))), dict(kernel=(2, 3), dilation=(3, 1))]),
    "up": ((4, 5), [dict(op="conv_transpose2d", kernel=3, stride=(2, 3), padding=(1, 0)), dict(kernel=(3, 1))]),
    "volume": ((4, 5, 6), [dict(kernel=(2, 3, 1), stride=(1, 2, 1)), dict(kernel=2, padding=1)]),
}  # fmt: skip


def matrix_of(layers, size):
    """Return the matrix of a stack whose weights are all 1, and the size of its output."""
    matrices = []
    for given in layers:
        layer = {name: value for name, value in given.items() if name != "kernel"}
        variant = layer.pop("op", "conv").rstrip("123d")
        variant = "conv" if variant.endswith("pool") else variant
        kernel = given["kernel"] if isinstance(given["kernel"], tuple) else (given["kernel"],) * len(size)
        op = f"{variant}{len(size)}d"
        matrices.append(fastconv.matrix(op, (1, *size), np.ones((1, 1, *kernel)), **layer))
        size = fastconv.receptive_field([given], input_size=size, ndim=len(size)).output_size
        assert matrices[-1].shape[0] == np.prod(size)
    return reduce(lambda below, above: above @ below, matrices), size


@pytest.mark.parametrize("name", STACKS)
def test_it_is_the_row_of_the_matrix(name):
    size, layers = STACKS[name]
    a, out = matrix_of(layers, size)
    field = fastconv.receptive_field(layers, input_size=size, ndim=len(size))
    assert field.output_size == out
    for row, at in zip(a.toarray(), np.ndindex(*out), strict=True):
        box, start = field.paths(at)
        image = np.zeros(size)
        image[tuple(slice(s, s + n) for s, n in zip(start, box.shape, strict=True))] = box
        assert np.array_equal(image, row.reshape(size)), at
        assert np.array_equal(field.pixels(at), np.argwhere(row.reshape(size)))
        assert field.count(at) == np.count_nonzero(row)


def test_a_deformable_stack_is_the_row_of_its_matrix():
    rng = np.random.default_rng(0)
    size, offsets = (7, 6), [rng.integers(-9, 10, (n, 7, 6)) / 4 for n in (36, 18)]
    layers = [dict(op="deform_conv2d", kernel=3, padding=1, offset=offset) for offset in offsets]
    layers.insert(1, dict(kernel=3, padding=2, dilation=2))
    below = fastconv.matrix("deform_conv2d", (2, *size), np.ones((1, 2, 3, 3)), offset=offsets[0], padding=1)
    middle = fastconv.matrix("conv2d", (1, *size), np.ones((1, 1, 3, 3)), padding=2, dilation=2)
    above = fastconv.matrix("deform_conv2d", (1, *size), np.ones((1, 1, 3, 3)), offset=offsets[1], padding=1)
    a = (above @ middle @ below).toarray().reshape(*size, 2, *size).sum(axis=2)
    field = fastconv.receptive_field(layers, input_size=size)
    for at in np.ndindex(*size):
        box, (top, left) = field.paths(at)
        image = np.zeros(size)
        image[top : top + box.shape[0], left : left + box.shape[1]] = box
        assert np.allclose(image, a[at], rtol=1e-12, atol=0)
        assert np.array_equal(field.pixels(at), np.argwhere(a[at]))


def test_three_layers_reach_15_dilated_and_7_plain():
    plain = fastconv.receptive_field([CONV3] * 3)
    dilated = fastconv.receptive_field([{"kernel": 3, "dilation": r} for r in (1, 2, 4)])
    assert plain.growth == ((3, 3), (5, 5), (7, 7))
    assert dilated.growth == ((3, 3), (7, 7), (15, 15))
    assert [layer.effective_kernel for layer in dilated.layers] == [(3, 3), (5, 5), (9, 9)]
    assert dilated.count() == 15 * 15
    assert dilated.is_dense()
    a, _ = matrix_of([{"kernel": 3, "dilation": r} for r in (1, 2, 4)], (15, 15))
    assert a.shape == (1, 225)
    assert a.nnz == 225


@pytest.mark.parametrize(
    ("rates", "size", "reached"),
    [((2, 2, 2), 13, 7), ((1, 2, 3), 13, 13), ((2, 4, 8), 29, 15), ((1, 2, 9), 25, 21), ((1, 2, 5), 17, 17)],
)
def test_gridding(rates, size, reached):
    field = fastconv.receptive_field([{"kernel": 3, "dilation": r} for r in rates])
    assert field.size == (size, size)
    assert field.count() == reached**2
    assert field.is_dense() == (size == reached)
    assert len(field.untouched()) == size**2 - reached**2
    together = {tuple(pixel) for pixel in np.concatenate([field.pixels(), field.untouched()])}
    assert together == set(np.ndindex(size, size))


VGG16 = [
    block
    for count in (2, 2, 3, 3, 3)
    for block in [dict(kernel=3, padding=1)] * count + [dict(op="pool", kernel=2, stride=2)]
]
ALEXNET = [
    dict(kernel=11, stride=4), dict(op="pool", kernel=3, stride=2), dict(kernel=5, padding=2),
    dict(op="pool", kernel=3, stride=2), *[dict(kernel=3, padding=1)] * 3, dict(op="pool", kernel=3, stride=2),
]  # fmt: skip
RESNET50 = [dict(kernel=7, stride=2, padding=3), dict(op="pool", kernel=3, stride=2, padding=1)] + [
    dict(kernel=3, padding=1, stride=2 if stage and not block else 1)
    for stage, blocks in enumerate((3, 4, 6, 3))
    for block in range(blocks)
]


@pytest.mark.parametrize(
    ("layers", "size", "stride"), [(VGG16, 212, 32), (ALEXNET, 195, 32), (RESNET50, 427, 32)]
)
def test_known_networks(layers, size, stride):
    # Araujo et al., "Computing receptive fields of convolutional neural networks", 2019 (VGG-16, AlexNet); the
    # ResNet has its strides in the 3x3 layers.
    field = fastconv.receptive_field(layers)
    assert field.size == (size, size)
    assert field.stride == (stride, stride)


def test_stride_and_centre_say_where_an_output_looks():
    layers = [
        dict(kernel=5, stride=2, padding=1),
        dict(kernel=2, stride=3),
        dict(kernel=3, dilation=2, padding=2),
    ]
    field = fastconv.receptive_field(layers)
    for q in range(-3, 4):
        pixels = field.pixels((q, q))[:, 0]
        assert (pixels.min() + pixels.max()) / 2 == q * field.stride[0] + field.centre[0]
        assert np.ptp(pixels) + 1 == field.size[0]
    enlarged = fastconv.receptive_field([dict(op="conv_transpose", kernel=4, stride=2, padding=1)])
    assert float(enlarged.stride[0]) == 0.5
    assert float(enlarged.centre[0]) == -0.25
    assert enlarged.size == (2, 2)


def test_problems_and_plans_are_layers():
    plan = fastconv.plan("conv2d", (1, 3, 16, 16), np.ones((4, 3, 3, 3)), stride=2, padding=1)
    problem = fastconv.Problem.create("conv_transpose2d", (1, 4, 8, 8), (4, 2, 2, 2), stride=2)
    field = fastconv.receptive_field([plan, problem, Layer((1, 3))], input_size=16)
    assert field.sizes == ((16, 16), (8, 8), (16, 16), (16, 14))
    assert field.size == (3, 5)
    assert "conv_transpose k2 s2 p0:0" in str(field)


def test_three_deformable_layers_sample_729_points():
    rng = np.random.default_rng(1)
    offsets = [rng.standard_normal((18, 30, 32)) for _ in range(3)]
    layers = [dict(op="deform_conv", kernel=3, padding=1, offset=offset) for offset in offsets]
    field = fastconv.receptive_field(layers, input_size=(30, 32))
    points = field.points((15, 16))
    assert points.shape == (729, 2)
    # One path by hand: the last layer's tap 0 at (15, 16), whose own points follow from interpolated offsets.
    first = np.array([14, 15]) + offsets[2][:2, 15, 16]
    low = np.floor(first).astype(int)
    (y, x), share = low, first - low
    corners = [
        ((y + i, x + j), abs(1 - i - share[0]) * abs(1 - j - share[1])) for i in (0, 1) for j in (0, 1)
    ]
    moved = sum(weight * offsets[1][16:18, i, j] for (i, j), weight in corners)
    second = first + 1 + moved
    middle = fastconv.receptive_field(layers[1:], input_size=(30, 32)).points((15, 16))
    assert np.allclose(middle[8], second)


def test_points_of_plain_layers_are_the_pixels():
    layers = [dict(kernel=3, stride=2), dict(kernel=3, dilation=2)]
    zero = [
        dict(op="deform_conv", **layer, offset=np.zeros((18, *out)))
        for layer, out in zip(layers, ((9, 9), (5, 5)), strict=True)
    ]
    plain = fastconv.receptive_field(layers, input_size=19)
    deformed = fastconv.receptive_field(zero, input_size=19)
    assert np.array_equal(np.unique(plain.points(), axis=0), plain.pixels())
    assert np.array_equal(deformed.points(), plain.points())
    assert np.array_equal(deformed.pixels(), plain.pixels())


def test_offsets_that_rotate_or_scale_the_grid():
    grid = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), axis=-1).reshape(9, 2)
    turn = np.array([[0, -1], [1, 0]])
    for change in (turn, 2 * np.eye(2)):
        offset = np.broadcast_to((grid @ change.T - grid).reshape(18, 1, 1), (18, 9, 9))
        layer = dict(op="deform_conv", kernel=3, padding=1, offset=offset)
        points = fastconv.receptive_field([layer], input_size=9).points((4, 4))
        assert np.allclose(points, 4 + grid @ change.T)
    dilated = fastconv.receptive_field([dict(kernel=3, dilation=2, padding=2)], input_size=9)
    assert np.array_equal(dilated.points((4, 4)), points)


@pytest.mark.parametrize(
    ("layers", "options", "error", "text"),
    [
        ([], {}, TypeError, "at least one layer"),
        ([dict(stride=2)], {}, TypeError, "layer 0 must have a kernel"),
        ([CONV3, dict(kernel=3, size=1)], {}, TypeError, "layer 1"),
        ([dict(kernel=3, op="relu")], {}, ValueError, "op of layer 0"),
        ([dict(kernel=(3, 3)), dict(kernel=(3, 3, 3))], {}, ValueError, "same number of axes"),
        ([dict(kernel=3, op="deform_conv")], dict(input_size=8), TypeError, "must have an offset"),
        ([dict(kernel=3, op="deform_conv", offset=np.zeros((18, 6, 6)))], {}, ValueError, "input_size must be given"),
        ([dict(kernel=3, op="deform_conv", offset=np.zeros((18, 6, 6)))], dict(input_size=9), fastconv.ShapeError, "output size"),
        ([dict(kernel=9)], dict(input_size=5), fastconv.ShapeError, "the output would have size"),
    ],
)  # fmt: skip
def test_what_is_no_stack_is_told(layers, options, error, text):
    with pytest.raises(error, match=text):
        fastconv.receptive_field(layers, **options)


def test_an_output_pixel_outside_is_told():
    with pytest.raises(fastconv.ShapeError, match="at must lie inside"):
        fastconv.receptive_field([CONV3], input_size=5).pixels((3, 0))
