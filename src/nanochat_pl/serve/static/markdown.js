// Markdown blocks -> DOM nodes. A model's text is treated as hostile: nodes are made by name, every string is
// set as text, links are http(s) only, pictures become links, nesting is bounded and no step takes more than linear time.

import { copyText, h, iconButton } from "./dom.js";
import { inline } from "./inline.js";

const MAX_DEPTH = 6;
const MAX_CHARS = 100_000;
const MAX_COLUMNS = 40;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:[ \t]|$)/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+/;
const RULE = /^(?:-{3,}|\*{3,}|_{3,})$/;
// What follows a mark in arithmetic: "#### 42", "+ 25" and "- 5 + 3" are no heading and no lists, as "# One" and "- a" are.
const SUM = /^[^\p{L}]*\d[^\p{L}]*$/u;
const DELIMITERS = /^[\t |:-]+$/;
// Control characters, and those that silently change the direction of text.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ufeff]/g;
const INSERT = /\ue000(\d+)\ue001/g;

/** Replace characters that are invisible, or that reorder their neighbours, by U+FFFD. */
export function visible(text) {
  return text.replaceAll("\r\n", "\n").replace(UNSEEN, "\ufffd");
}

/** Shows a growing text: blocks that did not change keep their nodes, so that a selection in them survives. */
export class MarkdownView {
  /** @param {Element} element emptied and filled by `update` */
  constructor(element) {
    this.element = element;
    this.shown = [];
    element.replaceChildren();
  }

  /**
   * Show the parts of an answer.
   *
   * @param {Array<{type: string, text: string}>} parts text is Markdown; a tool's expression and result become one box
   */
  update(parts) {
    const { text, inserts } = withTools(parts);
    if (text.length > MAX_CHARS) {
      this.shown = [];
      this.element.replaceChildren(h("p.plain", { text: spelledOut(text, inserts) }));
      return;
    }
    const blocks = parse(text.split("\n"), 0).map((block) => ({ block, key: keyOf(block, inserts) }));
    let same = 0;
    while (same < this.shown.length && same < blocks.length && this.shown[same].key === blocks[same].key) same++;
    for (const gone of this.shown.splice(same)) gone.node.remove();
    for (const { block, key } of blocks.slice(same)) {
      const node = build(block, inserts);
      this.element.append(node);
      this.shown.push({ key, node });
    }
  }
}

/** Return an answer as plain text, tools as `expression → result`, for the copy button. */
export function plainText(parts) {
  const { text, inserts } = withTools(parts, (part) => part);
  return spelledOut(text, inserts);
}

function withTools(parts, clean = visible) {
  const inserts = [];
  let text = "";
  for (const part of parts) {
    const shown = clean(part.text.replace(/[\ue000\ue001]/g, "\ufffd"));
    if (part.type === "text") text += shown;
    else if (part.type === "python_output" && inserts.at(-1)?.result === null) inserts.at(-1).result = shown;
    else {
      text += `\ue000${inserts.length}\ue001`;
      inserts.push(part.type === "python" ? { expression: shown, result: null } : { expression: "", result: shown });
    }
  }
  return { text, inserts };
}

function spelledOut(text, inserts) {
  return text.replace(INSERT, (_, index) => {
    const { expression, result } = inserts[index];
    return result === null ? expression : `${expression} → ${result}`;
  });
}

function keyOf(block, inserts) {
  return JSON.stringify(block).replace(INSERT, (_, index) => JSON.stringify(inserts[index]));
}

function build(block, inserts) {
  const words = (text) => inline(text, inserts);
  switch (block.type) {
    case "code":
      return codeBlock(spelledOut(block.text, inserts), block.language);
    case "heading":
      // The page's own headings are levels 1 to 3.
      return h(`h${Math.min(6, block.level + 3)}`, {}, words(block.text));
    case "rule":
      return h("hr");
    case "quote":
      return h("blockquote", {}, block.blocks.map((inner) => build(inner, inserts)));
    case "list": {
      const items = block.items.map((item) => h("li", {}, item.flatMap((inner) => buildItem(inner, item, inserts))));
      return block.start === null ? h("ul", {}, items) : h("ol", { start: block.start }, items);
    }
    case "table":
      return table(block, words);
    default:
      return h("p", {}, words(block.text));
  }
}

function buildItem(block, siblings, inserts) {
  return block.type === "paragraph" && block === siblings[0] ? inline(block.text, inserts) : [build(block, inserts)];
}

function codeBlock(text, language) {
  const copy = iconButton("copy", "Copy code", async () => {
    const copied = await copyText(text);
    copy.title = copied ? "Copied" : "Could not copy";
    copy.classList.toggle("done", copied);
  });
  const label = h("span", { text: language || "text" });
  const name = `Code, ${language || "text"}`;
  return h(
    "figure.code",
    {},
    h("figcaption", {}, label, copy),
    h("pre", { tabindex: "0", role: "group", "aria-label": name }, h("code", { text })),
  );
}

function table({ head, rows, align }, words) {
  const row = (cells, tag) =>
    h("tr", {}, align.map((side, i) => h(side ? `${tag}.${side}` : tag, {}, words(cells[i] ?? ""))));
  const body = h("tbody", {}, rows.map((cells) => row(cells, "td")));
  const whole = h("table", {}, h("thead", {}, row(head, "th")), body);
  return h("div.table-scroll", { tabindex: "0", role: "group", "aria-label": "Table" }, whole);
}

