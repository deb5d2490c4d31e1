"""The page in a real browser: headless Chromium, driven by the WebDriver protocol."""

import shutil
import socket
import subprocess
import time

import pytest

httpx = pytest.importorskip("httpx", reason="needs requirements/serve.txt")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name of a reference


@pytest.fixture
def browser():
    """(method, path, body) → value of the protocol's answer, in a session of its own."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if not driver or not chromium:
        pytest.skip("Chromium or its driver is not installed (Debian: apt install chromium chromium-driver)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        for _ in range(600):
            try:
                if client.get("/status").json()["value"]["ready"]:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        session = client.post("/session", json={"capabilities": {"alwaysMatch": {"goog:chromeOptions": {
            "binary": chromium, "args": ["--headless=new", "--no-sandbox", "--window-size=390,800"]}}}})
        base = f"/session/{session.json()['value']['sessionId']}"

        def ask(method, path, body=None):
            reply = client.request(method, base + path, json=body)
            assert reply.is_success, reply.text
            return reply.json()["value"]

        yield ask
        client.delete(base)
    process.terminate()
    process.wait(30)


def test_a_click_shows_the_answer_of_the_person_who_was_typed_in(serving, browser):
    def find(selector):
        return browser("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def script(text):
        return browser("POST", "/execute/sync", {"script": f"return {text}", "args": []})

    author, at = serving.live.service.state.authors.names[0], serving.live.clock()
    serving.client.post("/v1/events?wait=true", json={"events": [
        {"type": "room_started", "id": "page-1", "at": at, "room": "page<b>room", "author": author}]})
    browser("POST", "/url", {"url": serving.url})
    browser("POST", f"/element/{find('#user')}/value", {"text": "somebody new"})
    browser("POST", f"/element/{find('#who button')}/click", {})
    for _ in range(600):
        if script("document.getElementById('whose').textContent") == "for somebody new":
            break
        time.sleep(0.1)
    assert script("document.getElementById('whose').textContent") == "for somebody new"
    rooms = script("[...document.querySelectorAll('#answer tbody tr td:nth-child(2)')].map(td => td.textContent)")
    answer = serving.client.post("/v1/recommend", json={"user": "somebody new", "k": 8}).json()
    assert set(rooms) == {room["room"] for room in answer["rooms"]}
    assert script("document.querySelectorAll('table b').length") == 0  # names are text, never markup
    assert script("document.documentElement.scrollWidth <= window.innerWidth")  # on a phone, too
