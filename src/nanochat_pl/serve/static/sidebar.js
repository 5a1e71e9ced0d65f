// The list of conversations: open, rename, delete. On a narrow page it is a drawer over the conversation.

import { h, iconButton } from "./dom.js";

const NARROW = matchMedia("(max-width: 860px)");

/** Lists the conversations and reports the user's actions on them. */
export class Sidebar {
  /**
   * @param {{open: (id: string) => void, rename: (id: string, title: string) => void, remove: (id: string) => void}} actions
   */
  constructor(actions) {
    this.actions = actions;
    this.element = document.getElementById("sidebar");
    this.list = document.getElementById("chats");
    this.toggle = document.getElementById("sidebar-toggle");
    this.shade = document.getElementById("shade");
    this.toggle.addEventListener("click", () => this.setOpen(!this.isOpen));
    this.shade.addEventListener("click", () => this.setOpen(false));
    document.getElementById("sidebar-close").addEventListener("click", () => this.setOpen(false));
    NARROW.addEventListener("change", () => this.setOpen(false));
    this.setOpen(false);
  }

  /** Whether the drawer is open; on a wide page the list is always visible and this is false. */
  get isOpen() {
    return this.element.classList.contains("open");
  }

  setOpen(open) {
    const was = this.isOpen;
    this.element.classList.toggle("open", open);
    this.toggle.setAttribute("aria-expanded", String(open));
    this.shade.hidden = !open;
    document.getElementById("main").inert = open;
    if (open) document.getElementById("sidebar-close").focus();
    else if (was) this.toggle.focus();
  }

  /** Show the conversations, the current one marked. */
  show(chats, currentId) {
    if (this.list.querySelector("input")) return;
    const rows = chats.map((chat) => this.#row(chat, chat.id === currentId));
    this.list.replaceChildren(...rows);
    document.getElementById("no-chats").hidden = rows.length > 0;
  }

  #row(chat, current) {
    const open = h("button.chat", {
      type: "button",
      text: chat.title,
      title: chat.title,
      dir: "auto",
      "aria-current": current ? "page" : null,
      onclick: () => this.actions.open(chat.id),
    });
    const row = h(
      "li",
      {},
      open,
      iconButton("edit", `Rename “${chat.title}”`, () => this.#rename(row, chat)),
      iconButton("delete", `Delete “${chat.title}”`, () => this.actions.remove(chat.id)),
    );
    return row;
  }

  #rename(row, chat) {
    const field = h("input", { type: "text", "aria-label": "New name of the chat", maxlength: 80, dir: "auto" });
    field.value = chat.title;
    let ended = false;
    const end = (keep) => {
      if (ended) return;
      ended = true;
      const title = field.value.trim();
      field.remove();
      this.actions.rename(chat.id, keep && title ? title : chat.title);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") event.stopPropagation();
      if (event.key === "Enter" || event.key === "Escape") end(event.key === "Enter");
    });
    field.addEventListener("blur", () => end(true));
    row.replaceChildren(field);
    field.select();
    field.focus();
  }
}
