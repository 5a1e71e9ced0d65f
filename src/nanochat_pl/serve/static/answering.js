// One answer from the question to its last token: the request to a model, and its response.

import { ApiError, isBase, streamAnswer } from "./api.js";

const SAVE_EVERY_MS = 1000;
// A few tokens that arrive together do not measure the speed.
const MEASURABLE_S = 0.05;
// Far more than the context of any model here, and less than a server's limits, so that a chat can go on for ever.
const MAX_HISTORY_CHARS = 20_000;
const MAX_HISTORY_MESSAGES = 200;

/**
 * List the messages of one column of a conversation.
 *
 * Side by side, each model sees its own earlier answers, and the other's if it has none. Questions without an answer
 * are left out, so that roles alternate. The oldest turns of a very long chat are left out; the server drops those that
 * are still too long for its model.
 *
 * @param {Object} chat
 * @param {number} turn index of the turn to answer
 * @param {number} column 0, or 1 for the second model
 * @returns {{messages: Array, omitted: number}} and how many messages were left out because of their length
 */
export function messagesFor(chat, turn, column) {
  const turns = [];
  let omitted = 0;
  let chars = 0;
  for (const { question, answers } of chat.turns.slice(0, turn).reverse()) {
    const answer = [answers[column], ...answers].find((one) => one && hasContent(one));
    if (!answer) continue;
    chars += question.length + answer.parts.reduce((sum, part) => sum + part.text.length, 0);
    if (chars > MAX_HISTORY_CHARS || turns.length * 2 >= MAX_HISTORY_MESSAGES) {
      omitted += 2;
      continue;
    }
    const tools = answer.parts.some((part) => part.type !== "text");
    const content = tools
      ? answer.parts.map(({ type, text }) => ({ type, text }))
      : answer.parts.map((part) => part.text).join("");
    turns.push([{ role: "user", content: question }, { role: "assistant", content }]);
  }
  const system = chat.system.trim() ? [{ role: "system", content: chat.system.trim() }] : [];
  const last = { role: "user", content: chat.turns[turn].question };
  return { messages: [...system, ...turns.reverse().flat(), last], omitted };
}

/** Return whether an answer has any content. */
export function hasContent(answer) {
  return answer.parts.some((part) => part.type !== "text" || part.text.trim() !== "");
}

/**
 * Fill an answer from the server until it ends, is stopped or fails; never throws.
 *
 * @param {Object} answer of `newAnswer`, changed in place
 * @param {Object} model of `listModels`
 * @param {Object} asked `messages` and `omitted` of `messagesFor`, and `question`, see `streamAnswer`
 * @param {Object} sampling
 * @param {AbortSignal} signal
 * @param {(answer: Object) => void} onChange after every piece
 * @param {() => void} onKeep called now and then, and at the end, to save
 */
export async function runAnswer(answer, model, asked, sampling, signal, onChange, onKeep) {
  const begun = performance.now();
  let first = null;
  let kept = begun;
  answer.maxTokens = Math.min(sampling.maxTokens, model.contextLength ?? Infinity);
  answer.dropped = isBase(model) ? 0 : asked.omitted;
  try {
    for await (const { part, finish, usage, dropped, truncated } of streamAnswer(model, asked, sampling, signal)) {
      const now = performance.now();
      if (part) {
        first ??= now;
        answer.wait = (first - begun) / 1000;
        answer.pieces++;
        append(answer.parts, part);
      }
      if (finish) answer.finish = finish;
      if (dropped) answer.dropped += dropped;
      if (truncated) answer.truncated = true;
      if (Number.isInteger(usage?.completion_tokens)) answer.tokens = usage.completion_tokens;
      if (usage && model.contextLength !== null) answer.full = usage.total_tokens >= model.contextLength;
      if (first !== null) answer.seconds = (now - first) / 1000;
      onChange(answer);
      if (now - kept > SAVE_EVERY_MS) {
        kept = now;
        onKeep();
      }
    }
    answer.status = "done";
  } catch (error) {
    if (signal.aborted) answer.status = "stopped";
    else {
      answer.status = "failed";
      answer.error = error instanceof ApiError ? error.message : `The page itself failed: ${error.message}`;
      answer.retryAfter = error.retryAfter ?? null;
      if (!(error instanceof ApiError)) console.error(error);
    }
  }
  onChange(answer);
  onKeep();
}

function append(parts, part) {
  const last = parts.at(-1);
  if (part.type === "text" && last?.type === "text") last.text += part.text;
  else parts.push({ type: part.type, text: part.text });
}

/** Format length and speed: "84 tokens · 21.3 tokens/s · first after 0.4 s"; units are not separated from numbers. */
export function statistics(answer) {
  if (answer.pieces === 0) return "";
  // Until the server counts the tokens (never for a stopped answer), a piece of the stream is about one token.
  const count = answer.tokens ?? answer.pieces;
  const words = [`${answer.tokens === null ? "about " : ""}${count} token${count === 1 ? "" : "s"}`];
  if (count > 1 && answer.seconds >= MEASURABLE_S) words.push(`${rounded((count - 1) / answer.seconds)}\u00a0tokens/s`);
  const { wait } = answer;
  if (wait !== null) words.push(`first after ${wait < 0.1 ? wait.toFixed(2) : rounded(wait)}\u00a0s`);
  return words.join(" · ");
}

function rounded(value) {
  return value >= 100 ? String(Math.round(value)) : value.toFixed(1);
}
