"""Groups that make their haloed images themselves, some of them together, equal the oracle."""

import numpy as np
import pytest
from helpers import integers

import fastconv

# (groups, input channels, output channels of one). Halos are made for each or, in wider vectors, for some together, the last
# of them missing; or for too many together.
GROUPS = {"eight": (7, 8, 8), "four": (17, 4, 4), "twenty-four": (9, 24, 24), "uneven": (9, 3, 5)}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_groups_equal_the_oracle(backend, isa, groups, layout, stride, padding_mode):
    count, inputs, outputs = groups
    rng = np.random.default_rng(0)
    options = dict(
        stride=stride, padding=1, groups=count, padding_mode=padding_mode, layout=layout, accuracy="high"
    )
    for dtype in (np.float32, np.float64):
        w = integers(rng, (count * outputs, inputs, 3, 3), dtype)
        for size in ((21, 19), (7, 6), (40, 37)):
            x = integers(rng, (2, count * inputs, *size), dtype)
            x[1, -1, 2, 3] = np.nan
            x = x if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
            expected = fastconv.conv2d(x, w, backend="numpy", **options)
            for threads in (1, 2):
                y = fastconv.conv2d(x, w, backend=backend, num_threads=threads, **options)
                np.testing.assert_array_equal(y, expected)
