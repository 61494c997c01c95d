// Talking to the server.

const field = (id) => document.getElementById(id);

class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(path, body, signal) {
  const key = field("key").value;
  const headers = { ...(body && { "content-type": "application/json" }), ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new ServerError(told?.error?.message ?? `the server answered ${response.status}`, response.status);
}

/** A whole answer. */
export async function api(path, body, signal) {
  return (await ask(path, body, signal)).json();
}

/** The data of each event of a stream. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const whole = held.split("\n\n");
      held = whole.pop();
      for (const one of whole) {
        const data = one.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
        if (data && data !== "[DONE]") yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Ask for a chat completion and show it as it comes.
 * `view` has frame(frame), text(piece), reasoning(piece), call(delta), end(reason, usage, timings).
 */
export async function send(asked, signal, view) {
  const drafts = asked.mode !== "ar";
  const body = { ...asked, stream: true, stream_options: { include_usage: true, drafts } };
  const started = performance.now();
  const response = await ask("v1/chat/completions", body, signal);
  let reason = null;
  for await (const chunk of events(response)) {
    if (chunk.error) throw new ServerError(chunk.error.message, chunk.error.code);
    const choice = chunk.choices[0];
    if (chunk.type === "diffusion_frame") view.frame(chunk);
    else if (choice) {
      if (choice.delta.reasoning_content) view.reasoning(choice.delta.reasoning_content);
      if (choice.delta.content) view.text(choice.delta.content);
      for (const call of choice.delta.tool_calls ?? []) view.call(call);
      reason = choice.finish_reason ?? reason;
    } else view.end(reason, chunk.usage, { ...chunk.timings, seen_s: (performance.now() - started) / 1000 });
  }
}
