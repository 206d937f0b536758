"""Builds the one compiled module; everything else about the package is in pyproject.toml."""

import glob
import os
import shlex

import numpy
from setuptools import Extension, setup

FLAGS = [
    "-O3",
    # Python's own -fwrapv hides index arithmetic from the vectoriser: pad copies were five times slower.
    "-fno-wrapv",
    # No engine looks at errno or exception flags. Values follow IEEE rules, NaN and inf included.
    "-fno-math-errno",
    "-fno-trapping-math",
    # Multiply-adds are fused where the source says so and nowhere else: the same bits in every tile.
    "-ffp-contract=off",
    "-pthread",
    "-fvisibility=hidden",
    "-Wno-psabi",
]

setup(
    ext_modules=[
        Extension(
            "fastconv._native",
            sources=["src/native.pyx"],
            depends=sorted(glob.glob("src/*.h")),
            include_dirs=["src", numpy.get_include()],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
            # More of them for a build of one's own, behind these: for sanitisers, say.
            extra_compile_args=FLAGS + shlex.split(os.environ.get("FASTCONV_CFLAGS", "")),
            extra_link_args=["-pthread", *shlex.split(os.environ.get("FASTCONV_LDFLAGS", ""))],
        )
    ]
)
