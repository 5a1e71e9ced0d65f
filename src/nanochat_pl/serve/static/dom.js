// Building blocks of the page. Nothing here or elsewhere parses text as HTML: every node is made by name, every text is
// set as text, so that a model's answer can only be read.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an element.
 *
 * @param {string} tag name, with classes as in "p.note.quiet"
 * @param {Object} [attributes] attributes; `on…` are listeners, `text` is the text, false/null omits one
 * @param {...(Node|string|null|false|Array)} children appended in order; lists are flattened, empty ones omitted
 */
export function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") element.textContent = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  // One by one: a hundred thousand nodes are too many arguments for one call.
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

/** Make one of the icons of index.html, hidden from screen readers: the control around it has the name. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** Make a button that shows only an icon; the label is its accessible name and its tooltip. */
export function iconButton(name, label, onclick, extra = {}) {
  return h("button.icon-button", { type: "button", "aria-label": label, title: label, onclick, ...extra }, icon(name));
}

/** Announce a text once to screen readers, politely: a whole finished answer, never each of its tokens. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

/** Show a short message at the foot of the page, with an optional action, until it is dismissed or ten seconds pass. */
export function toast(text, action = null) {
  const place = document.getElementById("toasts");
  const close = () => box.remove();
  const box = h(
    "div.toast",
    {},
    h("span", { text }),
    action && h("button.text-button", { type: "button", text: action.label, onclick: () => (close(), action.run()) }),
    iconButton("close", "Dismiss", close),
  );
  place.replaceChildren(box);
  setTimeout(close, 10000);
}

/** Copy text; on pages without a clipboard (plain http on another machine) through a selection. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = h("textarea.offscreen", { "aria-hidden": "true", tabindex: "-1" });
    field.value = text;
    document.body.append(field);
    const focused = document.activeElement;
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    focused?.focus();
    return copied;
  }
}
