"""``python -m fastconv``: what it prints, its exit codes, and that mistakes are told without a traceback."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

import fastconv
from fastconv import about, cli, registry

WITHOUT_EXTRAS = """
import sys
sys.modules.update(rich=None, matplotlib=None, PIL=None)
from fastconv.cli import main
sys.exit(main(sys.argv[1:]))
"""


def fails(capsys, *argv):
    """Return what a command says on stderr when it cannot be carried out."""
    assert cli.main(argv) == cli.UNUSABLE
    captured = capsys.readouterr()
    assert captured.err.startswith("fastconv: ")
    assert "Traceback" not in captured.err
    return captured.err


def python(code, **environment):
    """Run code in a fresh interpreter that finds the same fastconv."""
    search = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, *code],
        env={**os.environ, "PYTHONPATH": search, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


class TestInfo:
    def test_it_tells_version_cpu_and_backends(self, capsys):
        assert cli.main(["info"]) == cli.OK
        printed = capsys.readouterr().out
        assert printed.startswith(f"fastconv {fastconv.__version__}, NumPy {np.__version__}")
        for text in (
            "CPU: ",
            "instruction set: ",
            "threads: ",
            *(status.name for status in registry.backends()),
        ):
            assert text in printed

    def test_it_needs_no_optional_dependency(self):
        ended = python(["-c", WITHOUT_EXTRAS, "info"])
        assert ended.returncode == 0, ended.stderr
        assert "numpy (fastconv): available, 23 operations" in ended.stdout

    def test_an_unavailable_backend_is_shown_with_its_reason(self, capsys):
        class Absent:
            name = "absent"
            kernels = tuple(
                fastconv.Kernel(k.name, "absent", k.ops, k.refuse, k.cost, k.build)
                for k in fastconv.kernels(backend="numpy")
            )

            def unavailable(self):
                return "no such [device]"

        fastconv.register_backend(Absent())
        try:
            assert cli.main(["info"]) == cli.OK
        finally:
            fastconv.unregister_backend("absent")
        assert "not available: no such [device]" in capsys.readouterr().out

    def test_a_reader_that_stops_reading_is_shown_no_error(self):
        code = (
            "import os, sys; from fastconv.cli import main\n"
            "read, write = os.pipe(); os.close(read); os.dup2(write, 1); sys.exit(main(['info']))"
        )
        ended = python(["-c", code])
        assert ended.stderr == ""


class TestVerify:
    def test_a_right_backend_passes(self, capsys, backend):
        assert cli.main(["verify", "--quick", "--backend", backend]) == cli.OK
        assert re.search(rf"backend {backend}: [1-9]\d* checks passed, 0 failed", capsys.readouterr().out)

    def test_a_wrong_backend_fails(self, capsys):
        fastconv.register_backend(wrong_backend())
        try:
            assert cli.main(["verify", "--quick", "--backend", "wrong"]) == cli.FAILED
        finally:
            fastconv.unregister_backend("wrong")
        printed = capsys.readouterr().out
        assert "fastconv.testing.Case(" in printed  # something to reproduce it with
        assert re.search(r"\.\.\. and \d+ more", printed)
        assert printed.count("fastconv.testing.Case(") == cli.FAILURES_SHOWN

    def test_an_unknown_backend(self, capsys):
        assert "unknown backend 'nonesuch'; known are" in fails(
            capsys, "verify", "--backend", "numpy", "--backend", "nonesuch"
        )
        assert not capsys.readouterr().out  # nothing was run first

    def test_random_problems_of_some_operations(self, capsys, backend):
        chosen = ["--op", "deform*", "--op", "dcnv?", "--op", "dcn*_grad"]
        arguments = ["verify", "--fuzz", "60", "--seed", "3", *chosen, "--backend", backend]
        assert cli.main(arguments) == cli.OK
        printed = capsys.readouterr().out
        assert re.search(rf"backend {backend}: [1-9]\d* checks passed, 0 failed", printed)
        assert "deform_conv" in printed
        assert "dcn" in printed
        assert "separable" not in printed

    def test_random_problems_find_a_wrong_backend(self, capsys):
        fastconv.register_backend(wrong_backend())
        try:
            assert cli.main(["verify", "--fuzz", "30", "--op", "conv2d", "--backend", "wrong"]) == cli.FAILED
        finally:
            fastconv.unregister_backend("wrong")
        assert "fastconv.testing.Case(" in capsys.readouterr().out

    def test_mistakes_in_what_to_verify(self, capsys):
        assert "--op conv9d matches none of conv1d" in fails(capsys, "verify", "--op", "conv9d")
        assert "--fuzz must be at least 1, got 0" in fails(capsys, "verify", "--fuzz", "0")


class TestDemo:
    def test_missing_extras_are_named(self):
        ended = python(["-c", WITHOUT_EXTRAS, "demo"])
        assert ended.returncode == cli.UNUSABLE
        assert (
            ended.stderr
            == "fastconv: the demo needs matplotlib, rich, pillow: pip install 'fastconv[demo]'\n"
        )

    def test_mistakes_are_told_before_any_work(self, capsys, tmp_path):
        pytest.importorskip("matplotlib")
        pytest.importorskip("rich")
        image = tmp_path / "text.jpg"
        image.write_text("no picture")
        assert "there is no file" in fails(capsys, "demo", str(tmp_path / "none.jpg"))
        assert "as a picture" in fails(capsys, "demo", str(image))
        assert "--output must end in one of .png" in fails(capsys, "demo", "--output", "figure.txt")
        assert "there is no directory" in fails(
            capsys, "demo", "--output", str(tmp_path / "none" / "figure.png")
        )
        (tmp_path / "folder.png").mkdir()
        assert "it is a directory" in fails(capsys, "demo", "--output", str(tmp_path / "folder.png"))
        assert "unknown backend" in fails(capsys, "demo", "--backend", "nonesuch")


class TestArguments:
    @pytest.mark.parametrize("argv", [[], ["nonesuch"], ["info", "--quick"], ["verify", "--backend"]])
    def test_wrong_usage(self, argv, capsys):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == cli.UNUSABLE
        assert "usage: python -m fastconv" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "argv", [["--help"], ["info", "--help"], ["verify", "--help"], ["demo", "--help"]]
    )
    def test_help(self, argv, capsys):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == 0
        assert "usage: python -m fastconv" in capsys.readouterr().out

    def test_version(self, capsys):
        with pytest.raises(SystemExit):
            cli.main(["--version"])
        assert capsys.readouterr().out == f"fastconv {fastconv.__version__}\n"


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("FASTCONV_BACKEND", "nonesuch", "known are"),
        ("FASTCONV_NUM_THREADS", "many", "an integer of at least 1"),
        ("FASTCONV_MAX_ISA", "sse9", "baseline, avx2, avx512"),
        ("FASTCONV_ACCURACY", "low", "default, high"),
        ("FASTCONV_LOG", "loud", "off, choices, refusals"),
    ],
)
def test_an_unusable_environment_variable_is_named(variable, value, told):
    ended = python(["-m", "fastconv", "info"], **{variable: value})
    assert ended.returncode == cli.UNUSABLE
    assert not ended.stdout
    assert ended.stderr.count("\n") == 1
    assert variable in ended.stderr
    assert told in ended.stderr


def test_the_cpu_has_a_name():
    assert about.cpu_model() not in ("", "unknown")


def wrong_backend():
    """Return a backend that gives the oracle's results, each larger by one."""

    def off_by_one(kernel):
        def build(problem):
            run = kernel.build(problem)

            def wrong(output, *operands):
                run(output, *operands)
                output += 1

            return wrong

        return build

    class Wrong:
        name = "wrong"
        kernels = tuple(
            fastconv.Kernel(k.name, "wrong", k.ops, k.refuse, k.cost, off_by_one(k))
            for k in fastconv.kernels(backend="numpy")
        )

    return Wrong()
