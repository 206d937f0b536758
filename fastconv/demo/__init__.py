"""Every variant of convolution on one photograph, on every backend: ``python -m fastconv demo``.

The way of the data through the files of this package::

    photo.py    a photograph as float32 (3, H, W)
    filters.py  weights: blur, sharpen, edges, bilinear enlargement
    lens.py     a barrel distortion, its exact inverse, and offsets that undo it
    steps.py    photograph + weights -> the convolutions of the demo
    measure.py  each convolution on each backend: time, and error against the oracle
    report.py   progress bar and table on the terminal
    figure.py   the pictures on one page

Needs the optional dependencies of ``pip install 'fastconv[demo]'``.
"""

import os
from collections.abc import Sequence

from .. import __version__
from .figure import draw
from .lens import Lens
from .measure import TOLERANCE, Measurement, measure_all
from .photo import PhotoError, load_photo
from .report import Reporter
from .steps import Undistortion, make_steps

__all__ = [
    "TOLERANCE",
    "Lens",
    "Measurement",
    "PhotoError",
    "Undistortion",
    "load_photo",
    "make_steps",
    "measure_all",
    "run",
]


def run(
    image: str | os.PathLike | None = None,
    output: str | os.PathLike = "demo.png",
    backends: Sequence[str] = (),
) -> bool:
    """Run the demo, print its table and write its figure.

    Parameters
    ----------
    image : path, optional
        The photograph; if not given, one that matplotlib ships.
    output : path, optional
        File to write the figure to; the suffix selects the format.
    backends : sequence of str, optional
        The backends to run on; if empty, all that can be used here.

    Returns
    -------
    bool
        Whether every result agreed with the oracle and the distortion was undone.

    Raises
    ------
    PhotoError
        If the photograph cannot be read or is too small.
    BackendError, UnsupportedError
        If a backend is unknown, cannot be used here, or cannot run a step.
    OSError
        If the figure cannot be written.
    """
    photo = load_photo(image)
    undistortion = Undistortion.of(photo)
    steps = make_steps(photo, undistortion)
    reporter = Reporter(photo)
    measurements = measure_all(steps, backends, reporter)
    reporter.table(measurements)
    shown = measurements[0].backend
    corrected = undistortion.judge(steps["undistort"].run(shown))
    reporter.undistortion(corrected)
    agrees = all(m.agrees for m in measurements)
    ran = ", ".join(dict.fromkeys(m.backend for m in measurements))
    verdict = (
        f"every result on {ran} agrees with the oracle" if agrees else "SOME RESULTS DISAGREE WITH THE ORACLE"
    )
    caption = f"fastconv {__version__}; pictures computed by the {shown} backend, {verdict}"
    reporter.figure(draw(photo, steps, undistortion, corrected, shown, caption, output))
    return agrees and corrected.succeeded
