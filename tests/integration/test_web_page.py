"""The web page used in a real Chromium: asking, stopping, editing, comparing, what is kept, what breaks around it."""

import json
import re
from typing import Any

import pytest

from nanochat_pl.tasks.scienceqa import PERSONA, format_question
from tests.integration.page_server import Break, Failure, Gate, Length, StandIn, Tool
from tests.integration.page_visitor import PATIENCE_MS, PHONE, Visitor, echo

pytestmark = pytest.mark.slow
pytest_plugins = ("tests.integration.page_fixtures",)

LONGER = "Settings allow longer answers, as far as the model's context reaches."


# --- asking ----------------------------------------------------------------------------------------------------------


def test_a_streamed_answer_is_shown_at_once_and_its_statistics_at_the_end(visitor: Visitor, server: StandIn):
    gate = Gate()
    server.answer = lambda body: ["The sky ", "is", gate, " **blue**."]
    visitor.write("Why is the sky blue?")
    visitor.wait_for(".prose", "The sky is")
    answer = visitor.page.locator(".answer")
    assert answer.get_attribute("aria-busy") == "true"
    assert visitor.page.locator("#send").is_hidden() and visitor.page.locator("#stop").is_visible()
    assert visitor.page.locator(".answer footer").is_hidden()
    gate.open.set()
    visitor.wait_until_idle()
    assert visitor.answers() == ["The sky is blue."]
    assert visitor.page.locator(".prose strong").inner_text() == "blue"
    assert re.match(r"3 tokens · .*first after [\d.]+\xa0s", visitor.page.locator(".statistics").inner_text())
    assert visitor.page.evaluate("document.activeElement.id") == "question"


