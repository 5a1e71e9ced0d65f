// Conversations and settings, kept in this browser only. Everything is held in memory and written through to
// localStorage; if that is full, switched off or invalid, the page goes on working and shows a message.

const PREFIX = "nanochat-pl/";
const CHAT = `${PREFIX}chat/`;
const SETTINGS = `${PREFIX}settings`;
const PART_TYPES = new Set(["text", "python", "python_output"]);

/** Settings of a first visit. null for a number = the server's default. */
export const DEFAULTS = Object.freeze({
  temperature: 0.6,
  topP: 1,
  topK: 50,
  repetitionPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  maxTokens: 256,
  seed: null,
  system: "",
  models: ["", ""],
  compare: false,
});

/**
 * A conversation: `{id, title, renamed, system, models, compare, updated, turns}`. A turn is a question and its answers,
 * one or two of them: `{question, answers: [{model, stage, parts, status, …}]}` with status running | done | stopped |
 * failed.
 */
export class Store {
  /** @param {(message: string) => void} onTrouble called once, with the reason, when nothing more can be kept */
  constructor(onTrouble) {
    this.onTrouble = onTrouble;
    this.troubled = false;
    this.chats = new Map();
    try {
      this.storage = window.localStorage;
    } catch {
      this.storage = null;
    }
    this.settings = { ...DEFAULTS, ...tidySettings(this.#read(SETTINGS)) };
    for (const key of this.#keys()) this.#load(key.slice(CHAT.length));
  }

  /** List the conversations, the latest first. */
  list() {
    return [...this.chats.values()].sort((a, b) => b.updated - a.updated);
  }

  /** Make a conversation; it is kept after its first `save`. */
  create() {
    const bytes = crypto.getRandomValues(new Uint8Array(8));
    const id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    const { system, models, compare } = this.settings;
    const updated = Date.now();
    return { id, title: "New chat", renamed: false, system, models: [...models], compare, updated, turns: [] };
  }

  save(chat) {
    this.chats.set(chat.id, chat);
    this.#write(CHAT + chat.id, chat);
  }

  remove(id) {
    this.chats.delete(id);
    try {
      this.storage?.removeItem(CHAT + id);
      this.troubled = false;
    } catch {
      // Storage that cannot be written holds no copy to remove.
    }
  }

  saveSettings(changes) {
    Object.assign(this.settings, changes);
    this.#write(SETTINGS, this.settings);
  }

  /** Read what another tab wrote: call with the key of a `storage` event; returns the conversation's id or null. */
  refresh(key) {
    if (!key?.startsWith(CHAT)) return null;
    const id = key.slice(CHAT.length);
    this.chats.delete(id);
    this.#load(id);
    return id;
  }

  #keys() {
    try {
      return Object.keys(this.storage ?? {}).filter((key) => key.startsWith(CHAT));
    } catch {
      return [];
    }
  }

  #load(id) {
    const chat = tidyChat(this.#read(CHAT + id), id);
    if (chat) this.chats.set(id, chat);
  }

  #read(key) {
    try {
      return JSON.parse(this.storage?.getItem(key) ?? "null");
    } catch {
      return null;
    }
  }

  #write(key, value) {
    try {
      if (this.storage === null) throw new Error("switched off");
      this.storage.setItem(key, JSON.stringify(value));
      this.troubled = false;
    } catch (error) {
      if (this.troubled) return;
      this.troubled = true;
      const full = error?.name === "QuotaExceededError";
      this.onTrouble(
        full
          ? "This browser's storage is full: what you write now is lost when the page closes. Delete old chats."
          : "This browser keeps no data for this page: chats are lost when it closes.",
      );
    }
  }
}

function tidySettings(found) {
  if (typeof found !== "object" || found === null) return {};
  const kept = {};
  for (const [name, value] of Object.entries(DEFAULTS)) {
    const same = typeof found[name] === typeof value && Array.isArray(found[name]) === Array.isArray(value);
    const optional = (name === "topK" || name === "seed") && (found[name] === null || Number.isInteger(found[name]));
    if (optional || (same && found[name] !== null && value !== null)) kept[name] = found[name];
  }
  return kept;
}

function tidyChat(found, id) {
  if (typeof found !== "object" || found === null || !Array.isArray(found.turns)) return null;
  const turns = found.turns
    .filter((turn) => typeof turn?.question === "string" && Array.isArray(turn.answers))
    .map((turn) => ({ question: turn.question, answers: turn.answers.slice(0, 2).map(tidyAnswer) }));
  return {
    id,
    title: String(found.title ?? "Chat"),
    renamed: found.renamed === true,
    system: String(found.system ?? ""),
    models: [0, 1].map((column) => String(found.models?.[column] ?? "")),
    compare: found.compare === true,
    updated: Number(found.updated) || 0,
    turns,
  };
}

function tidyAnswer(found) {
  const parts = Array.isArray(found?.parts) ? found.parts : [];
  const answer = newAnswer({ id: String(found?.model ?? ""), stage: String(found?.stage ?? "") });
  Object.assign(answer, typeof found === "object" ? found : {});
  answer.parts = parts.filter((part) => typeof part?.text === "string" && PART_TYPES.has(part.type));
  // The page closed while it was generated: keep the partial answer.
  if (answer.status === "running") answer.status = "stopped";
  return answer;
}

/** Make an empty answer for a request. Times are in seconds, `tokens` is null until the server counts them. */
export function newAnswer(model) {
  return {
    model: model.id,
    stage: model.stage,
    parts: [],
    status: "running",
    finish: null,
    error: null,
    retryAfter: null,
    tokens: null,
    pieces: 0,
    wait: null,
    seconds: null,
    maxTokens: null,
    dropped: 0,
    truncated: false,
    full: false,
  };
}
