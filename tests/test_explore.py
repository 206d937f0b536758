"""The explorer: its views are the library's answers, its server serves this machine alone, its page can be used."""

import http.client
import json
import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pytest

import fastconv
from fastconv import cli
from fastconv.explore import PRESETS, StackError, make_server, page, view

UP = PRESETS["three 3x3"]["layers"][0] | {"op": "conv_transpose", "kernel": 16, "stride": 16, "padding": 0}


def changed(preset="three 3x3", index=0, **changes):
    """Return a preset with one layer changed."""
    stack = json.loads(json.dumps(PRESETS[preset]))
    stack["layers"][index] |= changes
    return stack


class TestView:
    @pytest.mark.parametrize("name", PRESETS)
    def test_presets_can_be_shown(self, name):
        shown = view(PRESETS[name])
        assert json.loads(json.dumps(shown, allow_nan=False)) == shown
        assert len(shown["rows"]) == len(PRESETS[name]["layers"]) + 1
        top, left, height, width = shown["box"]
        assert len(shown["ways"]) == height * width
        assert 0 <= top <= top + height <= shown["sizes"][0][0]
        assert 0 <= left <= left + width <= shown["sizes"][0][1]
        assert max(shown["ways"]) == 1

    def test_it_tells_what_the_library_does(self):
        shown = view({**changed(index=1, dilation=2, padding=2), "at": [0, 5]})
        layers = [
            {"kernel": 3, "padding": 1},
            {"kernel": 3, "dilation": 2, "padding": 2},
            {"kernel": 3, "padding": 1},
        ]
        field = fastconv.receptive_field(layers, input_size=32)
        box, start = field.paths((0, 5))
        assert shown["box"] == [*start, *box.shape]
        assert np.allclose(np.reshape(shown["ways"], box.shape), box / box.max(), atol=1e-4)
        price = fastconv.cost("conv2d", (3, 32, 32), (8, 3, 3, 3), padding=1, bias=True)
        assert shown["rows"][0]["parameters"] == f"{price.parameters:,}"
        assert shown["rows"][0]["bytes"] == f"{price.bytes:,}"
        assert [row["field"] for row in shown["rows"]] == ["3", "7", "9", ""]

    def test_deformable_layers_sample_729_points(self):
        assert len(view(PRESETS["deformable, rotating"])["points"]) == 729
        still = json.loads(json.dumps(PRESETS["deformable, rotating"]))
        for layer in still["layers"]:
            layer["amount"] = 0
        shown, plain = view(still), view(PRESETS["gridding: dilated 2, 2, 2"])
        assert {tuple(point) for point in shown["points"]} == {
            (10 + y, 10 + x) for y in range(0, 13, 2) for x in range(0, 13, 2)
        }
        assert shown["ways"] == plain["ways"]
        assert plain["points"] is None

    def test_points_of_the_rotating_preset_are_rotated(self):
        stack = changed("deformable, rotating", amount=1.0)
        del stack["layers"][1:]
        # Half a turn from the left edge to the right: the grid there is the plain one with its taps in reverse.
        left, right = view({**stack, "at": [5, 0]}), view({**stack, "at": [5, 31]})
        grid = [[y, x] for y in (-2, 0, 2) for x in (-2, 0, 2)]
        assert np.allclose(np.array(left["points"]) - [5, 0], grid)
        assert np.allclose(np.array(right["points"]) - [5, 31], grid[::-1])

    def test_a_pixel_outside_moves_in(self):
        assert view({**PRESETS["strides and pooling"], "at": [900, 0]})["at"] == [11, 0]

    @pytest.mark.parametrize(
        ("stack", "text"),
        [
            ([], "must be an object"),
            ({}, "input_size"),
            ({**PRESETS["three 3x3"], "layers": []}, "1 to 12 layers"),
            ({**PRESETS["three 3x3"], "input_size": [32, 10**6]}, "input_size must be a whole number"),
            ({**PRESETS["three 3x3"], "at": [0]}, "two numbers"),
            (changed(kernel=0), "kernel of layer 1"),
            (changed(kernel=None), "kernel of layer 1"),
            (changed(op="relu"), "layer 1 must have an op"),
            (changed(index=2, groups=3), "groups=3 of layer 3 must divide its 8 input"),
            (changed(kernel=31, dilation=9, padding=0), "the output would have size"),
            ({**PRESETS["three 3x3"], "layers": [UP, UP]}, "layer 2 makes 8192 pixels; at most 1024"),
            (changed("deformable, random", amount=float("nan")), "amount of layer 1"),
            (
                {**changed("deformable, random", kernel=31, padding=15), "input_size": [200, 200]},
                "layer 1 would have more than 2,000,000 displacements",
            ),
        ],
    )
    def test_what_cannot_be_shown_is_told(self, stack, text):
        with pytest.raises(StackError, match=text):
            view(stack)