def test_a_request_holds_the_conversation_and_the_settings(visitor: Visitor, server: StandIn):
    visitor.choose("sft/d4")
    visitor.ask("one")
    assert server.requests == [
        (
            "/v1/chat/completions",
            {
                "model": "sft/d4",
                "messages": [{"role": "user", "content": "one"}],
                "context": "drop",
                "temperature": 0.6,
                "top_p": 1,
                "top_k": 50,
                "max_tokens": 256,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        )
    ]
    page = visitor.page
    page.click("#settings-open")
    page.fill("#system", "Be brief.")
    page.fill("#temperature", "0")
    page.fill("#repetitionPenalty", "1.2")
    page.fill("#frequencyPenalty", "-0.5")
    page.fill("#presencePenalty", "0.5")
    assert page.locator("#repetitionPenalty-shown").inner_text() == "1.20"
    page.fill("#topK", "")
    page.fill("#seed", "7")
    page.fill("#maxTokens", "99999")
    assert "Not taken" in page.locator("#maxTokens-problem").inner_text()
    page.press("#seed", "Escape")
    visitor.ask("two")
    sent = server.last
    assert [sent[name] for name in ("temperature", "seed", "max_tokens")] == [0, 7, 256]
    assert "top_k" not in sent
    penalties = [sent[f"{kind}_penalty"] for kind in ("repetition", "frequency", "presence")]
    assert penalties == [1.2, -0.5, 0.5]
    assert [(message["role"], message["content"]) for message in sent["messages"]] == [
        ("system", "Be brief."),
        ("user", "one"),
        ("assistant", "Hello there."),
        ("user", "two"),
    ]


@pytest.mark.parametrize("how", ["Escape", "#stop", ".answer .stop"])
def test_stopping_keeps_the_partial_answer_and_disconnects(visitor: Visitor, server: StandIn, how: str):
    gate = Gate()
    server.answer = lambda body: ["Once upon", gate, " never said"]
    visitor.write("Tell me a story")
    visitor.wait_for(".prose", "Once upon")
    if how == "Escape":
        visitor.page.keyboard.press(how)
    else:
        visitor.page.click(how)
    visitor.wait_for(".note", "Stopped here.")
    assert server.disconnected.wait(5), "the server still writes"
    assert visitor.answers() == ["Once upon"]
    server.answer = echo
    visitor.ask("next")
    assert server.last["messages"][1] == {"role": "assistant", "content": "Once upon"}


def test_an_edited_question_drops_later_turns_and_undo_restores_them(visitor: Visitor, server: StandIn):
    server.answer = echo
    for text in ("first", "second", "third"):
        visitor.ask(text)
    page = visitor.page
    page.get_by_label("Edit and send again").nth(1).click()
    page.get_by_label("Edit your message").fill("other")
    page.get_by_label("Edit your message").press("Enter")
    visitor.wait_for(".prose", "You said: other")
    visitor.wait_until_idle()
    assert visitor.questions() == ["first", "other"]
    assert [message["content"] for message in server.last["messages"]] == ["first", "You said: first", "other"]
    page.get_by_role("button", name="Undo").click()
    assert visitor.questions() == ["first", "second", "third"]
    page.get_by_label("Edit and send again").nth(0).click()
    page.keyboard.press("Escape")
    assert visitor.questions() == ["first", "second", "third"]


def test_answer_again_sends_the_same_messages_to_the_chosen_model(visitor: Visitor, server: StandIn):
    visitor.choose("sft/d4")
    visitor.ask("same")
    server.answer = lambda body: [f"from {body['model']}"]
    visitor.choose("sft_scienceqa/d4")
    visitor.page.get_by_label("Answer again").click()
    visitor.wait_for(".prose", "from sft_scienceqa/d4")
    visitor.wait_until_idle()
    assert visitor.questions() == ["same"]
    assert server.last["messages"] == server.requests[0][1]["messages"]


def test_tool_calls_are_shown_as_boxes_and_sent_back_as_parts(visitor: Visitor, server: StandIn):
    server.answer = lambda body: ["Three dozen are ", Tool("12*3", "36"), " **eggs**."]
    visitor.ask("How many?")
    box = visitor.page.locator("p .tool")
    assert box.inner_text() == "12*3 → 36"
    assert box.get_attribute("aria-label") == "Calculation: 12*3 gives 36"
    assert visitor.answers() == ["Three dozen are 12*3 → 36 eggs."]
    visitor.ask("Sure?")
    assert server.last["messages"][1]["content"] == [
        {"type": "text", "text": "Three dozen are "},
        {"type": "python", "text": "12*3"},
        {"type": "python_output", "text": "36"},
        {"type": "text", "text": " **eggs**."},
    ]


def test_models_are_grouped_by_stage_and_a_base_model_gets_a_completion_request(visitor: Visitor, server: StandIn):
    groups = visitor.page.eval_on_selector_all("#model-a optgroup", "all => all.map((one) => one.label)")
    assert groups == ["Base: continue a text", "Chat (SFT)", "Fine-tuned"]
    visitor.ask("something before")
    assert visitor.page.locator("#base-note").is_hidden()
    visitor.choose("base/d4")
    assert "base/d4 is a base model" in visitor.page.locator("#base-note").inner_text()
    server.answer = lambda body: [" a time\n", "there was"]
    visitor.ask("Once upon")
    path, body = server.requests[-1]
    assert path == "/v1/completions"
    assert body["prompt"] == "Once upon" and "messages" not in body
    assert visitor.answers()[-1] == "a time\nthere was"


def test_an_example_has_the_format_of_scienceqa_training(visitor: Visitor, server: StandIn):
    visitor.page.get_by_role("button", name="Physics").click()
    visitor.page.keyboard.press("Enter")
    visitor.wait_until_idle()
    asked = server.last["messages"][-1]["content"]
    question, choices = asked.split("\n\n")
    assert asked == format_question(question, [line.split(". ", 1)[1] for line in choices.splitlines()])
    assert visitor.page.evaluate("import('/models.js').then((module) => module.TUTOR_PROMPT)") == PERSONA


def test_the_tutors_system_prompt_is_shown_and_sent_in_its_chat_only(visitor: Visitor, server: StandIn):
    page = visitor.page
    note = page.locator("#system-note")
    assert note.is_hidden()
    page.get_by_role("button", name="Biology").click()
    assert note.inner_text() == f"System prompt: {PERSONA}"
    page.keyboard.press("Enter")
    visitor.wait_until_idle()
    assert server.last["messages"][0] == {"role": "system", "content": PERSONA}
    page.click("#new-chat")
    assert note.is_hidden()
    visitor.ask("no example")
    assert [message["role"] for message in server.last["messages"]] == ["user"]
    page.locator("#chats .chat").last.click()
    note.click()
    page.click("#clear-system")
    page.keyboard.press("Escape")
    visitor.ask("again")
    assert [message["role"] for message in server.last["messages"]] == ["user", "assistant", "user"]


def test_a_chat_beyond_the_context_drops_old_messages_and_shows_their_number(visitor: Visitor, server: StandIn):
    server.answer = lambda body: ["word " * 1500]
    for i in range(4):
        visitor.ask(f"question {i}")
    sent = server.last["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant"] * (len(sent) // 2) + ["user"]
    assert sum(len(message["content"]) for message in sent) < 22_000
    assert "first 2 messages were left out" in visitor.page.locator(".note").last.inner_text()


# --- side by side ----------------------------------------------------------------------------------------------------


def test_two_models_answer_side_by_side_and_can_be_stopped_separately(visitor: Visitor, server: StandIn):
    gates = {"base/d4": Gate(), "sft_scienceqa/d4": Gate()}
    server.answer = lambda body: [f"{body['model']} begins", gates[body["model"]], " and ends"]
    visitor.page.click("#try-compare")
    visitor.write("Which one?")
    visitor.wait_for(".prose", "base/d4 begins")
    visitor.wait_for(".prose", "sft_scienceqa/d4 begins")
    visitor.page.get_by_label("Stop base/d4").click()
    visitor.wait_for(".note", "Stopped here.")
    assert visitor.page.locator("[aria-busy=true]").count() == 1
    gates["sft_scienceqa/d4"].open.set()
    visitor.wait_until_idle()
    assert visitor.answers() == ["base/d4 begins", "sft_scienceqa/d4 begins and ends"]
    sent = {body["model"]: body for _, body in server.requests}
    assert sent["base/d4"]["prompt"] == "Which one?"
    assert sent["sft_scienceqa/d4"]["messages"][0] == {"role": "system", "content": PERSONA}
    left, right = (one.bounding_box() for one in visitor.page.locator(".answer").all())
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]
    visitor.page.set_viewport_size(PHONE)
    above, below = (one.bounding_box() for one in visitor.page.locator(".answer").all())
    assert above["x"] == below["x"] and above["y"] + above["height"] < below["y"]


def test_each_side_by_side_model_gets_its_own_answers_and_regenerates_separately(visitor: Visitor, server: StandIn):
    server.answer = lambda body: [f"{body['model']}, answer {len(body['messages'])}"]
    visitor.page.click("#compare")
    visitor.choose("sft/d4")
    visitor.choose("sft_scienceqa/d4", "Second model")
    visitor.ask("one")
    visitor.ask("two")
    said = {body["model"]: body["messages"][1]["content"] for _, body in server.requests[-2:]}
    assert said == {"sft/d4": "sft/d4, answer 1", "sft_scienceqa/d4": "sft_scienceqa/d4, answer 1"}
    server.answer = lambda body: ["anew"]
    visitor.page.get_by_label("Answer again with sft_scienceqa/d4").last.click()
    visitor.wait_for(".prose", "anew")
    visitor.wait_until_idle()
    assert visitor.answers()[2:] == ["sft/d4, answer 3", "anew"]


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_conversations_survive_reload_rename_and_undone_deletion(visitor: Visitor, server: StandIn):
    page = visitor.page
    visitor.ask("about cats")
    page.click("#new-chat")
    visitor.ask("about dogs")
    page.reload()
    chats = page.locator("#chats .chat")
    assert chats.all_inner_texts() == ["about dogs", "about cats"]
    assert visitor.questions() == ["about dogs"] and visitor.answers() == ["Hello there."]
    page.get_by_label("Rename “about dogs”").click()
    page.keyboard.type("Hounds")
    page.keyboard.press("Enter")
    chats.filter(has_text="about cats").click()
    assert visitor.questions() == ["about cats"]
    page.go_back()
    assert visitor.questions() == ["about dogs"]
    page.get_by_label("Delete “Hounds”").click()
    assert chats.all_inner_texts() == ["about cats"] and visitor.questions() == []
    page.get_by_role("button", name="Undo").click()
    assert visitor.questions() == ["about dogs"]
    page.reload()
    assert chats.all_inner_texts() == ["Hounds", "about cats"]


def test_a_reload_keeps_the_partial_answer(visitor: Visitor, server: StandIn):
    server.answer = lambda body: ["half an answer", Gate()]
    visitor.write("question")
    visitor.wait_for(".prose", "half an answer")
    visitor.page.reload()
    visitor.wait_for(".note", "Stopped here.")
    assert visitor.answers() == ["half an answer"]
    server.answer = echo
    visitor.page.get_by_label("Answer again").click()
    visitor.wait_for(".prose", "You said: question")


def test_conversations_are_shared_between_tabs(visitor: Visitor):
    other = visitor.open()
    visitor.ask("seen by both")
    other.locator("#chats .chat").filter(has_text="seen by both").click()
    other.locator(".prose").filter(has_text="Hello there.").wait_for()


def test_invalid_local_storage_is_ignored(visitor: Visitor):
    visitor.ask("sane")
    wrong = [
        "{",
        "null",
        "[]",
        "7",
        '{"turns": 3}',
        '{"turns": [null, {"question": 1}, {"question": "x", "answers": [null]}]}',
    ]
    for i, text in enumerate(wrong):
        visitor.page.evaluate("([key, text]) => localStorage.setItem(key, text)", [f"nanochat-pl/chat/bad{i}", text])
    odd = {"temperature": "hot", "topK": [], "models": "x", "system": 5, "compare": None, "topP": None}
    visitor.page.evaluate("(odd) => localStorage.setItem('nanochat-pl/settings', odd)", json.dumps(odd))
    visitor.page.reload()
    visitor.ask("still sane")
    assert visitor.questions()[-1] == "still sane"
    for i in range(visitor.page.locator("#chats .chat").count()):
        visitor.page.locator("#chats .chat").nth(i).click()


def test_full_local_storage_is_reported_and_the_chat_continues(visitor: Visitor):
    visitor.page.evaluate(
        """() => {
          for (let size = 2 ** 22; size >= 1; size /= 2) {
            try { localStorage.setItem("filler" + size, "x".repeat(size)); } catch { /* half of it, then */ }
          }
        }"""
    )
    visitor.ask("does this work?")
    assert visitor.answers() == ["Hello there."]
    assert "storage is full" in visitor.page.locator("#toasts").inner_text()
    visitor.page.evaluate("localStorage.clear()")


# --- trouble ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ([Failure(429, "queue full", {"Retry-After": "3"})], "The server is busy. Try again in 3 s."),
        ([Failure(400, "The prompt is too long.")], "The prompt is too long."),
        ([Failure(502, "")], "The server answered with status 502."),
        (["half", Failure(500, "The engine failed.")], "The engine failed."),
        (["half", Break()], "The connection broke off before the answer was complete."),
    ],
)
def test_an_error_is_shown_in_the_answer_and_try_again_works(
    visitor: Visitor, server: StandIn, script: list[Any], said: str
):
    server.answer = lambda body: script
    visitor.ask("question")
    trouble = visitor.page.locator(".answer .trouble")
    assert said in trouble.inner_text()
    server.answer = echo
    trouble.get_by_role("button", name="Try again").click()
    visitor.wait_for(".prose", "You said: question")
    visitor.wait_until_idle()
    assert trouble.is_hidden()
    assert server.last["messages"] == [{"role": "user", "content": "question"}]


