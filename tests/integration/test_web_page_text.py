"""What models say on the web page in a real Chromium: hostile text stays text, Markdown is read, length is no harm."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.page_server import STATIC, Failure, StandIn, Tool, serve_page
from tests.integration.page_visitor import PATIENCE_MS, Visitor

pytestmark = pytest.mark.slow
pytest_plugins = ("tests.integration.page_fixtures",)

TAGS = {"p", "br", "a", "code", "strong", "em", "del", "blockquote", "figure", "figcaption", "pre", "span", "button"}
TAGS |= {"svg", "use", "div", "table", "thead", "tbody", "tr", "th", "td"}
HOSTILE = [
    "<script>window.canary = 1</script>",
    "<img src=x onerror='window.canary = 1'>",
    "<svg onload='window.canary = 1'><animate onbegin='window.canary = 1'/></svg>",
    "<iframe srcdoc='<script>parent.canary = 1</script>'></iframe>",
    "[click](javascript:window.canary=1)",
    "[click](  JaVaScRiPt:window.canary=1)",
    "[click](java\tscript:window.canary=1)",
    "[click](data:text/html,<script>window.canary=1</script>)",
    "[click](vbscript:x) [file](file:///etc/passwd) [blob](blob:x)",
    "![x](javascript:window.canary=1) ![pixel](http://127.0.0.1:9/pixel.png)",
    "[a](https://example.org/'onmouseover='window.canary=1)",
    'https://example.org/"onmouseover="window.canary=1',
    "**<b onclick=window.canary=1>[x](javascript:window.canary=1)**",
    "`<script>window.canary = 1</script>`",
    "```html\n<script>window.canary = 1</script>\n```",
    "```<img src=x onerror=window.canary=1>\ncode\n```",
    "| <img src=x onerror=window.canary=1> |\n|---|\n| <script>window.canary=1</script> |",
    "> > > > > > > > > > > > > > > > deep",
    "&lt;script&gt;window.canary=1&lt;/script&gt; &#x3c;script>",
    "\u202egnp.exe\u202c \u2066isolated \x00\x07\x1b[31m bell",
    "\ue0000\ue001 \ue00099999\ue001 private use",
    "__proto__ constructor [x](__proto__) ${window.canary=1} {{canary}}",
    "مرحبا **بالعالم** `code` [رابط](https://example.org)",
]


def test_hostile_text_runs_no_script_and_makes_only_text_and_safe_links(visitor: Visitor, server: StandIn):
    page = visitor.page
    page.evaluate("window.canary = 0")
    server.models.append(
        {"id": "sft/<img src=x onerror=canary=1>", "stage": "<b>x</b>", "step": 1, "context_length": 9}
    )
    server.answer = lambda body: [piece for text in HOSTILE for piece in (*text, "\n\n")]
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_selector("#model-a:has(option:nth-child(2))", state="attached")
    visitor.choose("sft/<img src=x onerror=canary=1>")
    visitor.ask("\n".join(HOSTILE).replace("\x00", ""))
    server.answer = lambda body: [
        Tool("<img src=x onerror=canary=1>", "<script>canary=1</script>"),
        Failure(500, "<b>bad</b>"),
    ]
    visitor.ask("<script>window.canary = 1</script>")
    page.mouse.move(600, 300)
    for link in page.locator(".prose a").all():
        link.hover()
    assert page.evaluate("window.canary") == 0
    found = page.eval_on_selector_all(".prose *, .bubble *", "all => all.map((one) => one.tagName.toLowerCase())")
    assert set(found) <= TAGS
    links = page.eval_on_selector_all(
        ".prose a", "all => all.map((one) => [one.protocol, one.rel, one.attributes.length])"
    )
    assert links and all(link == ["https:", "noopener noreferrer nofollow", 4] or link[0] == "http:" for link in links)
    names = page.evaluate(
        "[...document.querySelectorAll('*')].flatMap((one) => [...one.attributes].map((each) => each.name))"
    )
    assert not [name for name in names if name.startswith("on") or name == "srcdoc"]
    shown = page.locator(".prose").first.inner_text()
    for text in ("<script>window.canary = 1</script>", "[click](javascript:window.canary=1)", "&lt;script&gt;"):
        assert text in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", shown)
    assert page.locator("script").count() == 2, "theme.js and app.js"
    page.reload()
    visitor.wait_for(".prose", "window.canary")
    assert page.evaluate("window.canary") is None


@pytest.mark.parametrize(
    "unit",
    [
        "[",
        "](",
        "[](",
        "*",
        "**a ",
        "*a_",
        "`",
        "` `` ",
        "> ",
        "- ",
        "1. ",
        "#",
        "|",
        "|-\n",
        "~~a",
        "http://",
        "\\",
        "<",
        "a\n",
        "```\n",
        " ",
    ],
)
def test_rendering_a_huge_text_takes_no_quadratic_time(browser: Any, huge: Any, unit: str):
    # Quadratic work on 90,000 characters would take minutes and run into the patience of the page.
    length = huge.evaluate("(text) => window.render(text)", (unit * 90_000)[:90_000])
    assert length > 0


@pytest.fixture(scope="module")
def huge(browser: Any) -> Iterator[Any]:
    """A page that only renders Markdown."""
    with serve_page() as server:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(server.url)
        page.evaluate(
            """async () => {
              const { MarkdownView } = await import("/markdown.js");
              window.render = (text, deadline = 8000) => {
                const begun = performance.now(), element = document.createElement("div");
                new MarkdownView(element).update([{ type: "text", text }]);
                if (performance.now() - begun > deadline) throw new Error("too slow");
                return element.childNodes.length + element.textContent.length + 1;
              };
            }"""
        )
        yield page
        page.close()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a *b* **c**", "<p>a <em>b</em> <strong>c</strong></p>"),
        ("***d***", "<p><strong><em>d</em></strong></p>"),
        ("2*3*4 snake_case_name 2 * 3", "<p>2*3*4 snake_case_name 2 * 3</p>"),
        ("**open *and never closed", "<p>**open *and never closed</p>"),
        ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
        ("A. red\nB. blue", "<p>A. red<br>B. blue</p>"),
        ("`` a ` b `` and `c", "<p><code> a ` b </code> and `c</p>"),
        (
            "- a\n- b\n  - c\n\n1. x\n2. y",
            '<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><ol start="1"><li>x</li><li>y</li></ol>',
        ),
        ("# Title\ntext\n---\nmore", "<h4>Title</h4><p>text</p><hr><p>more</p>"),
        ("> quoted\n> **twice**", "<blockquote><p>quoted<br><strong>twice</strong></p></blockquote>"),
        ("In\n1990. It was", "<p>In<br>1990. It was</p>"),
        (r"\*plain\* \[x\]", "<p>*plain* [x]</p>"),
        ("[[x]] [y] (z)", "<p>[[x]] [y] (z)</p>"),
        ("7+8=15, 3+4+1=8\n#### 85", "<p>7+8=15, 3+4+1=8<br>#### 85</p>"),
        ("#### 42", "<p>#### 42</p>"),
        ("### Step 2", "<h6>Step 2</h6>"),
        ("47\n+ 25\n----\n72", "<p>47<br>+ 25<br>----<br>72</p>"),
        ("- 5 + 3\n\n* 4 = 20\n\n+ 25 apples", "<p>- 5 + 3</p><p>* 4 = 20</p><p>+ 25 apples</p>"),
        ("5\n> 3", "<p>5<br>&gt; 3</p>"),
        ("- 5 apples\n- 3", "<ul><li>5 apples</li><li>3</li></ul>"),
        ("- -3 * (4 - 1)", "<p>- -3 * (4 - 1)</p>"),
        ("#### $1,200.50", "<p>#### $1,200.50</p>"),
        ("1. 5 + 3 = 8\n2. 8 - 2 = 6", '<ol start="1"><li>5 + 3 = 8</li><li>8 - 2 = 6</li></ol>'),
        ("~~gone~~ a~b", "<p><del>gone</del> a~b</p>"),
    ],
)
def test_markdown_renders_to_the_expected_html(huge: Any, text: str, shown: str):
    script = """async (text) => {
      const { MarkdownView } = await import("/markdown.js");
      const element = document.createElement("div");
      new MarkdownView(element).update([{ type: "text", text }]);
      return element.innerHTML;
    }"""
    assert huge.evaluate(script, text) == shown


def test_streamed_text_renders_like_the_whole_text(huge: Any):
    text = "# A\n\nSome *text* with `code` and [a link](https://example.org).\n\n- one\n- two\n\n"
    text += "```py\nx = 1\n```\n\n|a|b|\n|-|-|\n|1|2|\n\nEnd."
    script = """async (text) => {
      const { MarkdownView } = await import("/markdown.js");
      const slow = document.createElement("div"), fast = document.createElement("div");
      const view = new MarkdownView(slow);
      view.update([{ type: "text", text: text.slice(0, 5) }]);
      const first = slow.firstChild;
      for (let end = 6; end <= text.length; end++) view.update([{ type: "text", text: text.slice(0, end) }]);
      new MarkdownView(fast).update([{ type: "text", text }]);
      return [slow.innerHTML === fast.innerHTML, slow.firstChild === first, slow.childNodes.length];
    }"""
    assert huge.evaluate(script, text) == [True, True, 6]


def test_the_page_loads_only_its_own_files():
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")
        own = re.sub(r"http://www\.w3\.org/2000/svg", "", text)
        assert not re.search(r"""(?:src|href|url\(|import|fetch\()\s*[=("'\s]*(?:https?:)?//""", own), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", own), (
            file.name
        )
    index = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", index)
