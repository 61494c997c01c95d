"""The page in a real browser: a Sudoku solved live, a chat, a replay, a schema, a gap, an edit."""

import json
import shutil
import time
from itertools import pairwise

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from presswork.engine.engine import EngineConfig
from presswork.server.config import ServerConfig
from tests.server.conftest import serving

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1200,900"
)
SOLVED = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver (apt install chromium-driver)"),
]


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    engine = EngineConfig(constraint_folder=tmp_path_factory.mktemp("constraints"))
    models = {"tiny": str(folder), "sudoku": "sudoku"}
    with serving(ServerConfig(models=models, engine=engine)) as served:
        yield served.url


@pytest.fixture(scope="module")
def browser(monkeypatch_module):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SE_OFFLINE", "true")
        yield patch


@pytest.fixture
def page(browser, url):
    """The page, freshly opened, with nothing kept from before."""
    browser.get(url)
    browser.execute_script("localStorage.clear(); sessionStorage.clear()")
    browser.get(f"{url}/?fresh")
    wait(browser, lambda: len(Select(browser.find_element(By.ID, "model")).options) == 2)
    browser.get_log("browser")
    yield browser
    severe = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert severe == []


def wait(browser, condition):
    WebDriverWait(browser, 60, poll_frequency=0.05).until(lambda _: condition())


def open_tab(browser, name):
    browser.find_element(By.ID, f"tab-{name}").click()


def text_of(browser, selector):
    return "".join(found.text for found in browser.find_elements(By.CSS_SELECTOR, selector))


def test_a_sudoku_is_solved_live_and_replayed(page):
    open_tab(page, "sudoku")
    page.execute_script(
        """const cells = [...document.querySelectorAll('#board input')];
        window.seen = new Set();
        setInterval(() => window.seen.add(cells.map((c) => c.value || '.').join('')), 1)"""
    )
    page.find_element(By.CSS_SELECTOR, "#sudoku-form .main").click()
    wait(page, lambda: "Solved" in text_of(page, "#sudoku-stats"))
    cells = page.execute_script("return [...document.querySelectorAll('#board input')].map((c) => c.value).join('')")
    assert cells == SOLVED
    # The board as it was, as it is, and what lay between.
    assert page.execute_script("return window.seen.size") > 2
    slider = page.find_element(By.CSS_SELECTOR, "#sudoku-stats input[type=range]")
    page.execute_script("arguments[0].value = 0; arguments[0].dispatchEvent(new Event('input'))", slider)
    assert "step 1" in text_of(page, "#sudoku-stats .replay")


def test_drafts_arrive_as_they_happen(page, url):
    """Not in one burst: the first is there long before the last."""
    body = {
        "model": "tiny", "messages": [{"role": "user", "content": "def"}], "stream": True, "max_tokens": 400,
        "canvas_length": 400, "max_denoising_steps": 40, "stability_threshold": 48, "ignore_eos": True,
        "stream_options": {"drafts": True},
    }  # fmt: skip
    times = page.execute_async_script(
        """const [body, done] = arguments, times = [];
        fetch('v1/chat/completions', {method: 'POST', headers: {'content-type': 'application/json'}, body})
          .then(async (response) => {
            const reader = response.body.getReader();
            for (;;) {
              const {value, done: ended} = await reader.read();
              if (ended) return done(times);
              times.push(performance.now());
            }
          })""",
        json.dumps(body),
    )
    assert len(times) >= 15
    gaps = [b - a for a, b in pairwise(times)]
    assert max(gaps) < 0.5 * (times[-1] - times[0])


def test_a_chat_is_answered_shown_settling_and_kept(page):
    box = page.find_element(By.ID, "chat-input")
    page.execute_script("document.getElementById('max-tokens').value = 40")
    box.send_keys("def add", Keys.ENTER)
    wait(page, lambda: "steps a canvas" in text_of(page, "#messages"))
    answer = text_of(page, "#messages li.assistant .text")
    slider = page.find_element(By.CSS_SELECTOR, "#messages input[type=range]")
    page.execute_script("arguments[0].value = 0; arguments[0].dispatchEvent(new Event('input'))", slider)
    assert page.find_elements(By.CSS_SELECTOR, "#messages .text .n3, #messages .text .n2, #messages .text .n1")
    page.refresh()
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#messages li.assistant"))
    assert text_of(page, "#messages li.assistant .text") == answer
    page.find_element(By.CSS_SELECTOR, "#conversations .delete").click()
    assert not page.find_elements(By.CSS_SELECTOR, "#messages li")


def test_an_answer_keeps_to_a_schema_in_the_page(page):
    open_tab(page, "schema")
    page.execute_script("document.getElementById('max-tokens').value = 150")
    page.find_element(By.CSS_SELECTOR, "#schema-form .main").click()
    wait(page, lambda: "tokens/s" in text_of(page, "#schema-output"))
    told = json.loads(page.find_element(By.CSS_SELECTOR, "#schema-output .text:not(.reasoning)").text)
    assert set(told) == {"name", "kind", "lines", "public"}


def test_a_gap_is_filled_and_an_edit_shows_its_diff(page):
    open_tab(page, "fill")
    page.find_element(By.ID, "fill-regex").send_keys("[a-z]{3}")
    page.find_element(By.CSS_SELECTOR, "#fill-form .main").click()
    wait(page, lambda: "candidates" in text_of(page, "#fill-candidates"))
    assert len(text_of(page, "#fill-output .new")) == 3 and "total / len(values)" in text_of(page, "#fill-output")
    open_tab(page, "edit")
    page.execute_script("const a = document.getElementById('edit-input'); a.focus(); a.setSelectionRange(22, 26)")
    page.find_element(By.CSS_SELECTOR, "#edit-form .main").click()
    wait(page, lambda: "confidence" in text_of(page, "#edit-stats"))
    removed = text_of(page, "#edit-diff del")
    assert removed in ("", "-    totl = sum(values)")


def test_both_modes_side_by_side_and_mistakes_in_one_place(page):
    open_tab(page, "compare")
    page.execute_script("document.getElementById('max-tokens').value = 20")
    page.find_element(By.ID, "compare-input").send_keys("def add")
    page.find_element(By.CSS_SELECTOR, "#compare-form .main").click()
    wait(page, lambda: "ms a token" in text_of(page, "#compare-ar"))
    assert "ms a step" in text_of(page, "#compare-diffusion")
    open_tab(page, "fill")
    page.execute_script("document.getElementById('fill-input').value = 'no gap'")
    page.find_element(By.CSS_SELECTOR, "#fill-form .main").click()
    wait(page, lambda: "Mark each gap" in text_of(page, "#notice"))


def test_tabs_go_by_keys_and_nothing_is_asked_of_others(page, url):
    page.find_element(By.ID, "tab-chat").send_keys(Keys.ARROW_RIGHT)
    assert page.switch_to.active_element.get_attribute("id") == "tab-compare"
    assert page.find_element(By.ID, "panel-compare").is_displayed()
    page.execute_script("document.getElementById('theme').value = 'dark'")
    page.execute_script("document.getElementById('theme').dispatchEvent(new Event('change'))")
    assert page.execute_script("return document.documentElement.dataset.theme") == "dark"
    time.sleep(0.1)
    asked = [
        message["params"]["request"]["url"]
        for message in (json.loads(entry["message"])["message"] for entry in page.get_log("performance"))
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert asked and all(one.startswith((url, "data:", "blob:")) for one in asked)
