// The page: what the user does, put together from the parts. State is a conversation, the models, and what is running.

import { isBase, listModels, onKeyNeeded } from "./api.js";
import { messagesFor, runAnswer } from "./answering.js";
import { announce, h, toast } from "./dom.js";
import { EXAMPLES, TUTOR_PROMPT } from "./examples.js";
import { plainText } from "./markdown.js";
import { fillSelect, isTuned, preferred } from "./models.js";
import { SettingsSheet } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { newAnswer, Store } from "./store.js";
import { isSend, Thread } from "./thread.js";

const $ = (id) => document.getElementById(id);
const TITLE_CHARS = 60;
const SPOKEN_CHARS = 2000;

const composer = $("composer");
const question = $("question");
const selects = [$("model-a"), $("model-b")];
const store = new Store((message) => toast(message));
const running = new Map();
let models = [];
let chat = null;

const thread = new Thread($("scroller"), $("thread"), { edit, again, stop });
const sidebar = new Sidebar({ open: openChat, rename, remove });
const sheet = new SettingsSheet({ store, changed: takeSettings });

// --- asking -----------------------------------------------------------------------------------------------------------

function columns() {
  const ids = chat.compare ? chat.models : chat.models.slice(0, 1);
  return ids.map((id) => models.find((model) => model.id === id));
}

async function ask(text) {
  if (busy() || !text) return false;
  if (!models.length) await loadModels();
  if (!models.length) return false;
  const chosen = columns();
  const turn = { question: text, answers: chosen.map(newAnswer) };
  if (!chat.turns.length && !chat.renamed) chat.title = titleOf(text);
  chat.turns.push(turn);
  chat.updated = Date.now();
  keep(chat);
  if (location.hash.slice(1) !== chat.id) history.replaceState(null, "", `#${chat.id}`);
  show();
  for (const [column, model] of chosen.entries()) start(chat, chat.turns.length - 1, column, model);
  return true;
}

function start(asked, t, column, model) {
  const answer = asked.turns[t].answers[column];
  const control = new AbortController();
  running.set(answer, { control, asked });
  showState();
  const { question: text } = asked.turns[t];
  const request = { ...messagesFor(asked, t, column), question: text };
  const onKeep = () => store.chats.has(asked.id) && store.save(asked);
  runAnswer(answer, model, request, { ...store.settings }, control.signal, (one) => thread.changed(one), onKeep).then(() => {
    running.delete(answer);
    if (asked !== chat) return;
    showState();
    announce(spoken(answer));
  });
}

function spoken(answer) {
  if (answer.status === "failed") return `${answer.model} failed: ${answer.error}`;
  return `${answer.model}${answer.status === "stopped" ? ", stopped" : ""}: ${plainText(answer.parts)}`.slice(0, SPOKEN_CHARS);
}

async function edit(t, text) {
  if (busy()) return;
  const before = chat.turns;
  const edited = chat;
  chat.turns = before.slice(0, t);
  if (t === 0 && !chat.renamed) chat.title = titleOf(text);
  if (await ask(text)) offerUndo(edited, before, before.length - t - 1);
  else chat.turns = before;
  question.focus();
}

function again(t, column) {
  if (busy()) return;
  const turn = chat.turns[t];
  const before = chat.turns.map((one) => ({ ...one, answers: [...one.answers] }));
  const old = turn.answers[column];
  const chosen = columns();
  // A turn asked with as many models as are chosen now follows the choice; another is repeated as it was.
  const own = models.find((model) => model.id === old.model);
  const model = chosen.length === turn.answers.length ? chosen[column] : own;
  if (!model) {
    toast(models.length ? `${old.model} is not served any more. Choose another model and edit the question.` : "No model is served.");
    if (!models.length) loadModels();
    return;
  }
  const removed = chat.turns.length - t - 1;
  chat.turns.length = t + 1;
  turn.answers[column] = newAnswer(model);
  keep(chat);
  show();
  start(chat, t, column, model);
  offerUndo(chat, before, removed);
  question.focus();
}

