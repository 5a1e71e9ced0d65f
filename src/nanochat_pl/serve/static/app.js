// The page: it connects the parts to the user's actions. Its state is a conversation, the models, and running answers.

import { isBase, listModels, onKeyNeeded } from "./api.js";
import { messagesFor, runAnswer } from "./answering.js";
import { askForKey, Composer } from "./composer.js";
import { announce, h, toast } from "./dom.js";
import { plainText, visible } from "./markdown.js";
import { fillSelect, isTuned, preferred, TUTOR_PROMPT } from "./models.js";
import { SettingsSheet } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { newAnswer, Store } from "./store.js";
import { Thread } from "./thread.js";

const $ = (id) => document.getElementById(id);
const TITLE_CHARS = 60;
const SPOKEN_CHARS = 2000;

const selects = [$("model-a"), $("model-b")];
const store = new Store((message) => toast(message));
const running = new Map();
let models = [];
let chat = null;

const thread = new Thread($("scroller"), $("thread"), { edit, again, stop });
const composer = new Composer(ask);
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
  if (!models.length || busy()) return false;
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
  const onChange = (one) => thread.changed(one);
  runAnswer(answer, model, request, { ...store.settings }, control.signal, onChange, onKeep).then(() => {
    running.delete(answer);
    if (asked !== chat) return;
    showState();
    announce(spoken(answer));
  });
}

function spoken(answer) {
  if (answer.status === "failed") return `${answer.model} failed: ${answer.error}`;
  const who = answer.status === "stopped" ? `${answer.model}, stopped` : answer.model;
  return `${who}: ${plainText(answer.parts)}`.slice(0, SPOKEN_CHARS);
}

async function edit(t, text) {
  if (busy()) return;
  const before = chat.turns;
  const edited = chat;
  chat.turns = before.slice(0, t);
  if (await ask(text)) offerUndo(edited, before, before.length - t - 1);
  else chat.turns = before;
  composer.focus();
}

function again(t, column) {
  if (busy()) return;
  const turn = chat.turns[t];
  const before = chat.turns.map((one) => ({ ...one, answers: [...one.answers] }));
  const old = turn.answers[column];
  const chosen = columns();
  // A turn with the current number of models uses the chosen ones; any other turn is repeated with its own.
  const own = models.find((model) => model.id === old.model);
  const model = chosen.length === turn.answers.length ? chosen[column] : own;
  if (!model) {
    toast(`${old.model || "That model"} is not served now. Choose another model and edit the question.`);
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
  composer.focus();
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
  if (answer.status === "running") composer.focus();
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
  composer.focus();
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
  showSystem();
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
    const first = preferred(models, chat.models[0]);
    chat.models = [first, preferred(models, chat.models[1], first)];
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
  // If one of two models is a base model, the other's questions suit both better than texts to continue.
  const offered = [...chosen.filter((model) => !isBase(model)), ...chosen].map((model) => model.suggestions);
  showSuggestions(offered.find((suggestions) => suggestions.length) ?? []);
  const pair = tutorPair();
  $("try-compare").hidden = pair === null || chat.compare;
}

/** A base model (or any other) and a fine-tuned one to compare side by side; null if there is no such pair. */
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
  if ("system" in changes) setSystem(changes.system);
}

function setSystem(text) {
  chat.system = text;
  if (store.chats.has(chat.id)) store.save(chat);
  showSystem();
}

function showSystem() {
  sheet.currentSystem = chat.system;
  $("system-note").hidden = chat.system.trim() === "";
  $("system-note").textContent = `System prompt: ${visible(chat.system.trim())}`;
}

/** Ask a fine-tuned model as in its training, unless the user changes it; for this chat only. */
function asTutor() {
  const tuned = columns().some((model) => model && isTuned(model));
  if (tuned && !chat.turns.length && !chat.system.trim()) setSystem(TUTOR_PROMPT);
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

/** Offer the suggestions of the chosen models, if there are any. */
function showSuggestions(suggestions) {
  $("or-example").hidden = suggestions.length === 0;
  $("examples").replaceChildren(
    ...suggestions.map(({ topic, title, text, system }) => {
      const take = () => {
        if (typeof system === "string" && !chat.turns.length && !chat.system.trim()) setSystem(system);
        composer.write(text);
      };
      const words = [h("small", { text: topic }), h("span", { text: title })];
      return h("button.example", { type: "button", onclick: take }, words);
    }),
  );
}

// --- wiring -----------------------------------------------------------------------------------------------------------

$("stop").addEventListener("click", stopAll);
$("system-note").addEventListener("click", () => sheet.open());
$("new-chat").addEventListener("click", newChat);
$("new-chat-top").addEventListener("click", newChat);
$("connection-retry").addEventListener("click", loadModels);
$("compare").addEventListener("click", () => choose({ compare: !chat.compare }));
$("try-compare").addEventListener("click", () => {
  choose({ compare: true, models: tutorPair() });
  asTutor();
  composer.focus();
});
for (const select of selects) {
  select.addEventListener("change", () => choose({ models: selects.map((one) => one.value) }));
}
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
  // Otherwise the connection that the closing browser breaks would be saved as a failure of the server.
  for (const [answer, { control, asked }] of running) {
    answer.status = "stopped";
    control.abort();
    if (store.chats.has(asked.id)) store.save(asked);
  }
});
document.addEventListener("visibilitychange", () => !document.hidden && !busy() && loadModels());

onKeyNeeded(askForKey);
openChat(location.hash.slice(1));
composer.focus();
loadModels();