@contextmanager
def serving():
    with make_server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def ask(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class TestServer:
    def test_it_serves_the_page_and_its_views(self):
        with serving() as port:
            status, body = ask(port, "GET", "/")
            assert (status, body.decode()) == (200, page())
            stack = json.dumps(PRESETS["three 3x3"])
            status, body = ask(port, "POST", "/view", stack, **{"Content-Type": "application/json"})
        assert (status, json.loads(body)) == (200, view(PRESETS["three 3x3"]))

    def test_it_serves_nothing_else(self):
        kind = {"Content-Type": "application/json"}
        with serving() as port:
            assert ask(port, "GET", "/../pyproject.toml")[0] == 404
            assert ask(port, "POST", "/", "{}", **kind)[0] == 404
            assert ask(port, "GET", "/", Host=f"attacker.example:{port}")[0] == 403
            assert ask(port, "POST", "/view", "{}", Host="attacker.example", **kind)[0] == 403
            assert ask(port, "POST", "/view", "{}", **{"Content-Type": "text/plain"})[0] == 403
            assert ask(port, "POST", "/view", "x" * 200_000, **kind)[0] == 413
            for wrong in ("{", "[]", "[" * 50_000, '"\\ud800"', b"\xff"):
                status, body = ask(port, "POST", "/view", wrong, **kind)
                assert status == 400
                assert json.loads(body)["error"]

    def test_it_listens_on_this_machine_only(self):
        with make_server() as server:
            assert server.server_address[0] == "127.0.0.1"


class TestCommand:
    def test_it_prints_its_address(self, monkeypatch, capsys):
        from http.server import ThreadingHTTPServer

        monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", lambda self: None)
        assert cli.main(["explore", "--no-browser"]) == cli.OK
        assert capsys.readouterr().out.startswith("http://127.0.0.1:")

    def test_it_exports_a_page(self, tmp_path):
        file, stack = tmp_path / "page.html", tmp_path / "stack.json"
        stack.write_text(json.dumps({**PRESETS["three 3x3"], "input_size": [6, 5]}))
        assert cli.main(["explore", "--export", str(file), "--stack", str(stack)]) == cli.OK
        assert file.read_text() == page(json.loads(stack.read_text()))

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["--port", "70000"], "--port must be"),
            (["--stack", "three 3x3"], "--stack goes with --export"),
            (["--export", "x.html", "--stack", "nonsense"], "must be a JSON file or one of"),
            (["--export", "/nowhere/x.html"], "cannot write"),
            (["--export", "x.html", "--stack", "deformable, random"], "would hold"),
        ],
    )
    def test_mistakes_are_told(self, arguments, text, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["explore", *arguments]) == cli.UNUSABLE
        assert text in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser():
    """Return headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with api.sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium can be started: {str(error).splitlines()[0]}")
        yield found
        found.close()


@contextmanager
def opened(browser, address):
    """Open a page; at the end nothing must have been logged as an error."""
    tab = browser.new_page()
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(address)
    yield tab
    tab.close()
    assert errors == []


def said(tab, text):
    """Wait until the summary says something."""
    tab.wait_for_function("text => document.getElementById('summary').textContent.includes(text)", arg=text)


def number(tab, layer, name):
    return tab.locator(f"#layers li:nth-child({layer}) input[data-name={name}]")


class TestBrowser:
    def test_layers_can_be_edited(self, browser):
        with serving() as port, opened(browser, f"http://127.0.0.1:{port}/") as tab:
            said(tab, "field 7, stride 1; output pixel (16, 16) depends on 49 pixels")
            number(tab, 2, "dilation").fill("2")
            number(tab, 2, "padding").fill("2")
            said(tab, "field 9")
            tab.get_by_role("button", name="add a layer").click()
            said(tab, "field 11")
            number(tab, 4, "stride").fill("2")
            said(tab, "stride 2")
            assert tab.locator("#table tbody tr").count() == 5
            assert tab.locator("#table tbody tr:nth-child(4) td:nth-child(2)").inner_text() == "16"
            tab.locator("#layers li:nth-child(4) button").click()
            said(tab, "stride 1")
            tab.locator("#layers li:nth-child(1) select").select_option("pool")
            assert number(tab, 1, "channels").count() == 0
            tab.locator("#height").fill("20")
            said(tab, "depends on")
            tab.wait_for_function(
                "document.querySelector('#table tbody td:nth-child(2)').textContent === '20x32'"
            )

    def test_the_output_pixel_can_be_moved(self, browser):
        with serving() as port, opened(browser, f"http://127.0.0.1:{port}/") as tab:
            said(tab, "output pixel (16, 16)")
            bounds = tab.locator("#output").bounding_box()
            tab.mouse.click(bounds["x"] + 3, bounds["y"] + bounds["height"] / 2 + 3)
            said(tab, "output pixel (16, 0) depends on 28 pixels")
            tab.keyboard.press("ArrowUp")
            said(tab, "output pixel (15, 0)")
            tab.mouse.move(bounds["x"] + 9, bounds["y"] + 9)
            tab.mouse.down()
            tab.mouse.move(bounds["x"] + bounds["width"] - 3, bounds["y"] + bounds["height"] - 3, steps=5)
            tab.mouse.up()
            said(tab, "output pixel (31, 31) depends on 16 pixels")

    def test_presets_and_points(self, browser):
        with serving() as port, opened(browser, f"http://127.0.0.1:{port}/") as tab:
            tab.locator("#preset").select_option("gridding: dilated 2, 2, 2")
            said(tab, "depends on 49 pixels and misses 120")
            tab.locator("#preset").select_option("deformable, random")
            said(tab, "it samples 729 points")
            number(tab, 1, "amount").fill("0")
            number(tab, 2, "amount").fill("0")
            number(tab, 3, "amount").fill("0")
            said(tab, "depends on 49 pixels")

    def test_mistakes_are_told_and_can_be_mended(self, browser):
        with serving() as port, opened(browser, f"http://127.0.0.1:{port}/") as tab:
            said(tab, "field 7")
            number(tab, 1, "kernel").fill("0")
            tab.get_by_role("alert").wait_for()
            assert "kernel of layer 1 must be a whole number" in tab.get_by_role("alert").inner_text()
            number(tab, 1, "kernel").fill("5")
            said(tab, "field 9")
            assert tab.locator("#error").is_hidden()

    def test_an_exported_page_needs_no_server(self, browser, tmp_path):
        file = tmp_path / "page.html"
        file.write_text(page({**PRESETS["dilated 1, 2, 4"], "input_size": [12, 10]}))
        with opened(browser, file.as_uri()) as tab:
            said(tab, "output pixel (6, 5)")
            assert number(tab, 1, "kernel").is_disabled()
            tab.locator("#output").focus()
            tab.keyboard.press("ArrowLeft")
            said(tab, "output pixel (6, 4)")