def test_an_unreachable_server_is_reported_and_retry_reconnects(visitor: Visitor, server: StandIn):
    server.down = True
    visitor.ask("anyone?")
    assert "cannot be reached" in visitor.page.locator(".answer .trouble").inner_text()
    visitor.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    visitor.page.locator("#connection").wait_for()
    assert "cannot be reached" in visitor.page.locator("#connection").inner_text()
    server.down = False
    visitor.page.click("#connection-retry")
    visitor.page.locator("#connection").wait_for(state="hidden")
    visitor.page.get_by_role("button", name="Try again").click()
    visitor.wait_for(".prose", "Hello there.")


def test_an_answer_at_max_tokens_is_marked_as_cut_off(visitor: Visitor, server: StandIn):
    server.answer = lambda body: ["on ", "and ", "on", Length()]
    visitor.ask("go")
    assert "Cut off after 3 tokens. Settings allow longer answers" in visitor.page.locator(".note").inner_text()


def test_an_answer_at_the_end_of_the_context_is_marked_without_pointing_to_settings(visitor: Visitor, server: StandIn):
    server.answer = lambda body: ["on "] * 503 + [Length()]  # and nine of the prompt
    visitor.ask("go")
    said = visitor.page.locator(".note").inner_text()
    assert "Cut off after 503 tokens: the model's context is full." in said and "Settings" not in said


