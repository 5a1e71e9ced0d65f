// The sheet of settings: system prompt and sampling. A value that is out of range is reported and not applied.

import { DEFAULTS } from "./store.js";
import { TUTOR_PROMPT } from "./models.js";

const PENALTIES = ["repetitionPenalty", "frequencyPenalty", "presencePenalty"];
const NUMBERS = ["temperature", "topP", "topK", ...PENALTIES, "maxTokens", "seed"];

/** Binds the dialog of index.html to the settings. */
export class SettingsSheet {
  /** @param {{store: Object, changed: (changes: Object) => void}} bound */
  constructor({ store, changed }) {
    this.store = store;
    this.dialog = document.getElementById("settings");
    this.form = this.dialog.querySelector("form");
    this.system = this.form.elements.system;
    document.getElementById("settings-open").addEventListener("click", () => this.open());
    document.getElementById("settings-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.form.addEventListener("submit", (event) => event.preventDefault());
    for (const name of NUMBERS) {
      const field = this.form.elements[name];
      field.addEventListener("input", () => {
        this.#check(field);
        if (field.validity.valid) changed({ [name]: field.value === "" ? null : Number(field.value) });
      });
    }
    this.system.addEventListener("input", () => changed({ system: this.system.value }));
    const setSystem = (text) => {
      this.system.value = text;
      changed({ system: text });
    };
    document.getElementById("use-tutor").addEventListener("click", () => setSystem(TUTOR_PROMPT));
    document.getElementById("clear-system").addEventListener("click", () => setSystem(""));
    document.getElementById("reset-sampling").addEventListener("click", () => {
      changed(Object.fromEntries(NUMBERS.map((name) => [name, DEFAULTS[name]])));
      this.fill();
    });
  }

  open() {
    this.fill();
    this.dialog.showModal();
  }

  /** Show the current values; `system` is the current conversation's. */
  fill() {
    for (const name of NUMBERS) {
      const field = this.form.elements[name];
      const value = this.store.settings[name];
      // The limit of a model with a smaller context is that context.
      const most = name === "maxTokens" && field.max ? Number(field.max) : Infinity;
      field.value = value === null ? "" : String(Math.min(value, most));
      this.#check(field);
    }
    this.system.value = this.currentSystem ?? "";
  }

  /** Limit the length of answers to the contexts of the chosen models. */
  setContext(tokens) {
    const field = this.form.elements.maxTokens;
    if (tokens === null) field.removeAttribute("max");
    else field.max = String(tokens);
    document.getElementById("context-hint").textContent =
      tokens === null ? "" : `The chosen model reads and writes ${tokens.toLocaleString("en")} tokens at a time.`;
  }

  #check(field) {
    const shown = document.getElementById(`${field.name}-shown`);
    if (shown) shown.textContent = Number(field.value).toFixed(2);
    const problem = document.getElementById(`${field.name}-problem`);
    if (!problem) return;
    problem.textContent = field.validity.valid ? "" : `${field.validationMessage} Not taken.`;
    field.setAttribute("aria-invalid", String(!field.validity.valid));
  }
}
