"""The page in a headless Chromium: prompts, an input, bars, attention; and nothing of a stranger's runs in it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.server.shop import Served

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="neither Chromium nor its driver is installed"),
]

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """A headless Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,860"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def listen(start: Callable[..., Served]) -> Iterator[Callable[..., str]]:
    """Lets a server of this process listen on a port; returns its address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def begin(**settings: Any) -> str:
        app = start(**settings).app
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"

    yield begin
    for server, thread in running:
        server.should_exit = True
        thread.join()


def until(browser: webdriver.Chrome, condition: Callable[[], Any]) -> Any:
    return WebDriverWait(browser, 30).until(lambda _: condition())


def every(browser: webdriver.Chrome, selector: str) -> list[Any]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def texts(browser: webdriver.Chrome, selector: str) -> list[str]:
    return [element.text for element in every(browser, selector)]


def ask(browser: webdriver.Chrome, text: str) -> None:
    box = until(browser, lambda: every(browser, "#columns textarea"))[0]
    box.clear()
    box.send_keys(text)
    browser.find_element(By.ID, "ask").click()
    until(browser, lambda: "answers in" in browser.find_element(By.ID, "message").text)


def test_prompts_answers_and_attention_are_shown(browser: webdriver.Chrome, listen: Callable[..., str]) -> None:
    browser.get(listen())
    until(browser, lambda: len(every(browser, "#models tbody tr")) == 10)
    assert browser.find_element(By.ID, "backbone").text == "tiny"
    for row in every(browser, "#models tbody tr"):
        if row.find_element(By.TAG_NAME, "button").text == "aim":
            row.find_element(By.TAG_NAME, "button").click()
        if row.find_element(By.TAG_NAME, "button").text == "topic":
            row.find_element(By.TAG_NAME, "input").click()
    until(browser, lambda: "mood@1, topic@1" in browser.find_element(By.ID, "lineage").text)
    ask(browser, "it was good\nthe text is bad")
    assert texts(browser, "#answers h3") == ["aim", "topic"]
    bars = every(browser, "#answers .bar")
    assert len(bars) == 8  # two models, two inputs, two labels
    widths = [float(bar.value_of_css_property("width").removesuffix("px")) for bar in bars[:2]]
    track = float(every(browser, ".track")[0].value_of_css_property("width").removesuffix("px"))
    assert sum(widths) == pytest.approx(track, rel=0.02)
    assert texts(browser, ".heat th") == ["attention", "mood@1", "topic@1", "target"]
    weights = [float(text) for text in texts(browser, ".heat td.cell")]
    assert sum(weights[:3]) == pytest.approx(1, abs=0.02)
    assert len(weights) == 6
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_strangers_names_rows_and_labels_stay_text(
    browser: webdriver.Chrome, listen: Callable[..., str], server: Served
) -> None:
    shop = server.shop
    shop.prompt("evil", labels={"no": HOSTILE, "yes": "yes"}, note=HOSTILE, tags=["<b>bold</b>"])
    shop.prompt("worse", task="text", input="{<i>column</i>} label:")
    database = shop.registry._database  # what no command would write, another program may
    with database.transaction():
        database.execute("UPDATE prompts SET name = ? WHERE name = 'style'", (HOSTILE,))
    browser.get(listen())
    until(browser, lambda: len(every(browser, "#models tbody tr")) > 8)
    for row in every(browser, "#models tbody tr"):
        wanted = row.find_element(By.TAG_NAME, "button").text == "evil"
        if row.find_element(By.TAG_NAME, "input").is_selected() != wanted:
            row.find_element(By.TAG_NAME, "input").click()
        if wanted:
            row.find_element(By.TAG_NAME, "button").click()
    until(browser, lambda: HOSTILE in browser.find_element(By.ID, "lineage").text)
    ask(browser, HOSTILE)
    assert HOSTILE in texts(browser, "#answers .bars span")
    assert texts(browser, "#answers .input") == [HOSTILE]
    assert browser.title == "attempt"
    assert every(browser, "img") == every(browser, "main script") == every(browser, "td b") == []


def test_a_key_is_asked_for_on_the_page(browser: webdriver.Chrome, listen: Callable[..., str]) -> None:
    browser.get(listen(api_key="s3cret"))
    form = browser.find_element(By.ID, "key-form")
    until(browser, form.is_displayed)
    assert every(browser, "#models tbody tr") == []
    browser.find_element(By.ID, "key").send_keys("s3cret\n")
    until(browser, lambda: len(every(browser, "#models tbody tr")) == 10)
    assert not form.is_displayed()
