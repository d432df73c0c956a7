"""The page in a real headless Chromium, driven over the DevTools protocol."""

import json
import shutil
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path

import pytest

from fsframework.run.report import write_report

websocket = pytest.importorskip("websocket", reason="needs websocket-client: pip install websocket-client")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH: apt-get install chromium"),
]


class Browser:
    """One tab of a headless Chromium."""

    def __init__(self) -> None:
        self._profile = tempfile.mkdtemp()
        flags = (
            "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --remote-debugging-port=0 --remote-allow-origins=*"
        )
        command = [CHROMIUM, *flags.split(), f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._numbers = count(1)
        self.events = []
        port_file = Path(self._profile) / "DevToolsActivePort"
        self._wait_until(lambda: port_file.is_file() and port_file.read_text().count("\n"), 60, "Chromium to start")
        port, path = port_file.read_text().split("\n")[:2]
        self._socket = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=60)
        self._session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path, width=1280, height=900, phone=False, **media):
        self.events.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        features = [{"name": "prefers-color-scheme", "value": media.get("scheme", "light")}]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.send("Page.navigate", url=page.as_uri())
        self.wait("document.readyState === 'complete'")
        self.wait("[...document.querySelectorAll('video')].every((v) => v.readyState >= 2 && !v.seeking)")

    def js(self, expression, gesture=True):
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=gesture
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression, seconds=30):
        self._wait_until(lambda: self.js(expression), seconds, expression)

    def click(self, selector):
        self.js(f"document.querySelector({json.dumps(selector)}).click()")

    def problems(self):
        """Console errors, exceptions and policy violations since `open`."""
        self.js("1")
        bad = [e for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        bad += [e for e in self.events if e["method"] == "Runtime.consoleAPICalled" and e["params"]["type"] != "log"]
        return bad + [e for e in self.events if e["method"] == "Log.entryAdded"]

    def requests(self):
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def close(self):
        try:
            self._session = None
            self.send("Browser.close")
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            shutil.rmtree(self._profile, ignore_errors=True)

    @staticmethod
    def _wait_until(condition, seconds, what):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited {seconds} s for {what}"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def browser():
    tab = Browser()
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    return write_report(list(runs), tmp_path_factory.mktemp("page") / "report.html")


PLAYERS = "[...document.querySelectorAll('#stage video')]"


def test_page_loads_without_console_errors_or_requests(browser, report):
    browser.open(report)
    assert browser.problems() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [report.as_uri()]


def test_videos_load_and_play_in_sync_and_pause(browser, report):
    browser.open(report)
    assert browser.js(f"{PLAYERS}.map((v) => v.videoWidth)") == [256] * 4
    browser.click("#play")
    browser.wait(f"{PLAYERS}[0].currentTime > 0.5")
    spread = "(() => { const t = PLAYERS.map((v) => v.currentTime); return Math.max(...t) - Math.min(...t); })()"
    for _ in range(5):
        assert browser.js(spread.replace("PLAYERS", PLAYERS)) < 1 / 8  # less than a frame
        time.sleep(0.1)
    assert browser.js(f"{PLAYERS}.every((v) => !v.paused)")
    browser.click("#play")
    assert browser.js(f"{PLAYERS}.every((v) => v.paused)")
    assert browser.problems() == []


def test_playing_loops_until_told_not_to(browser, report):
    browser.open(report)
    browser.click("#play")
    browser.wait(f"{PLAYERS}[0].currentTime > 1.7")
    browser.wait(f"{PLAYERS}[0].currentTime < 0.8")
    browser.click("#loop")
    browser.wait(f"{PLAYERS}.every((v) => v.paused)")
    assert browser.js("document.querySelector('#frame').textContent") == "frame 16 of 16"


def test_single_frames_can_be_stepped_and_scrubbed(browser, report):
    browser.open(report)
    browser.click("#forward")
    browser.click("#forward")
    assert browser.js("document.querySelector('#frame').textContent") == "frame 3 of 16"
    assert browser.js(f"{PLAYERS}.map((v) => v.currentTime)") == [2.5 / 8] * 4
    browser.click("#back")
    browser.js("const s = document.querySelector('#scrub'); s.value = 15; s.dispatchEvent(new Event('input'))")
    assert browser.js(f"{PLAYERS}[3].currentTime") == 15.5 / 8


def test_difference_is_black_for_full_compute_and_not_for_reuse(browser, report):
    browser.open(report)
    light = """[...document.querySelectorAll('#stage canvas')].map((c) =>
        c.getContext('2d').getImageData(0, 0, c.width, c.height).data.reduce((s, v, i) => s + (i % 4 < 3 ? v : 0), 0))"""
    browser.wait(f"{light}.at(-1) > 0")
    full, static, foresight = browser.js(light)
    assert full == 0
    assert static > foresight > 0
    browser.js("const d = document.querySelector('#difference'); d.value = '0'; d.dispatchEvent(new Event('change'))")
    assert browser.js("[...document.querySelectorAll('#stage canvas')].every((c) => c.hidden)")


def test_difference_never_mixes_frames_while_playing(browser, report):
    browser.open(report)
    # Full compute is the reference's own file: any light in its difference is a frame of another time.
    watch = """(async () => {
        const canvas = document.querySelector('#stage canvas'), context = canvas.getContext('2d');
        let worst = 0, frames = new Set();
        for (const end = performance.now() + 3000; performance.now() < end;) {
            await new Promise(requestAnimationFrame);
            const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
            worst = Math.max(worst, pixels.reduce((s, v, i) => s + (i % 4 < 3 ? v : 0), 0));
            frames.add(document.querySelector('#frame').textContent);
        }
        return [worst, frames.size];
    })()"""
    browser.click("#play")
    worst, num_frames = browser.js(watch)
    assert worst == 0
    assert num_frames > 5


def test_another_prompt_can_be_picked_also_from_the_worst_and_best(browser, report):
    browser.open(report)
    browser.js("const c = document.querySelector('#clip'); c.value = '2'; c.dispatchEvent(new Event('change'))")
    browser.wait(f"{PLAYERS}.length === 4 && {PLAYERS}.every((v) => v.readyState >= 2)")
    assert "digit 3" in browser.js(f"{PLAYERS}[1].getAttribute('aria-label')")
    number = browser.js("document.querySelector('[data-clip]').dataset.clip")
    browser.click("[data-clip]")
    assert browser.js("document.querySelector('#clip').value") == number


def test_table_sorts_by_any_column_both_ways(browser, report):
    browser.open(report)
    order = "[...document.querySelectorAll('#summary-table tbody tr')].map((r) => r.querySelector('b').textContent.slice(-4))"
    psnr = "[...document.querySelectorAll('#summary-table th button')].find((b) => b.textContent.startsWith('PSNR')).click()"
    browser.js(psnr)
    assert browser.js(order) == ["atic", "ight", "full"]  # infinity is largest
    browser.js(psnr)
    assert browser.js(order) == ["full", "ight", "atic"]
    browser.click("#summary-table th button")
    assert browser.js(order) == ["full", "atic", "ight"]


SHOWN = "[...document.querySelectorAll('#summary-table tbody tr')].filter((r) => !r.hidden).map((r) => r.dataset.row).join('')"


def type_into_filter(browser, words):
    browser.js(f"document.querySelector('#filter').value = {json.dumps(words)}")
    browser.js("document.querySelector('#filter').dispatchEvent(new Event('input'))")


def test_filter_leaves_the_rows_with_all_its_words_in_every_section_and_goes_with_sorting(browser, report):
    browser.open(report)
    type_into_filter(browser, "foresight")
    assert browser.js(SHOWN) == "2"
    assert browser.js("document.querySelector('#filter-count').textContent") == "1 of 3 runs, in all sections"
    of_others = "[...document.querySelectorAll('[data-row]:not(tr)')].filter((n) => n.dataset.row !== '2')"
    assert browser.js(f"{of_others}.length") > 20
    assert browser.js(
        f"{of_others}.every((n) => n.classList.contains('shadow') || getComputedStyle(n).display === 'none')"
    )
    assert browser.js("document.querySelector('#reuse [data-row=\"2\"]').checkVisibility()")
    type_into_filter(browser, "gamma=0.3 STATIC")  # no run has both
    assert browser.js(SHOWN) == ""
    type_into_filter(browser, "stat")
    assert browser.js(SHOWN) == "1"
    type_into_filter(browser, "latte -nothing")
    assert browser.js(SHOWN) == ""
    type_into_filter(browser, "t")  # static, foresight, and tiny-latte of full
    browser.js(
        "[...document.querySelectorAll('#summary-table th button')].find((b) => b.textContent.startsWith('PSNR')).click()"
    )
    assert browser.js(SHOWN) == "120"
    type_into_filter(browser, "")
    assert browser.js(SHOWN) == "120"
    assert browser.js("document.querySelector('#filter-count').textContent") == ""
    assert browser.problems() == []


def test_filter_hides_the_players_of_other_runs_and_what_is_left_plays(browser, report):
    browser.open(report)
    type_into_filter(browser, "foresight")
    titles = "[...document.querySelectorAll('#stage figure:not([hidden]) b')].map((b) => b.textContent)"
    assert browser.js(titles) == ["reference", "C foresight"]
    browser.js("const c = document.querySelector('#clip'); c.value = '1'; c.dispatchEvent(new Event('change'))")
    assert browser.js(titles) == ["reference", "C foresight"]
    browser.wait(f"{PLAYERS}.every((v) => v.readyState >= 2 && !v.seeking)")
    browser.click("#play")
    browser.wait(f"{PLAYERS}[0].currentTime > 0.5 && {PLAYERS}[3].currentTime > 0.3")


def test_copy_takes_only_the_rows_that_the_filter_leaves(browser, report):
    browser.open(report)
    type_into_filter(browser, "foresight")
    assert [line.split(",")[1] for line in copied(browser, "csv").splitlines()] == ["policy", "foresight"]
    latex = copied(browser, "latex")
    assert latex.count("foresight") == 1
    assert "static" not in latex
    assert latex.rstrip().endswith("\\end{tabular}")


def test_the_command_of_a_row_can_be_copied(browser, report, runs):
    browser.open(report)
    buttons = "[...document.querySelectorAll('#reproduce [data-row=\"1\"] [data-copy-text]')]"
    assert browser.js(f"{buttons}.length") == 3  # the command that made it, the one for its config, the config
    assert pasted(browser, f"{buttons}[1]").split() == ["fsf", "run", str(runs.static / "config.yaml")]


def copied(browser, what):
    """What a copy button leaves in the clipboard, read back by pasting."""
    return pasted(browser, f"document.querySelector('[data-copy={what}]')")


def pasted(browser, button):
    """What clicking `button`, an expression, leaves in the clipboard."""
    browser.js(f"{button}.click()")
    browser.wait(f"{button}.textContent === 'Copied'")
    browser.js("{ const a = document.createElement('textarea'); a.id = 'pasted'; document.body.append(a); a.focus(); }")
    browser.send("Input.dispatchKeyEvent", type="keyDown", commands=["paste"])
    browser.wait("document.querySelector('#pasted').value !== ''")
    return browser.js("(() => { const p = document.querySelector('#pasted'); p.remove(); return p.value; })()")


def test_copy_buttons_copy_the_table_in_its_present_order(browser, report):
    browser.open(report)
    browser.js("document.querySelector('#summary-table th button').click()")
    browser.js("document.querySelector('#summary-table th button').click()")
    csv, latex = copied(browser, "csv"), copied(browser, "latex")
    assert [line.split(",")[1] for line in csv.splitlines()] == ["policy", "foresight", "static", "full"]
    assert latex.index("foresight") < latex.index("full")


def test_copying_falls_back_where_the_clipboard_is_not_allowed(browser, report):
    browser.open(report)
    browser.js("navigator.clipboard.writeText = () => Promise.reject(new Error('denied'))")
    browser.js("document.addEventListener('copy', () => { window.selected = String(document.activeElement.value); })")
    browser.click("[data-copy=csv]")
    browser.wait("window.selected !== undefined")
    assert browser.js("window.selected").startswith("run,policy,options,model,speedup_mean")


def test_axes_of_the_pareto_plot_can_be_chosen_and_hover_shows_the_config(browser, report):
    browser.open(report)
    shown = "[...document.querySelectorAll('.pareto-plot')].filter((p) => !p.hidden).map((p) => p.dataset.x + ' ' + p.dataset.y)"
    assert browser.js(shown) == ["flops_speedup psnr"]
    browser.js("const y = document.querySelector('#pareto-y'); y.value = 'ssim'; y.dispatchEvent(new Event('change'))")
    assert browser.js(shown) == ["flops_speedup ssim"]
    browser.js(
        "document.querySelector('.pareto-plot:not([hidden]) .wide .point:nth-of-type(3)')"
        ".dispatchEvent(new PointerEvent('pointermove', { clientX: 50, clientY: 50 }))"
    )
    tip = browser.js("document.querySelector('#tip').textContent")
    assert "foresight(gamma=0.3, storage=residual, lag_correction=true)" in tip
    assert "n = 6" in tip


def test_heat_map_and_curves_can_be_read_off(browser, report):
    browser.open(report)
    move = """(() => { const n = document.querySelector('SELECTOR'), b = n.getBoundingClientRect();
        n.dispatchEvent(new PointerEvent('pointermove', { clientX: b.left + SHARE * b.width, clientY: b.top + 5 }));
        return document.querySelector('#tip').textContent; })()"""
    tip = browser.js(move.replace("SELECTOR", '[data-heat="1"]').replace("SHARE", "0.175"))
    assert tip.startswith("spatial.0 · step 3 · timestep 849")
    assert "reused in 100 % of 6 videos · mean lag 1.00" in tip
    tip = browser.js(move.replace("SELECTOR", '[data-panel="2:0"]').replace("SHARE", "0.99"))
    assert tip.startswith("spatial.0 · step 19")
    assert "threshold" in tip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(browser, report, width, scheme):
    browser.open(report, width=width, phone=width < 500, scheme=scheme)
    assert browser.js("document.documentElement.scrollWidth") <= width
    background = browser.js("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 22, 26)") == (scheme == "dark")


def test_prints_in_full_on_light_ground(browser, report):
    browser.open(report, scheme="dark")
    pdf = browser.send("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"]
    assert len(pdf) > 20_000
    browser.send("Emulation.setEmulatedMedia", media="print")
    assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.send("Emulation.setEmulatedMedia", media="")


def test_html_in_a_prompt_does_nothing(browser, runs, tmp_path):
    shutil.copytree(runs.static.parent / "_reference", tmp_path / "_reference")
    run = shutil.copytree(runs.static, tmp_path / "run")
    rows = [json.loads(line) for line in (run / "videos.jsonl").read_text().splitlines()]
    rows[0]["prompt"] = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    (run / "videos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    browser.open(write_report([run], tmp_path / "report.html"))
    assert browser.js("window.hacked === undefined")
    assert browser.js("document.querySelector('#clip').options[0].textContent").startswith(
        "</script><script>window.hacked"
    )
    assert browser.problems() == []


def test_a_page_without_runs_data_still_works(browser, tmp_path):
    (tmp_path / "empty").mkdir()
    browser.open(write_report([tmp_path / "empty"], tmp_path / "report.html"))
    assert browser.problems() == []
