// Markdown within a paragraph -> DOM nodes: emphasis, code, links, tools. One pass over the text with a stack of open
// markers; its depth is bounded, so that hostile runs of markers cost no more than text.

import { h } from "./dom.js";

const MAX_OPEN = 16;
const MAX_URL = 1024;
const WORD = /[\p{L}\p{N}]/u;
const SPACE = /\s/;
const TAGS = { "*1": "em", _1: "em", "*2": "strong", _2: "strong", "~2": "del" };

/**
 * Build the nodes of one paragraph's text.
 *
 * @param {string} text Markdown; U+E000 <number> U+E001 stands for a tool's box
 * @param {Array<{expression: string, result: ?string}>} inserts the boxes
 * @returns {Node[]}
 */
export function inline(text, inserts) {
  const stack = [{ nodes: [] }];
  const spans = codeSpans(text);
  let plain = "";
  const top = () => stack.at(-1);
  const flush = () => {
    if (plain) top().nodes.push(document.createTextNode(plain));
    plain = "";
  };
  const put = (node) => (flush(), top().nodes.push(node));
  // Markers that were never closed are text.
  const unwind = (length) => {
    flush();
    while (stack.length > length) {
      const { source, nodes } = stack.pop();
      top().nodes.push(document.createTextNode(source));
      for (const node of nodes) top().nodes.push(node);
    }
  };
  for (let i = 0; i < text.length; ) {
    const char = text[i];
    if (char === "\n") {
      put(h("br"));
      i++;
    } else if (char === "\\" && /[!-/:-@[-`{-~]/.test(text[i + 1] ?? "")) {
      plain += text[i + 1];
      i += 2;
    } else if (char === "\ue000") {
      const end = text.indexOf("\ue001", i);
      put(toolBox(inserts[Number(text.slice(i + 1, end))]));
      i = end + 1;
    } else if (char === "`") {
      const length = runLength(text, i);
      const end = spans.get(i);
      if (end === undefined) plain += text.slice(i, i + length);
      else put(h("code", { text: spelled(text.slice(i + length, end), inserts) }));
      i = end === undefined ? i + length : end + length;
    } else if (char === "[" && stack.length < MAX_OPEN) {
      flush();
      // A picture is never fetched: "![alt](…)" is a link like any other.
      const picture = text[i - 1] === "!" && top().nodes.at(-1)?.nodeType === Node.TEXT_NODE;
      stack.push({ open: "[", source: "[", nodes: [], picture, full: false });
      i++;
    } else if (char === "]") {
      const at = stack.findLastIndex((entry) => entry.open === "[");
      const target = at > 0 && !stack[at].full && text[i + 1] === "(" ? linkTarget(text, i + 2) : null;
      if (target?.url) {
        unwind(at + 1);
        const { nodes, picture } = stack.pop();
        if (picture) dropMark(top().nodes);
        put(link(target.url, nodes.length ? nodes : [document.createTextNode(target.url)]));
        // A link holds no link: the brackets around this one are text.
        for (const entry of stack) entry.full = true;
        i = target.next;
      } else {
        plain += char;
        i++;
        // A bracket without a target is text; it must not swallow a later one.
        if (at > 0 && at === stack.length - 1) unwind(at);
      }
    } else if ((char === "*" || char === "_" || char === "~") && (char !== "~" || text[i + 1] === "~")) {
      i += emphasis(text, i, stack, { flush, unwind, literal: (marks) => (plain += marks) });
    } else if (char === "h" && !WORD.test(text[i - 1] ?? "") && /^https?:\/\//.test(text.slice(i, i + 8))) {
      const url = bareUrl(text, i);
      if (url && !stack.some((entry) => entry.open === "[")) put(link(url, [document.createTextNode(url)]));
      else plain += url ?? char;
      i += (url ?? char).length;
    } else {
      plain += char;
      i++;
    }
  }
  unwind(1);
  return stack[0].nodes;
}

/** Make the small box of a calculation: `12*3 → 36`. */
export function toolBox({ expression, result }) {
  const name = `Calculation: ${expression}${result === null ? "" : ` gives ${result}`}`;
  return h(
    "span.tool",
    { role: "img", "aria-label": name, title: "Worked out by the calculator" },
    h("code", { text: expression }),
    " → ",
    h("code.result", { text: result ?? "…" }),
  );
}

function emphasis(text, i, stack, { flush, unwind, literal }) {
  const char = text[i];
  const length = runLength(text, i);
  const before = text[i - 1] ?? " ";
  const after = text[i + length] ?? " ";
  // "2*3*4" and snake_case are no emphasis: a single mark within a word is text.
  const within = WORD.test(before) && WORD.test(after) && (length === 1 || char === "_");
  const mayOpen = !SPACE.test(after) && !within;
  const mayClose = !SPACE.test(before) && !within;
  let left = length;
  while (left > 0) {
    const fits = (entry) => entry.open === char && entry.size <= left;
    let at = mayClose ? stack.findLastIndex((entry) => entry.open === char && entry.size === left) : -1;
    if (at < 0 && mayClose) at = stack.findLastIndex(fits);
    const size = char === "~" || left >= 2 ? Math.min(2, left) : 1;
    if (at > 0) {
      unwind(at + 1);
      const { nodes, size: closed } = stack.pop();
      stack.at(-1).nodes.push(h(TAGS[char + closed], {}, nodes));
      left -= closed;
    } else if (mayOpen && length <= 3 && stack.length < MAX_OPEN && TAGS[char + size]) {
      flush();
      stack.push({ open: char, size, source: char.repeat(size), nodes: [] });
      left -= size;
    } else {
      literal(char.repeat(left));
      left = 0;
    }
  }
  return length;
}

function runLength(text, i) {
  let end = i + 1;
  while (text[end] === text[i]) end++;
  return end - i;
}

/** The end of each code span by its start: the next run of the same number of backticks, found in one backward pass. */
function codeSpans(text) {
  const spans = new Map();
  const nextOf = new Map();
  for (let end = text.lastIndexOf("`"); end >= 0; ) {
    let start = end;
    while (text[start - 1] === "`") start--;
    const length = end - start + 1;
    if (nextOf.has(length)) spans.set(start, nextOf.get(length));
    nextOf.set(length, start);
    end = start > 0 ? text.lastIndexOf("`", start - 1) : -1;
  }
  return spans;
}

function spelled(text, inserts) {
  const filled = text.replace(/\ue000(\d+)\ue001/g, (_, index) => {
    const { expression, result } = inserts[index];
    return result === null ? expression : `${expression} → ${result}`;
  });
  return filled.replaceAll("\n", " ");
}

function linkTarget(text, start) {
  const window = text.slice(start, start + MAX_URL);
  let depth = 0;
  for (let i = 0; i < window.length; i++) {
    if (window[i] === "\n" || window[i] === "\ue000") return null;
    if (window[i] === "(") depth++;
    if (window[i] === ")" && depth-- === 0) {
      const inside = window.slice(0, i).trim();
      const url = inside.startsWith("<") ? inside.slice(1, inside.indexOf(">")) : inside.split(/\s/, 1)[0];
      return { url: safeUrl(url), next: start + i + 1 };
    }
  }
  return null;
}

function bareUrl(text, start) {
  const window = text.slice(start, start + MAX_URL);
  const stop = window.search(/[\s<>"'`\]\ue000*]/);
  let url = stop < 0 ? window : window.slice(0, stop);
  while (/[.,;:!?]$/.test(url) || (url.endsWith(")") && !url.includes("("))) url = url.slice(0, -1);
  return safeUrl(url) === null ? null : url;
}

function safeUrl(text) {
  let url;
  try {
    url = new URL(text);
  } catch {
    return null;
  }
  return url.protocol === "http:" || url.protocol === "https:" ? url.href : null;
}

function link(url, nodes) {
  return h("a", { href: url, title: url, target: "_blank", rel: "noopener noreferrer nofollow" }, nodes);
}

function dropMark(nodes) {
  const last = nodes.at(-1);
  last.data = last.data.slice(0, -1);
}
