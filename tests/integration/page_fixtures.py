"""Fixtures of the tests of the web page; taken with `pytest_plugins = ("tests.integration.page_fixtures",)`."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.page_server import StandIn, serve_page
from tests.integration.page_visitor import Visitor


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; the tests are skipped where it or playwright is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next((path for path in map(shutil.which, names) if path), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator[StandIn]:
    """A stand-in for the server, fresh for each test."""
    with serve_page() as state:
        yield state


@pytest.fixture
def visitor(browser: Any, server: StandIn) -> Iterator[Visitor]:
    """A visitor of the stand-in; at the end the console must be empty and nobody else have been asked for anything."""
    visitor = Visitor(browser, server.url)
    yield visitor
    visitor.context.close()
    assert visitor.complaints == []
    assert visitor.foreign == []
