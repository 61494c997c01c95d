// A canvas on the page: letters from noise to ink, and a slider to see again how they settled.

import { element } from "./app.js";

const MOST_FRAMES = 400; // kept for the slider: a long reply has thousands

/** Which shade an entropy in nats has: 0 is ink, 3 is noise. */
export const shade = (entropy) => (entropy < 0.02 ? 0 : entropy < 0.3 ? 1 : entropy < 1 ? 2 : 3);

function pieces(frame) {
  const spans = [];
  for (const [text, entropy, accepted] of frame.pieces) {
    const look = `n${shade(entropy)}${accepted ? " held" : ""}`;
    const last = spans.at(-1);
    if (last?.className === look) last.textContent += text;
    else spans.push(element("span", { className: look, textContent: text }));
  }
  return spans;
}

/** Shows a reply while it is written, and keeps its frames. */
export function canvasView() {
  const reasoning = element("div", { className: "text reasoning", hidden: true });
  const done = element("span");
  const draft = element("span");
  const text = element("div", { className: "text" }, done, draft);
  text.setAttribute("aria-live", "polite");
  text.setAttribute("aria-busy", "true");
  const node = element("div", {}, reasoning, text);
  const view = { node, frames: [], written: "", calls: [], reason: null, usage: null, timings: null };
  // Drafts come faster than a screen shows them.
  let pending = null;
  const paint = () => {
    if (pending) draft.replaceChildren(...pieces(pending));
    pending = null;
  };
  view.frame = (frame) => {
    if (view.frames.length < MOST_FRAMES) view.frames.push({ ...frame, before: view.written });
    if (!pending) requestAnimationFrame(paint);
    pending = frame;
  };
  view.text = (piece) => {
    view.written += piece;
    pending = null;
    draft.replaceChildren();
    done.textContent = view.written;
  };
  view.reasoning = (piece) => {
    reasoning.hidden = false;
    reasoning.textContent += piece;
  };
  view.call = (delta) => {
    const call = (view.calls[delta.index] ??= { name: "", arguments: "" });
    call.name += delta.function.name ?? "";
    call.arguments += delta.function.arguments ?? "";
  };
  view.end = (reason, usage, timings) => {
    Object.assign(view, { reason, usage, timings });
    pending = null;
    draft.replaceChildren();
    for (const call of view.calls) node.append(element("div", { className: "text hunk", textContent: `${call.name}(${call.arguments})` }));
    text.setAttribute("aria-busy", "false");
  };
  view.replay = (place) => {
    const frame = view.frames[place];
    done.textContent = frame ? frame.before : view.written;
    draft.replaceChildren(...(frame ? pieces(frame) : []));
  };
  return view;
}

/** A slider through a view's frames, the last place being the text itself. */
export function replaySlider(view, show = view.replay) {
  const last = view.frames.length;
  const says = element("output");
  const slider = element("input", { type: "range", min: 0, max: last, value: last });
  slider.setAttribute("aria-label", "See the canvas settle, step by step");
  const move = () => {
    const place = Number(slider.value);
    const frame = view.frames[place];
    says.textContent = frame ? `canvas ${frame.canvas}, step ${frame.step}` : "as written";
    show(place);
  };
  slider.addEventListener("input", move);
  says.textContent = "as written";
  return element("div", { className: "replay" }, element("span", { textContent: "Replay" }), slider, says);
}

/** What a reply took, and its slider. */
export function report(view, show) {
  const { usage, timings } = view;
  const box = element("div");
  if (!timings) return box;
  const parts = [
    `${usage.completion_tokens} tokens`,
    `${timings.tokens_per_s.toFixed(0)} tokens/s`,
    ...(timings.denoise_steps
      ? [
          `${(timings.denoise_steps / timings.canvases).toFixed(1)} steps a canvas`,
          `${((1000 * timings.wall_s) / timings.denoise_steps).toFixed(1)} ms a step`,
        ]
      : [`${((1000 * timings.wall_s) / Math.max(1, usage.completion_tokens)).toFixed(1)} ms a token`]),
    `${timings.seen_s.toFixed(2)} s`,
    ...(view.reason === "length" ? ["cut at the most tokens"] : []),
  ];
  box.append(element("div", { className: "stats", textContent: parts.join(" · ") }));
  if (view.frames.length) box.append(replaySlider(view, show));
  return box;
}
