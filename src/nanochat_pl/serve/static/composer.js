// The user's input: the message, and the API key if the server needs one.

import { isSend } from "./thread.js";

const MOST_OF_PAGE = 0.4;

/** The field of the message; it grows with its text. */
export class Composer {
  /** @param {(text: string) => Promise<boolean>} send called with a message; the field is emptied if it was accepted */
  constructor(send) {
    this.field = document.getElementById("question");
    const form = document.getElementById("composer");
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (await send(this.field.value.trim())) this.write("");
    });
    this.field.addEventListener("input", () => this.#fit());
    this.field.addEventListener("keydown", (event) => {
      if (!isSend(event)) return;
      event.preventDefault();
      form.requestSubmit();
    });
  }

  focus() {
    this.field.focus();
  }

  /** Replace the text of the field. */
  write(text) {
    this.field.value = text;
    this.#fit();
    this.focus();
  }

  #fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight + 2, innerHeight * MOST_OF_PAGE)}px`;
  }
}

/** Ask for the server's key; resolves to null if none is entered. `refused`: the last one was not accepted. */
export function askForKey(refused) {
  const dialog = document.getElementById("key-dialog");
  const field = dialog.querySelector("input");
  document.getElementById("key-refused").hidden = !refused;
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const closed = () => resolve(dialog.returnValue === "use" && field.value.trim() ? field.value.trim() : null);
    dialog.addEventListener("close", closed, { once: true });
  });
}
