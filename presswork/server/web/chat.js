// Conversations, kept in this browser and nowhere else.

import { $, element, notice, onSubmit, settings } from "./app.js";
import { send } from "./api.js";
import { canvasView, report } from "./canvas.js";

const STORE = "presswork.conversations";

function stored() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE) ?? "[]");
    return Array.isArray(found) ? found.filter((one) => Array.isArray(one?.messages)) : [];
  } catch {
    return [];
  }
}

export function setUpChat() {
  let conversations = stored();
  let current = null;

  const keep = () => {
    try {
      localStorage.setItem(STORE, JSON.stringify(conversations));
    } catch {
      notice("This browser keeps no more conversations: delete some.");
    }
  };

  const list = () => {
    $("conversations").replaceChildren(
      ...conversations.map((one) => {
        const title = one.messages[0]?.content.slice(0, 60) || "Empty";
        const open = element("button", { type: "button", textContent: title, onclick: () => show(one) });
        open.setAttribute("aria-current", String(one === current));
        const remove = element("button", { type: "button", className: "delete", textContent: "×", onclick: () => drop(one) });
        remove.setAttribute("aria-label", `Delete: ${title}`);
        return element("li", {}, open, remove);
      }),
    );
  };

  const entry = (role, ...children) =>
    element("li", { className: role }, element("div", { className: "role", textContent: role === "user" ? "You" : "Model" }), ...children);

  const show = (one) => {
    current = one;
    const shown = (one?.messages ?? []).map(({ role, content }) => entry(role, element("div", { className: "text", textContent: content })));
    $("messages").replaceChildren(...shown);
    list();
  };

  const drop = (one) => {
    conversations = conversations.filter((other) => other !== one);
    keep();
    show(one === current ? null : current);
  };

  $("new-chat").addEventListener("click", () => {
    show(null);
    $("chat-input").focus();
  });
  $("chat-input").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("chat-form").requestSubmit();
    }
  });

  onSubmit($("chat-form"), async (signal) => {
    const text = $("chat-input").value;
    if (!text.trim()) return;
    if (!current) {
      current = { messages: [] };
      conversations.unshift(current);
    }
    const own = current;
    own.messages.push({ role: "user", content: text });
    $("chat-input").value = "";
    show(own);
    const view = canvasView();
    const item = entry("assistant", view.node);
    $("messages").append(item);
    item.scrollIntoView({ block: "end" });
    const thinking = $("thinking").checked ? { reasoning_effort: "high" } : {};
    try {
      await send({ ...settings(), ...thinking, messages: own.messages }, signal, view);
    } catch (error) {
      item.append(element("div", { className: "stats failed", textContent: error.name === "AbortError" ? "stopped" : error.message }));
      // A question without an answer would break the turns of the next request.
      if (!view.written) {
        own.messages.pop();
        if (!own.messages.length) conversations = conversations.filter((other) => other !== own);
        $("chat-input").value = text;
      }
      throw error;
    } finally {
      if (view.written) own.messages.push({ role: "assistant", content: view.written });
      keep();
      list();
    }
    item.append(report(view));
    item.scrollIntoView({ block: "end" });
  });

  show(conversations[0] ?? null);
}
