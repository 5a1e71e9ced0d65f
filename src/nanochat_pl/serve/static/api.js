// The server's OpenAI-compatible interface: the list of models, and streamed answers.

const KEY = "nanochat-pl/api-key";
let askForKey = async () => null;
let asking = null;

/** An error of a request, with a human-readable message. `retryAfter` is in seconds, null if the server gave none. */
export class ApiError extends Error {
  constructor(message, { status = 0, retryAfter = null } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Set the function that asks the user for a key: (refused: boolean) -> Promise of the key, or of null. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

function apiKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

async function send(path, init, signal) {
  for (;;) {
    const key = apiKey();
    const headers = { ...init.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...init, headers, signal, cache: "no-store" });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError("The server cannot be reached. Is it still running?");
    }
    if (response.ok) return response;
    const failure = await readFailure(response);
    if (response.status !== 401) throw failure;
    // Two answers may be refused at once: ask for the key once, and not again if it was entered meanwhile.
    if (apiKey() !== key) continue;
    asking ??= askForKey(key !== null).finally(() => (asking = null));
    const given = await asking;
    if (!given) throw failure;
    try {
      sessionStorage.setItem(KEY, given);
    } catch {
      throw new ApiError("This browser keeps no session data, so the key cannot be remembered. Allow it for this page.");
    }
  }
}

async function readFailure(response) {
  let message = "";
  try {
    const body = await response.json();
    message = body?.error?.message ?? (typeof body?.detail === "string" ? body.detail : "");
  } catch {
    // Not the server's own form (perhaps a proxy's page): only the status is known.
  }
  const seconds = Number.parseFloat(response.headers.get("Retry-After"));
  const retryAfter = Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
  if (response.status === 429) {
    const wait = retryAfter === null ? "in a moment" : `in ${retryAfter} s`;
    return new ApiError(`The server is busy. Try again ${wait}.`, { status: 429, retryAfter });
  }
  if (response.status === 401) message ||= "The server wants an API key.";
  message ||= `The server answered with status ${response.status}.`;
  return new ApiError(String(message), { status: response.status, retryAfter });
}

/**
 * List the served models, in the server's order: `[{id, stage, step, contextLength, suggestions}]`; a suggestion is
 * `{topic, title, text, system}`, a question to begin with and its system prompt (null = none).
 */
export async function listModels(signal) {
  const response = await send("/v1/models", {}, signal);
  const body = await response.json().catch(() => null);
  if (!Array.isArray(body?.data)) throw new ApiError("The server's list of models cannot be read.");
  return body.data
    .filter((model) => typeof model?.id === "string")
    .map((model) => ({
      id: model.id,
      stage: typeof model.stage === "string" ? model.stage : "",
      step: Number.isInteger(model.step) ? model.step : null,
      contextLength: Number.isInteger(model.context_length) ? model.context_length : null,
      suggestions: (Array.isArray(model.suggestions) ? model.suggestions : []).filter(
        (one) => typeof one?.topic === "string" && typeof one.title === "string" && typeof one.text === "string",
      ),
    }));
}

/**
 * Ask a model and yield its answer while it is generated.
 *
 * A base model knows no roles, so it gets `question` as plain text to continue. Other models get `messages`.
 *
 * @param {{id: string, stage: string, contextLength: ?number}} model
 * @param {{messages: Array, question: string}} asked
 * @param {{temperature: number, topP: number, topK: ?number, repetitionPenalty: number, frequencyPenalty: number,
 *   presencePenalty: number, maxTokens: number, seed: ?number}} sampling
 * @param {AbortSignal} signal stops the answer, here and at the server
 * @yields {{part: {type: string, text: string}}|{finish: string}|{dropped: number}|{truncated: true}|{usage: Object}}
 * @throws {ApiError} also if the stream breaks off before its end
 */
export async function* streamAnswer(model, asked, sampling, signal) {
  const plain = isBase(model);
  const body = {
    model: model.id,
    ...(plain ? { prompt: asked.question } : { messages: asked.messages }),
    context: "drop",
    temperature: sampling.temperature,
    top_p: sampling.topP,
    max_tokens: Math.min(sampling.maxTokens, model.contextLength ?? Infinity),
    stream: true,
    stream_options: { include_usage: true },
    ...(sampling.topK === null ? {} : { top_k: sampling.topK }),
    ...(sampling.repetitionPenalty === 1 ? {} : { repetition_penalty: sampling.repetitionPenalty }),
    ...(sampling.frequencyPenalty === 0 ? {} : { frequency_penalty: sampling.frequencyPenalty }),
    ...(sampling.presencePenalty === 0 ? {} : { presence_penalty: sampling.presencePenalty }),
    ...(sampling.seed === null ? {} : { seed: sampling.seed }),
  };
  const headers = { "Content-Type": "application/json" };
  const path = plain ? "/v1/completions" : "/v1/chat/completions";
  const response = await send(path, { method: "POST", headers, body: JSON.stringify(body) }, signal);
  for await (const data of serverEvents(response, signal)) {
    if (data === "[DONE]") return;
    let event;
    try {
      event = JSON.parse(data);
    } catch {
      throw new ApiError("The server sent something that is not JSON.");
    }
    if (event.error) throw new ApiError(String(event.error.message ?? "The server gave up."), { status: 500 });
    const choice = event.choices?.[0];
    const text = plain ? choice?.text : choice?.delta?.content;
    if (typeof text === "string" && text) yield { part: { type: "text", text } };
    const part = plain ? choice?.part : choice?.delta?.part;
    if (part && typeof part.text === "string") yield { part: { type: String(part.type), text: part.text } };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (choice?.truncated) yield { truncated: true };
    if (event.dropped_messages) yield { dropped: event.dropped_messages };
    if (event.usage) yield { usage: event.usage };
  }
  throw new ApiError("The connection broke off before the answer was complete.");
}

/** Return whether a model only continues text. */
export function isBase(model) {
  return model?.stage === "base";
}

async function* serverEvents(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      let chunk;
      try {
        chunk = await reader.read();
      } catch (error) {
        if (signal?.aborted) throw error;
        throw new ApiError("The connection broke off before the answer was complete.");
      }
      if (chunk.done) return;
      const lines = (rest + chunk.value).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