def test_suggestions_are_those_of_the_chosen_model(visitor: Visitor, server: StandIn):
    page = visitor.page
    visitor.choose("sft/d4")
    assert page.locator("#examples .example small").all_inner_texts() == ["Physics", "Biology", "Chemistry"]
    assert "begin with one of these" in page.locator("#welcome").inner_text()
    visitor.choose("base/d4")
    assert page.locator("#examples .example").count() == 0
    assert "begin with" not in page.locator("#welcome").inner_text()
    visitor.choose("sft/d4")
    page.get_by_role("button", name="Chemistry").click()  # it comes without a system prompt
    assert page.locator("#system-note").is_hidden()


def test_the_api_key_is_requested_once_and_kept_for_the_tab_only(browser: Any, server: StandIn):
    server.api_key = "secret"
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(server.url)
    page.get_by_role("textbox", name="API key").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("The key was not accepted.").wait_for()
    page.get_by_role("textbox", name="API key").fill("secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#model-a option[value]", state="attached")
    page.reload()
    page.wait_for_selector("#model-a option[value]", state="attached")
    assert page.locator("#key-dialog").is_hidden()
    assert "secret" not in json.dumps(page.evaluate("({...localStorage})"))
    context.close()


# --- the real server --------------------------------------------------------------------------------------------------