function offerUndo(changed, before, removed) {
  if (removed <= 0) return;
  const run = () => {
    for (const { answers } of changed.turns) answers.forEach(stop);
    changed.turns = before;
    keep(changed);
    if (changed === chat) show();
  };
  toast(`${removed} later ${removed === 1 ? "question was" : "questions were"} removed.`, { label: "Undo", run });
}

function busy() {
  return chat.turns.some(({ answers }) => answers.some((answer) => running.has(answer)));
}

function stop(answer) {
  running.get(answer)?.control.abort();
  if (answer.status === "running") question.focus();
}

function stopAll() {
  for (const { answers } of chat.turns) answers.forEach(stop);
}

// --- conversations ----------------------------------------------------------------------------------------------------

function titleOf(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length > TITLE_CHARS ? `${line.slice(0, TITLE_CHARS - 1)}…` : line;
}

function keep(changed) {
  store.save(changed);
  sidebar.show(store.list(), chat.id);
}

function newChat() {
  openChat(null);
  question.focus();
}

function openChat(id) {
  chat = store.chats.get(id) ?? store.create();
  const hash = store.chats.has(chat.id) ? `#${chat.id}` : location.pathname;
  if (location.hash.slice(1) !== (store.chats.has(chat.id) ? chat.id : "")) history.pushState(null, "", hash);
  if (sidebar.isOpen) sidebar.setOpen(false);
  show();
}

function rename(id, title) {
  const renamed = store.chats.get(id);
  if (renamed && renamed.title !== title) Object.assign(renamed, { title, renamed: true });
  if (renamed) store.save(renamed);
  show();
}

function remove(id) {
  const gone = store.chats.get(id);
  if (!gone) return;
  for (const { answers } of gone.turns) answers.forEach(stop);
  store.remove(id);
  if (chat.id === id) openChat(null);
  else sidebar.show(store.list(), chat.id);
  toast(`“${gone.title}” was deleted.`, { label: "Undo", run: () => (store.save(gone), openChat(gone.id)) });
}

// --- what is shown ----------------------------------------------------------------------------------------------------

function show() {
  document.title = chat.turns.length ? `${chat.title} · nanochat` : "nanochat";
  sheet.currentSystem = chat.system;
  thread.show(chat);
  $("welcome").hidden = chat.turns.length > 0;
  sidebar.show(store.list(), chat.id);
  showModels();
  showState();
}

function showState() {
  const now = busy();
  $("send").hidden = now;
  $("stop").hidden = !now;
  thread.setBusy(now);
}

function showModels() {
  if (models.length) {
    chat.models = [preferred(models, chat.models[0]), preferred(models, chat.models[1], preferred(models, chat.models[0]))];
  }
  selects.forEach((select, column) => fillSelect(select, models, chat.models[column]));
  $("compare").setAttribute("aria-pressed", String(chat.compare));
  selects[1].hidden = !chat.compare;
  document.body.classList.toggle("comparing", chat.compare);
  const chosen = columns().filter(Boolean);
  const bases = chosen.filter(isBase).map((model) => model.id);
  $("base-note").hidden = bases.length === 0;
  $("base-note").textContent =
    `${[...new Set(bases)].join(" and ")} is a base model: it goes on with your text alone, ` +
    "without the system prompt and earlier messages.";
  const contexts = chosen.map((model) => model.contextLength).filter((length) => length !== null);
  sheet.setContext(contexts.length ? Math.min(...contexts) : null);
  const pair = tutorPair();
  $("try-compare").hidden = pair === null || chat.compare;
}

/** A base model (or any other) and a fine-tuned one, to be asked side by side; null where there is no such pair. */
function tutorPair() {
  const tuned = models.find(isTuned);
  const other = models.find(isBase) ?? models.find((model) => model !== tuned);
  return tuned && other ? [other.id, tuned.id] : null;
}

