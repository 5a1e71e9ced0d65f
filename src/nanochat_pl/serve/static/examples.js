// Questions to begin with, in the form the science tutor was trained on: the question, a blank line, lettered choices.

/** The system message of the fine-tuning on ScienceQA (PERSONA in nanochat_pl.tasks.scienceqa). */
export const TUTOR_PROMPT =
  "You are a helpful science tutor. Answer the question with the letter and text of the correct choice, " +
  "then explain why.";

const QUESTIONS = [
  ["Physics", "Which material would make the best handle for a hot pan?", ["copper", "wood", "aluminium", "steel"]],
  ["Biology", "Which part of a plant takes in most of the water it needs?", ["the flowers", "the leaves", "the roots"]],
  ["Earth science", "What makes the length of the day change through the year?", [
    "the tilt of Earth's axis",
    "the distance from Earth to the Sun",
    "the pull of the Moon",
  ]],
  ["Chemistry", "Which of these is a chemical change?", ["ice melting", "an iron nail rusting", "sugar dissolving"]],
  ["Astronomy", "Why can we see the Moon at night?", [
    "It burns gas like a star.",
    "It reflects light from the Sun.",
    "It glows because it is hot inside.",
  ]],
  ["Ecology", "In a pond, which living thing is a producer?", ["a heron", "a tadpole", "green algae", "a water beetle"]],
];

/** `[{subject, title, text}]`: `text` is what is asked, `title` its first line. */
export const EXAMPLES = QUESTIONS.map(([subject, title, choices]) => ({
  subject,
  title,
  text: `${title}\n\n${choices.map((choice, i) => `${"ABCDEF"[i]}. ${choice}`).join("\n")}`,
}));
