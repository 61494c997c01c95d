"""The pictures of docs/serving.md: the page in a browser, taken from a server that runs.

    presswork serve &
    python docs/figures/page.py http://127.0.0.1:8000

Needs Chromium and its driver (`apt install chromium-driver`) and `pip install selenium`. Writes page-*.png beside this
file.
"""

import shutil
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

HERE = Path(__file__).resolve().parent
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-background-networking --window-size=1100,760"


def open_browser(url: str) -> webdriver.Chrome:
    """The page in the light theme, with nothing kept from before."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in FLAGS.split():
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    browser.get(url)
    wait(browser, "document.querySelectorAll('#model option').length > 0")
    return browser


def wait(browser: webdriver.Chrome, condition: str) -> None:
    """Until an expression of the page holds."""
    WebDriverWait(browser, 120, poll_frequency=0.05).until(lambda _: browser.execute_script(f"return {condition}"))


def tab(browser: webdriver.Chrome, name: str) -> None:
    """Turn to one of the page's parts."""
    browser.find_element(By.ID, f"tab-{name}").click()


def set_value(browser: webdriver.Chrome, field: str, value: str) -> None:
    """Fill in a setting, which may be folded away."""
    browser.execute_script(
        "const f = document.getElementById(arguments[0]); f.value = arguments[1];"
        "f.dispatchEvent(new Event('input')); f.dispatchEvent(new Event('change'))",
        field, value,
    )  # fmt: skip


def replay(browser: webdriver.Chrome, place: float) -> None:
    """Move the visible slider to a share of its way."""
    browser.execute_script(
        "const s = [...document.querySelectorAll('.replay input')].find((one) => one.offsetParent);"
        "s.value = Math.round(arguments[0] * s.max); s.dispatchEvent(new Event('input'))",
        place,
    )


def submit(browser: webdriver.Chrome, form: str, until: str) -> None:
    """Press a form's button and wait for what it says at the end."""
    browser.find_element(By.CSS_SELECTOR, f"#{form} .main").click()
    wait(browser, f"document.getElementById('panel-{form.removesuffix('-form')}').innerText.includes('{until}')")


def main(url: str) -> None:
    """Take all pictures."""
    browser = open_browser(url)
    names = [option.get_attribute("value") for option in Select(browser.find_element(By.ID, "model")).options]

    def take(name: str) -> None:
        browser.save_screenshot(str(HERE / f"page-{name}.png"))

    if "sudoku" in names:
        tab(browser, "sudoku")
        submit(browser, "sudoku-form", "Solved")
        replay(browser, 0.4)
        take("sudoku")
    set_value(browser, "max-tokens", "192")
    tab(browser, "chat")
    browser.find_element(By.ID, "chat-input").send_keys(
        "def mean(values):", Keys.SHIFT, Keys.ENTER, Keys.NULL, '    """Return the mean of a list of numbers."""'
    )
    submit(browser, "chat-form", "steps a canvas")
    replay(browser, 0.5)
    take("replay")
    set_value(browser, "theme", "dark")
    tab(browser, "schema")
    submit(browser, "schema-form", "tokens/s")
    take("schema")
    browser.quit()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
