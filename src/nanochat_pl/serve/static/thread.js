// The displayed conversation: questions, answers side by side or alone, and the actions on each.

import { hasContent, statistics } from "./answering.js";
import { copyText, h, icon, iconButton } from "./dom.js";
import { MarkdownView, plainText, visible } from "./markdown.js";
import { stageClass, stageName } from "./models.js";

const NEAR_END_PX = 80;

/** Shows one conversation and reports the user's actions on it. */
export class Thread {
  /**
   * @param {Element} scroller the scrolling element
   * @param {Element} element the parent of the turns
   * @param {{edit: (turn: number, text: string) => void, again: (turn: number, column: number) => void,
   *   stop: (answer: Object) => void}} actions
   */
  constructor(scroller, element, actions) {
    this.scroller = scroller;
    this.element = element;
    this.actions = actions;
    this.views = new Map();
    this.dirty = new Set();
    this.frame = 0;
  }

  /** Show a conversation from its beginning to its end. */
  show(chat) {
    this.views.clear();
    this.dirty.clear();
    this.element.replaceChildren(...chat.turns.map((turn, t) => this.#turn(turn, t)));
    this.scrollToEnd();
  }

  /** Show the changes of an answer, at most once a frame. */
  changed(answer) {
    if (!this.views.has(answer)) return;
    if (answer.status !== "running") {
      this.dirty.delete(answer);
      this.#keepingTheEnd(() => this.views.get(answer).update());
      return;
    }
    this.dirty.add(answer);
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.#keepingTheEnd(() => this.dirty.forEach((one) => this.views.get(one)?.update()));
      this.dirty.clear();
    });
  }

  /** Enable or disable editing and asking again; they are disabled while an answer is generated. */
  setBusy(busy) {
    for (const button of this.element.querySelectorAll("[data-when-idle]")) button.disabled = busy;
  }

  scrollToEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #keepingTheEnd(change) {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const atEnd = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    change();
    if (atEnd) this.scrollToEnd();
  }

  #turn(turn, t) {
    const answers = turn.answers.map((answer, column) => {
      const view = new AnswerView(answer, {
        again: () => this.actions.again(t, column),
        stop: () => this.actions.stop(answer),
      });
      this.views.set(answer, view);
      return view.element;
    });
    return h(
      "section.turn",
      { "aria-label": `Question ${t + 1}` },
      this.#question(turn, t),
      h(`div.answers${answers.length > 1 ? ".two" : ""}`, {}, answers),
    );
  }

  #question(turn, t) {
    const words = h("div.bubble", { dir: "auto", text: visible(turn.question) });
    if (turn.question.length > 1500 || turn.question.split("\n").length > 20) {
      for (const [name, value] of Object.entries({ tabindex: "0", role: "group", "aria-label": "Long question" })) {
        words.setAttribute(name, value);
      }
    }
    const cancel = () => {
      box.replaceChildren(...whole);
      pencil.focus();
    };
    const edit = () => {
      box.replaceChildren(heading, this.#editor(turn, t, cancel));
      box.querySelector("textarea").focus();
    };
    const pencil = iconButton("edit", "Edit and send again", edit, { "data-when-idle": true });
    const heading = h("h2.visually-hidden", { text: "You" });
    const whole = [heading, words, h("div.actions", {}, copyButton("Copy question", () => turn.question), pencil)];
    const box = h("div.question", {}, ...whole);
    return box;
  }

  #editor(turn, t, cancel) {
    const rows = Math.min(12, turn.question.split("\n").length + 1);
    const field = h("textarea", { "aria-label": "Edit your message", rows });
    field.value = turn.question;
    const send = () => field.value.trim() && this.actions.edit(t, field.value.trim());
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      } else if (isSend(event)) {
        event.preventDefault();
        send();
      }
    });
    return h(
      "div.editor",
      {},
      field,
      h(
        "div.row",
        {},
        h("p.hint", { text: "What follows this message is replaced." }),
        h("button.button", { type: "button", text: "Cancel", onclick: cancel }),
        h("button.button.primary", { type: "button", text: "Send", onclick: send }),
      ),
    );
  }
}

/** Return whether a key press means "send": Enter without Shift, and not while an input method composes a character. */
export function isSend(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

class AnswerView {
  constructor(answer, { again, stop }) {
    this.answer = answer;
    const badge = h(`span.badge.${stageClass(answer.stage)}`, { text: stageName(answer.stage) });
    const name = h("h3.model", { text: answer.model || "Model", dir: "auto" });
    const stopping = { type: "button", "aria-label": `Stop ${answer.model}`, onclick: stop };
    this.stop = h("button.text-button.stop", stopping, icon("stop"), "Stop");
    this.body = h("div.prose", { dir: "auto" });
    this.markdown = new MarkdownView(this.body);
    this.waiting = h("p.waiting", { "aria-label": "Waiting for the first word" }, h("span"), h("span"), h("span"));
    this.note = h("p.note");
    this.trouble = h(
      "div.trouble",
      {},
      icon("warning"),
      (this.reason = h("p")),
      h("button.button", { type: "button", onclick: again, "data-when-idle": true, text: "Try again" }),
    );
    this.count = h("span.statistics");
    this.foot = h(
      "footer",
      {},
      copyButton(`Copy answer of ${answer.model}`, () => plainText(answer.parts)),
      iconButton("again", `Answer again with ${answer.model}`, again, { "data-when-idle": true }),
      this.count,
    );
    this.element = h(
      "article.answer",
      { "aria-label": `Answer of ${answer.model}` },
      h("header", {}, name, badge, this.stop),
      this.waiting,
      this.body,
      this.note,
      this.trouble,
      this.foot,
    );
    this.update();
  }

  update() {
    const { answer } = this;
    const running = answer.status === "running";
    const words = hasContent(answer);
    this.element.setAttribute("aria-busy", String(running));
    this.element.classList.toggle("running", running);
    this.markdown.update(answer.parts);
    this.stop.hidden = !running;
    this.waiting.hidden = !running || words;
    this.foot.hidden = running;
    this.foot.firstElementChild.hidden = !words;
    this.count.textContent = statistics(answer);
    this.trouble.hidden = answer.status !== "failed";
    this.reason.textContent = answer.error ?? "";
    this.note.textContent = noteOn(answer, words);
    this.note.hidden = this.note.textContent === "";
  }
}

function noteOn(answer, words) {
  const said = [];
  if (answer.dropped) {
    said.push(`The chat is longer than the model can read: its first ${answer.dropped} messages were left out.`);
  }
  if (answer.truncated) said.push("Your message is longer than the model can read: its beginning was left out.");
  return [...said, endOf(answer, words)].filter(Boolean).join(" ");
}

function endOf(answer, words) {
  if (answer.status === "stopped") return words ? "Stopped here." : "Stopped before the first word.";
  if (answer.status !== "done") return "";
  if (answer.finish === "length") {
    const limit = answer.tokens ?? answer.maxTokens;
    const tokens = `${limit} token${limit === 1 ? "" : "s"}`;
    if (answer.full) return `Cut off after ${tokens}: the model's context is full.`;
    return `Cut off after ${tokens}. Settings allow longer answers, as far as the model's context reaches.`;
  }
  return words ? "" : "The model ended its answer without a word.";
}

function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const copied = await copyText(text());
    button.classList.toggle("done", copied);
    button.title = copied ? "Copied" : "This browser does not allow copying";
    setTimeout(() => (button.classList.remove("done"), (button.title = label)), 2000);
  });
  return button;
}