function parse(lines, depth) {
  const blocks = [];
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) blocks.push({ type: "paragraph", text: paragraph.join("\n") });
    paragraph = [];
  };
  for (let i = 0; i < lines.length; ) {
    const line = lines[i];
    if (line.trim() === "") {
      flush();
      i++;
      continue;
    }
    const found = depth < MAX_DEPTH ? startOf(lines, i, depth, paragraph) : null;
    if (found) {
      flush();
      blocks.push(found.block);
      i = found.next;
    } else {
      paragraph.push(line.trim());
      i++;
    }
  }
  flush();
  return blocks;
}

function startOf(lines, i, depth, paragraph) {
  const line = lines[i];
  const fence = fenceOf(line);
  if (fence) return fenced(lines, i, fence);
  const heading = HEADING.exec(line);
  if (heading && !SUM.test(line.slice(heading[0].length))) {
    const block = { type: "heading", level: heading[1].length, text: line.slice(heading[0].length).trim() };
    return { block, next: i + 1 };
  }
  // A line under a column of numbers belongs to the column.
  const under = paragraph.length > 0 && SUM.test(paragraph.at(-1));
  if (RULE.test(line.replace(/[ \t]/g, "")) && !under) return { block: { type: "rule" }, next: i + 1 };
  if (line.trimStart().startsWith(">") && !SUM.test(line)) return quoted(lines, i, depth);
  const item = ITEM.exec(line);
  // A sentence that begins with a year is no list: only "1." may interrupt a paragraph.
  const isYear = item && paragraph.length > 0 && /^\d/.test(item[2]) && item[2].slice(0, -1) !== "1";
  if (item && !isYear && !isTerm(item[2], line.slice(item[0].length))) return listed(lines, i, depth);
  const next = lines[i + 1];
  if (line.includes("|") && next?.includes("|") && next.includes("-") && DELIMITERS.test(next)) return tabled(lines, i);
  return null;
}

/** Return whether a line that could be an item is a term of a sum: a number alone, or with a plus and any unit. */
function isTerm(mark, text) {
  return /^[-*+]$/.test(mark) && (SUM.test(text) || (mark === "+" && /^\d/.test(text)));
}

function fenceOf(line) {
  const text = line.trim();
  const mark = text.startsWith("```") ? "`" : text.startsWith("~~~") ? "~" : null;
  if (mark === null) return null;
  let length = 3;
  while (text[length] === mark) length++;
  const info = text.slice(length).trim();
  return mark === "`" && info.includes("`") ? null : { mark, length, info };
}

function fenced(lines, i, { mark, length, info }) {
  const inside = [];
  let next = i + 1;
  for (; next < lines.length; next++) {
    const end = fenceOf(lines[next]);
    if (end && end.mark === mark && end.length >= length && !end.info) break;
    inside.push(lines[next]);
  }
  const language = info.split(/[\s{]/, 1)[0].slice(0, 30);
  return { block: { type: "code", language, text: inside.join("\n") }, next: next + 1 };
}

function quoted(lines, i, depth) {
  const inside = [];
  let next = i;
  for (; next < lines.length && lines[next].trimStart().startsWith(">"); next++) {
    inside.push(lines[next].trimStart().slice(1).replace(/^ /, ""));
  }
  return { block: { type: "quote", blocks: parse(inside, depth + 1) }, next };
}

function listed(lines, i, depth) {
  const first = ITEM.exec(lines[i])[2];
  const ordered = first.length > 1;
  const items = [];
  let next = i;
  while (next < lines.length) {
    const marker = ITEM.exec(lines[next]);
    if (!marker || marker[2].length > 1 !== ordered || marker[2].at(-1) !== first.at(-1)) break;
    const indent = marker[0].length;
    const inside = [lines[next].slice(indent)];
    for (next++; next < lines.length; next++) {
      const line = lines[next];
      const space = line.length - line.trimStart().length;
      if (line.trim() === "") {
        const after = lines[next + 1] ?? "";
        if (after.trim() === "" || after.length - after.trimStart().length < 2) break;
        inside.push("");
      } else if (space >= 2) inside.push(line.slice(Math.min(space, indent)));
      else if (ITEM.test(line) || HEADING.test(line) || fenceOf(line) || line.startsWith(">")) break;
      else inside.push(line);
    }
    items.push(parse(inside, depth + 1));
    // One blank line between two items keeps them in one list.
    if (lines[next]?.trim() === "" && ITEM.test(lines[next + 1] ?? "")) next++;
  }
  return { block: { type: "list", start: ordered ? Number.parseInt(first, 10) : null, items }, next };
}

function tabled(lines, i) {
  const cells = (line) => {
    const text = line.trim();
    const inner = text.slice(text.startsWith("|") ? 1 : 0, text.endsWith("|") && text.length > 1 ? -1 : undefined);
    return inner.split("|", MAX_COLUMNS).map((cell) => cell.trim());
  };
  const head = cells(lines[i]);
  const sides = cells(lines[i + 1]);
  const align = head.map((_, c) => {
    const side = sides[c] ?? "";
    if (side.endsWith(":")) return side.startsWith(":") ? "centre" : "right";
    return "";
  });
  const rows = [];
  let next = i + 2;
  for (; next < lines.length && lines[next].includes("|"); next++) rows.push(cells(lines[next]));
  return { block: { type: "table", head, align, rows }, next };
}