function choose(changes) {
  Object.assign(chat, changes);
  store.saveSettings(changes);
  if (store.chats.has(chat.id)) store.save(chat);
  showModels();
}

function takeSettings(changes) {
  store.saveSettings(changes);
  if (!("system" in changes)) return;
  chat.system = sheet.currentSystem = changes.system;
  if (store.chats.has(chat.id)) store.save(chat);
}

async function loadModels() {
  try {
    models = await listModels();
    $("connection").hidden = models.length > 0;
    $("connection-reason").textContent = models.length ? "" : "The server has no model loaded.";
  } catch (error) {
    $("connection").hidden = false;
    $("connection-reason").textContent = error.message;
  }
  showModels();
}

function askForKey(refused) {
  const dialog = $("key-dialog");
  const field = dialog.querySelector("input");
  $("key-refused").hidden = !refused;
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const closed = () => resolve(dialog.returnValue === "use" && field.value.trim() ? field.value.trim() : null);
    dialog.addEventListener("close", closed, { once: true });
  });
}

function fitQuestion() {
  question.style.height = "auto";
  question.style.height = `${Math.min(question.scrollHeight + 2, innerHeight * 0.4)}px`;
}

function setQuestion(text) {
  question.value = text;
  fitQuestion();
  question.focus();
}

// --- wiring -----------------------------------------------------------------------------------------------------------

composer.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (await ask(text)) setQuestion("");
});
question.addEventListener("input", fitQuestion);
question.addEventListener("keydown", (event) => {
  if (!isSend(event)) return;
  event.preventDefault();
  composer.requestSubmit();
});
$("stop").addEventListener("click", stopAll);
$("new-chat").addEventListener("click", newChat);
$("new-chat-top").addEventListener("click", newChat);
$("connection-retry").addEventListener("click", loadModels);
$("compare").addEventListener("click", () => choose({ compare: !chat.compare }));
$("try-compare").addEventListener("click", () => {
  choose({ compare: true, models: tutorPair() });
  takeSettings({ system: TUTOR_PROMPT });
  question.focus();
});
for (const select of selects) {
  select.addEventListener("change", () => choose({ models: selects.map((one) => one.value) }));
}
$("theme").addEventListener("click", () => {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const now = document.documentElement.dataset.theme ?? system;
  const next = now === "dark" ? "light" : "dark";
  // Back at the system's own theme the page follows it again.
  if (next === system) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    if (next === system) localStorage.removeItem("nanochat-pl/theme");
    else localStorage.setItem("nanochat-pl/theme", next);
  } catch {
    // Without storage the choice holds until the page closes.
  }
});
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    newChat();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (sidebar.isOpen) sidebar.setOpen(false);
    else if (busy()) stopAll();
  }
});
addEventListener("popstate", () => openChat(location.hash.slice(1)));
addEventListener("hashchange", () => location.hash.slice(1) !== chat.id && openChat(location.hash.slice(1)));
addEventListener("storage", (event) => {
  const id = event.key?.endsWith(`/${chat.id}`) && busy() ? null : store.refresh(event.key);
  if (id === chat.id && store.chats.has(id)) openChat(id);
  else sidebar.show(store.list(), chat.id);
});
addEventListener("pagehide", () => {
  // Else what the closing browser does to the connection would be kept as a failure of the server.
  for (const [answer, { control, asked }] of running) {
    answer.status = "stopped";
    control.abort();
    if (store.chats.has(asked.id)) store.save(asked);
  }
});
document.addEventListener("visibilitychange", () => !document.hidden && !busy() && loadModels());

$("examples").append(
  ...EXAMPLES.map(({ subject, title, text }) =>
    h("button.example", { type: "button", onclick: () => setQuestion(text) }, h("small", { text: subject }), h("span", { text: title })),
  ),
);
onKeyNeeded(askForKey);
openChat(location.hash.slice(1));
question.focus();
loadModels();
