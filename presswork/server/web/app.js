// The page of a presswork server. Plain modules, no build step; everything is asked of this server alone.

import { api, send } from "./api.js";
import { canvasView, report } from "./canvas.js";
import { setUpChat } from "./chat.js";
import { setUpSudoku } from "./sudoku.js";
import { setUpFill, setUpEdit, setUpSchema } from "./text.js";

export const $ = (id) => document.getElementById(id);

/** Elements are made, never written as markup: nothing that a model says can become part of the page. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function notice(text, isInfo = false) {
  $("notice").hidden = !text;
  $("notice").textContent = text;
  $("notice").classList.toggle("info", isInfo);
}

/** What the settings ask of every request. */
export function settings() {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  return {
    model: $("model").value || undefined,
    max_tokens: number("max-tokens") ?? 256,
    max_denoising_steps: number("steps"),
    temperature: number("temperature"),
    seed: number("seed"),
  };
}

/** Run a form's work: a Stop button while it lasts, errors in one place. */
export function onSubmit(form, work) {
  const stop = form.querySelector(".stop");
  let running = null;
  const start = async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    const main = form.querySelector(".main");
    notice("");
    main.disabled = true;
    stop.hidden = false;
    try {
      await work(running.signal);
    } catch (error) {
      if (error.name !== "AbortError") notice(error.message);
    } finally {
      running = null;
      main.disabled = false;
      stop.hidden = true;
    }
  };
  form.addEventListener("submit", start);
  stop.addEventListener("click", () => running?.abort());
}

function setUpTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const choose = (tab, focus) => {
    for (const one of tabs) {
      const isChosen = one === tab;
      one.setAttribute("aria-selected", isChosen);
      one.tabIndex = isChosen ? 0 : -1;
      $(one.getAttribute("aria-controls")).hidden = !isChosen;
    }
    if (focus) tab.focus();
    history.replaceState(null, "", `#${tab.id.slice(4)}`);
  };
  tabs.forEach((tab, place) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) choose(tabs[(place + step + tabs.length) % tabs.length], true);
    });
  });
  const wanted = $(`tab-${location.hash.slice(1)}`);
  if (wanted) choose(wanted);
}

function setUpSettings() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => {
    const theme = $("theme").value === "auto" ? (dark.matches ? "dark" : "light") : $("theme").value;
    document.documentElement.dataset.theme = theme;
  };
  for (const id of ["theme", "max-tokens", "steps", "temperature", "seed", "model"]) {
    const kept = localStorage.getItem(`presswork.${id}`);
    if (kept !== null && id !== "model") $(id).value = kept;
    $(id).addEventListener("change", () => localStorage.setItem(`presswork.${id}`, $(id).value));
  }
  $("key").value = sessionStorage.getItem("presswork.key") ?? "";
  $("key").addEventListener("change", () => {
    sessionStorage.setItem("presswork.key", $("key").value);
    loadModels();
  });
  $("theme").addEventListener("change", paint);
  dark.addEventListener("change", paint);
  paint();
}

async function loadModels() {
  try {
    const { data } = await api("v1/models");
    $("model").replaceChildren(...data.map(({ id }) => element("option", { value: id, textContent: id })));
    const kept = localStorage.getItem("presswork.model");
    if (data.some(({ id }) => id === kept)) $("model").value = kept;
    notice("");
  } catch (error) {
    notice(error.status === 401 ? "This server asks for an API key: give it in the settings." : error.message);
  }
}

/** Tell how far the default model is, until it is there; whether it was not there yet. */
async function waitUntilReady() {
  let hasWaited = false;
  for (;;) {
    const told = await fetch("health").then((response) => response.json()).catch(() => ({}));
    if (told.status === "ok") return hasWaited;
    hasWaited = true;
    if (told.status === "failed") {
      notice(told.error);
      return false;
    }
    if (!told.status) notice("The server does not answer.");
    else notice(`loading ${told.model}: ${Math.round(100 * (told.progress ?? 0))}%`, true);
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

function setUpCompare() {
  onSubmit($("compare-form"), async (signal) => {
    const messages = [{ role: "user", content: $("compare-input").value }];
    // One after the other: side by side they would share the machine, and neither time would be its own.
    for (const mode of ["diffusion", "ar"]) {
      const place = $(`compare-${mode}`);
      const view = canvasView();
      place.replaceChildren(view.node);
      const asked = { ...settings(), messages, mode };
      if (mode === "ar") delete asked.max_denoising_steps;
      await send(asked, signal, view);
      place.append(report(view));
    }
  });
}

setUpTabs();
setUpSettings();
setUpChat();
setUpCompare();
setUpSudoku();
setUpFill();
setUpEdit();
setUpSchema();
// A hint that a key is needed stays, unless the models are asked for again.
loadModels().then(waitUntilReady).then((hasWaited) => hasWaited && loadModels());
