"""Visitors of the web page for tests: a person at a browser, and rulers for what can be seen."""

from typing import Any

from tests.integration.page_server import Script

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
NARROWEST = {"width": 320, "height": 640}
PATIENCE_MS = 60_000

WIDER = """() => {
  const width = document.documentElement.clientWidth, scroller = document.getElementById("scroller");
  const held = (one) => one.closest("svg") || one.parentElement.closest("pre, .table-scroll, .chat, .model, select");
  const wide = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() && !held(one))
    .filter((one) => one.getBoundingClientRect().width && one.getBoundingClientRect().right > width + 0.5);
  return [document.documentElement.scrollWidth - width, scroller.scrollWidth - scroller.clientWidth,
          wide.map((one) => one.outerHTML.slice(0, 90))];
}"""
"""How much wider than its window the page and the conversation are, and what reaches beyond without a scroller."""

CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = rgba(getComputedStyle(one).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba("white");
  };
  const texts = [...document.querySelectorAll("body *")].filter((one) =>
    [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()) &&
    one.checkVisibility() && !one.closest(":disabled, .visually-hidden, .skip"));
  const ratio = (one) => {
    const [a, b] = [light(rgba(getComputedStyle(one).color)), light(behind(one))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  return [texts.filter((one) => ratio(one) < 4.5).map((one) => one.outerHTML.slice(0, 80)), texts.length];
}"""
"""Texts whose contrast is below WCAG's 4.5, and how many texts there are."""


class Visitor:
    """A person with the page open: does what people do, and hears what stands on the console."""

    def __init__(self, browser: Any, url: str, **context: Any):
        self.url = url
        self.context = browser.new_context(viewport=DESKTOP, **context)
        self.context.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.page = self.open()

    def open(self) -> Any:
        """Open another tab on the page."""
        page = self.context.new_page()
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(self.url) or self.foreign.append(request.url))
        page.goto(self.url)
        # The list of models has come, or has not: an option without a value says only that there is none yet.
        page.wait_for_selector("#model-a option[value]:not([value='']), #connection:not([hidden])", state="attached")
        return page

    def _hear(self, message: Any) -> None:
        # A refused request is a line on every browser's console; the page is asked elsewhere what it makes of it.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.complaints.append(message.text)

    def write(self, text: str) -> None:
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")

    def ask(self, text: str) -> None:
        """Send a question and wait until all is answered."""
        self.write(text)
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        self.page.wait_for_selector("#thread:has(.answer):not(:has([aria-busy=true]))")

    def answers(self) -> list[str]:
        return self.page.locator(".answer .prose").all_inner_texts()

    def questions(self) -> list[str]:
        return self.page.locator(".bubble").all_inner_texts()

    def wait_for(self, selector: str, text: str) -> None:
        self.page.locator(selector).filter(has_text=text).first.wait_for()

    def choose(self, model: str, field: str = "Model") -> None:
        self.page.get_by_label(field, exact=True).select_option(model)


def echo(body: dict[str, Any]) -> Script:
    """Answer with the question."""
    return ["You said: ", body["messages"][-1]["content"] if "messages" in body else body["prompt"]]