def test_the_page_works_with_the_real_server(browser: Any):
    serving = pytest.importorskip("tests.integration.serving")
    tokenizer = serving.tiny_tokenizer()
    models = [serving.served(tokenizer, "base/tiny"), serving.served(tokenizer, "sft_scienceqa/tiny")]
    with serving.running(*models) as url:
        visitor = Visitor(browser, f"{url}/")
        page = visitor.page
        page.click("#settings-open")
        page.fill("#maxTokens", "40")
        page.fill("#temperature", "0")
        page.keyboard.press("Escape")
        page.click("#try-compare")
        visitor.ask("where does the river run?")
        assert [len(text) > 10 for text in visitor.answers()] == [True, True]
        assert page.locator(".note").all_inner_texts() == ["Cut off after 40 tokens. " + LONGER] * 2
        assert all(text.startswith("40 tokens · ") for text in page.locator(".statistics").all_inner_texts())
        page.click("#compare")
        visitor.choose("sft_scienceqa/tiny")
        for text in ("and then? " * 12, "and the rain? " * 12):
            visitor.ask(text)
        assert "messages were left out" in page.locator(".note").last.inner_text()
        visitor.ask("and the rain? " * 80)
        assert "its beginning was left out" in page.locator(".note").last.inner_text()
        serving.engine_of(models[1]).script = (
            tokenizer.encode("It is ")
            + [
                tokenizer.special_id("<|python_start|>"),
                *tokenizer.encode("12*3"),
                tokenizer.special_id("<|python_end|>"),
            ]
            + [0] * 6
            + tokenizer.encode(" eggs" * 20)
        )
        visitor.ask("what is 12 * 3?")
        assert page.locator(".tool").last.inner_text() == "12*3 → 36"
        visitor.ask("sure?")
        assert page.locator(".trouble:visible").count() == 0
        serving.engine_of(models[1]).step_s = 0.2
        visitor.write("slowly now")
        page.locator(".answer.running").wait_for()
        serving.wait_until(lambda: models[1].worker.state().active == 1)
        page.keyboard.press("Escape")
        serving.wait_until(lambda: models[1].worker.state().active == 0)
        visitor.context.close()
        assert visitor.complaints == [] and visitor.foreign == []
