// Gaps, edits, and answers kept to a schema.

import { $, element, onSubmit, settings } from "./app.js";
import { api, send } from "./api.js";
import { canvasView, report } from "./canvas.js";

const GAP = /\[\[\s*\]\]/;

const stats = (text) => element("div", { className: "stats", textContent: text });

export function setUpFill() {
  $("fill-input").value = "def mean(values):\n    total = [[ ]]\n    return total / len(values)\n";
  onSubmit($("fill-form"), async (signal) => {
    const texts = $("fill-input").value.split(new RegExp(GAP, "g"));
    if (texts.length < 2) throw new Error("Mark each gap with [[ ]].");
    const { model, max_tokens, max_denoising_steps, temperature, seed } = settings();
    const regex = $("fill-regex").value;
    const body = { texts, model, max_tokens, max_denoising_steps, temperature, seed, ...(regex && { structured_outputs: { regex } }) };
    const told = await api("v1/canvas/fill", body, signal);
    const parts = texts.flatMap((text, i) => (i < told.gaps.length ? [text, element("span", { className: "new", textContent: told.gaps[i] })] : [text]));
    $("fill-output").replaceChildren(...parts);
    const rows = told.candidates.map((one) =>
      element("tr", {}, element("td", { textContent: one.score.toFixed(1) }), element("td", { className: "text", textContent: one.gaps.join(" … ") })),
    );
    const head = element("tr", {}, element("th", { textContent: "log-likelihood" }), element("th", { textContent: "gap" }));
    const table = element("table", { className: "plain" }, element("thead", {}, head), element("tbody", {}, ...rows));
    const steps = told.candidates.reduce((sum, one) => sum + one.denoise_steps, 0);
    $("fill-candidates").replaceChildren(table, stats(`${told.candidates.length} candidates · ${steps} steps · ${told.wall_s.toFixed(2)} s`));
  });
}

/** A unified diff with its lines coloured. */
function diffLines(diff) {
  return diff.split("\n").map((line) => {
    if (line.startsWith("+++") || line.startsWith("---") || line.startsWith("@@")) return element("span", { className: "hunk", textContent: `${line}\n` });
    const name = { "+": "ins", "-": "del" }[line[0]];
    return name ? element(name, { textContent: `${line}\n` }) : `${line}\n`;
  });
}

export function setUpEdit() {
  const area = $("edit-input");
  area.value = "def mean(values):\n    totl = sum(values)\n    return total / len(values)\n";
  let edited = null;
  $("edit-strength").addEventListener("input", () => ($("edit-strength-shown").value = $("edit-strength").value));
  // JavaScript counts UTF-16 units, the server characters.
  const characters = (end) => [...area.value.slice(0, end)].length;
  onSubmit($("edit-form"), async (signal) => {
    const { model, max_denoising_steps, temperature, seed } = settings();
    const [start, stop] = [area.selectionStart, area.selectionEnd];
    const spans = start < stop ? [[characters(start), characters(stop)]] : undefined;
    const body = {
      text: area.value, instruction: $("edit-instruction").value, spans, strength: Number($("edit-strength").value),
      model, max_denoising_steps, temperature, seed,
    };
    const told = await api("v1/canvas/edit", body, signal);
    edited = told.text;
    $("edit-take").hidden = !told.diff;
    $("edit-diff").replaceChildren(...(told.diff ? diffLines(told.diff) : ["Nothing changed."]));
    const sure = told.changes.map((one) => `${(100 * one.confidence).toFixed(0)}%`).join(", ") || "-";
    $("edit-stats").replaceChildren(stats(`confidence ${sure} · ${told.denoise_steps} steps · ${told.wall_s.toFixed(2)} s`));
  });
  $("edit-take").addEventListener("click", () => {
    area.value = edited;
    $("edit-take").hidden = true;
  });
}

export function setUpSchema() {
  $("schema-input").value = JSON.stringify(
    {
      type: "object",
      properties: {
        name: { type: "string", pattern: "^[a-z]{3,8}(_[a-z]{2,8})?$" },
        kind: { enum: ["function", "class", "module"] },
        lines: { type: "integer", minimum: 1, maximum: 999 },
        public: { type: "boolean" },
      },
      required: ["name", "kind", "lines", "public"],
    },
    null,
    2,
  );
  $("schema-prompt").value = "Describe a part of a program.";
  onSubmit($("schema-form"), async (signal) => {
    let schema;
    try {
      schema = JSON.parse($("schema-input").value);
    } catch (error) {
      throw new Error(`The schema is not JSON: ${error.message}`);
    }
    const view = canvasView();
    $("schema-output").replaceChildren(view.node);
    const response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
    const messages = [{ role: "user", content: $("schema-prompt").value }];
    await send({ ...settings(), messages, response_format }, signal, view);
    $("schema-output").append(report(view));
  });
}
