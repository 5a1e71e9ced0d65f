"""The web page for everyone, in a real Chromium: keyboard, screen reader, phone, light and dark.

`NANOCHAT_SCREENSHOTS=<folder>` keeps pictures of it, to be looked at.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.integration.page_server import Failure, Length, StandIn, Tool
from tests.integration.page_visitor import CONTRAST, DESKTOP, NARROWEST, PHONE, WIDER, Visitor, echo

pytestmark = pytest.mark.slow
pytest_plugins = ("tests.integration.page_fixtures",)


def test_all_controls_are_reachable_by_keyboard_with_visible_focus(visitor: Visitor, server: StandIn):
    page = visitor.page
    server.answer = echo
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    visitor.wait_until_idle()
    assert server.last["messages"][-1]["content"] == "first line\nsecond line"
    stops = []
    for _ in range(40):
        page.keyboard.press("Tab")
        stops.append(
            page.evaluate(
                """() => {
                  const one = document.activeElement, around = getComputedStyle(one.closest(".field") ?? one);
                  const ring = one.id === "question" ? around.boxShadow !== "none"
                    : getComputedStyle(one).outlineStyle !== "none";
                  return [one.getAttribute("aria-label") || one.textContent.trim(), ring];
                }"""
            )
        )
    names = {name for name, _ in stops}
    wanted = {
        "New chat",
        "Model",
        "Compare",
        "Switch between light and dark",
        "Settings",
        "Conversation",
        "Copy question",
    }
    assert wanted | {"Edit and send again", "Your message", "Send"} <= names
    assert any(name.startswith("Answer again") for name in names)
    unseen = {
        name for name, ring in stops if not ring and name != "Skip to the message field" and "nanochat" not in name
    }
    assert unseen == set(), "focused without a visible mark"
    page.keyboard.press("Control+Shift+O")
    assert page.locator("#welcome").is_visible() and page.evaluate("document.activeElement.id") == "question"
    page.focus("#settings-open")
    page.keyboard.press("Enter")
    assert page.locator("#settings").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#settings").is_hidden()
    assert page.evaluate("document.activeElement.id") == "settings-open"


def test_enter_during_input_method_composition_does_not_send(visitor: Visitor, server: StandIn):
    visitor.page.fill("#question", "にほ")
    visitor.page.evaluate(
        """document.getElementById("question").dispatchEvent(
             new KeyboardEvent("keydown", { key: "Enter", isComposing: true, bubbles: true, cancelable: true }))"""
    )
    assert server.requests == [] and visitor.page.input_value("#question") == "にほ"


def test_every_control_has_an_accessible_name(visitor: Visitor, server: StandIn):
    page = visitor.page
    session = visitor.context.new_cdp_session(page)
    roles = {
        "button",
        "textbox",
        "combobox",
        "slider",
        "spinbutton",
        "link",
        "dialog",
        "navigation",
        "complementary",
        "article",
        "main",
        "img",
    }

    def nameless() -> list[str]:
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in nodes if not node.get("ignored") and node["role"]["value"] in roles]
        return [json.dumps(node["role"]) for node in shown if not node.get("name", {}).get("value", "").strip()]

    assert nameless() == []
    server.answer = lambda body: ["```\ncode\n```\n|a|\n|-|\n", Tool("1+1", "2"), "[x](https://example.org)"]
    page.click("#compare")
    visitor.ask("a")
    assert nameless() == []
    page.click("#settings-open")
    assert nameless() == []
    page.keyboard.press("Escape")
    page.get_by_label("Edit and send again").click()
    assert nameless() == []
    page.set_viewport_size(PHONE)
    page.click("#sidebar-toggle")
    page.get_by_label("Rename “a”").click()
    assert nameless() == []
    page.evaluate("document.getElementById('sidebar-close').removeAttribute('aria-label')")
    assert len(nameless()) == 1, "a missing name is not seen, so none missing says nothing"


def test_screen_readers_get_one_announcement_of_the_whole_answer(visitor: Visitor, server: StandIn):
    visitor.page.evaluate(
        """() => {
          window.said = [];
          for (const region of document.querySelectorAll("[aria-live], [role=status], [role=alert], [role=log]"))
            new MutationObserver(() => window.said.push(region.textContent))
              .observe(region, { childList: true, subtree: true, characterData: true });
        }"""
    )
    server.answer = lambda body: [f"word{i} " for i in range(30)]
    visitor.ask("speak")
    visitor.page.locator("#announcer").filter(has_text="word29").wait_for(state="attached")
    [said] = visitor.page.evaluate("window.said")
    assert said.startswith("sft_scienceqa/d4: word0 ") and "word29" in said


LONG = [
    "W" * 300 + "\n\n`" + "c" * 200 + "`\n\n```\n" + "x = 1; " * 40 + "\n```\n\n",
    "|" + "head|" * 12 + "\n|" + "-|" * 12 + "\n|" + "cell|" * 12 + "\n\nhttps://example.org/" + "p" * 200 + " ",
    Tool("9" * 120, "9" * 120),
    "\n\n> > > - deep " + "y" * 100,
]


@pytest.mark.parametrize("size", [PHONE, NARROWEST], ids=["390", "320"])
def test_nothing_overflows_the_width_of_a_phone(visitor: Visitor, server: StandIn, size: dict[str, int]):
    page = visitor.page
    page.set_viewport_size(size)
    assert page.evaluate(WIDER) == [0, 0, []]
    server.answer = lambda body: LONG
    page.click("#compare")
    visitor.ask("Z" * 200)
    assert page.evaluate(WIDER) == [0, 0, []]
    server.answer = lambda body: [Failure(400, "E" * 200)]
    visitor.ask("more")
    assert page.evaluate(WIDER) == [0, 0, []]
    page.get_by_label("Edit and send again").first.click()
    assert page.evaluate(WIDER) == [0, 0, []]
    page.click("#settings-open")
    sheet = page.locator("#settings").evaluate("(one) => one.scrollWidth - one.clientWidth")
    assert sheet == 0 and page.evaluate(WIDER) == [0, 0, []]
    page.keyboard.press("Escape")
    page.evaluate("document.getElementById('thread').style.width = '900px'")
    assert page.evaluate(WIDER) != [0, 0, []], "an overflow is not seen, so its absence says nothing"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(browser: Any, server: StandIn, scheme: str):
    visitor = Visitor(browser, server.url, color_scheme=scheme)
    page = visitor.page
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    page.click("#try-compare")
    texts = [
        "# Head\ntext *em* `code` [link](https://example.org)\n> quote\n\n```py\nx\n```\n",
        Tool("1+1", "2"),
        Length(),
    ]
    server.answer = lambda body: texts if "messages" in body else [Failure(400, "No.")]
    visitor.ask("q")
    poor, seen = page.evaluate(CONTRAST)
    assert poor == [] and seen > 20
    page.click("#settings-open")
    page.fill("#seed", "-1")
    assert page.evaluate(CONTRAST)[0] == []
    page.evaluate("document.getElementById('keys').style.color = 'gray'; document.body.style.background = 'dimgray'")
    assert page.evaluate(CONTRAST)[0] != [], "poor contrast is not seen, so its absence says nothing"
    visitor.context.close()


def test_a_chosen_theme_survives_a_reload_and_can_follow_the_system_again(browser: Any, server: StandIn):
    visitor = Visitor(browser, server.url, color_scheme="dark")
    page = visitor.page
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.click("#theme")
    assert page.evaluate(colour) == "rgb(255, 255, 255)"
    page.reload()
    assert page.evaluate(colour) == "rgb(255, 255, 255)"
    page.click("#theme")
    assert page.evaluate(colour) == dark
    page.emulate_media(color_scheme="light")
    assert page.evaluate(colour) == "rgb(255, 255, 255)"
    visitor.context.close()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_screenshots_of_the_page_are_written(visitor: Visitor, server: StandIn, tmp_path: Path, size: dict[str, int]):
    folder = Path(os.environ.get("NANOCHAT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page = visitor.page
    page.set_viewport_size(size)
    page.click("#try-compare")
    page.get_by_role("button", name="Physics").click()
    server.answer = lambda body: ["The correct answer is B. wood\n\nExplanation: wood conducts heat poorly."]
    page.keyboard.press("Enter")
    visitor.wait_until_idle()
    picture = folder / f"page_{size['width']}.png"
    page.screenshot(path=picture)
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[:2] == (size["height"], size["width"])
    assert 0.01 < (pixels[..., :3].min(axis=-1) < 0.5).mean() < 0.5
