// Names and groups of the served models, by the stage of their training.

const STAGES = {
  base: ["Base", "Base: continue a text"],
  mid: ["Mid", "Mid-trained"],
  sft: ["Chat", "Chat (SFT)"],
  rl: ["RL", "Reinforced (RL)"],
};

/** The system message of the fine-tuning on ScienceQA (PERSONA in nanochat_pl.tasks.scienceqa). */
export const TUTOR_PROMPT =
  "You are a helpful science tutor. Answer the question with the letter and text of the correct choice, " +
  "then explain why.";

/** Return a stage's short name for a badge. A stage outside the usual chain (`sft_scienceqa`) is a fine-tuning. */
export function stageName(stage) {
  return STAGES[stage]?.[0] ?? (stage ? "Fine-tuned" : "Model");
}

function stageTitle(stage) {
  if (STAGES[stage]) return STAGES[stage][1];
  return stage ? "Fine-tuned" : "Models";
}

/** Return the CSS class of a stage's badge. */
export function stageClass(stage) {
  return STAGES[stage] ? `stage-${stage}` : "stage-tuned";
}

/** Return whether a model is fine-tuned for a purpose (the science tutor). */
export function isTuned(model) {
  return Boolean(model.stage) && !STAGES[model.stage];
}

/** Fill a select with the models, grouped by stage in the order of training. */
export function fillSelect(select, models, chosen) {
  const groups = new Map([...Object.keys(STAGES), "tuned"].map((stage) => [stage, []]));
  for (const model of models) groups.get(STAGES[model.stage] ? model.stage : "tuned").push(model);
  select.replaceChildren();
  for (const members of groups.values()) {
    if (!members.length) continue;
    const group = document.createElement("optgroup");
    group.label = stageTitle(members[0].stage);
    for (const model of members) {
      const option = new Option(`${model.id} · ${stageName(model.stage)}`, model.id, false, model.id === chosen);
      if (model.step !== null) option.title = `step ${model.step.toLocaleString("en")}`;
      group.append(option);
    }
    select.append(group);
  }
  select.disabled = models.length === 0;
  if (!models.length) select.append(new Option("No model", ""));
}

/** Choose the initial model: the last choice if it is still served, else the latest stage of the chain. */
export function preferred(models, remembered, avoid = "") {
  if (models.some((model) => model.id === remembered)) return remembered;
  const stages = Object.keys(STAGES);
  const rank = (model) => (isTuned(model) ? stages.length : stages.indexOf(model.stage));
  const others = models.filter((model) => model.id !== avoid);
  const best = [...(others.length ? others : models)].sort((a, b) => rank(b) - rank(a))[0];
  return best?.id ?? "";
}
