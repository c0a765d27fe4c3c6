// Requests to the server that this page comes from.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const TOKEN = "paligemma-token";

export function setToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

export async function models() {
  const response = await request("v1/models");
  return (await response.json()).data.map((model) => model.id);
}

export async function objects(task, body, signal) {
  return (await request(`v1/${task}`, body, signal)).json();
}

// Yields the pieces of an answer as they are decoded, and ends with its reason.
export async function* pieces(body, signal) {
  const response = await request(
    "v1/chat/completions", { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Refused(0, "The server ended before the answer did.");
    const events = (unread + value).split(/\r?\n\r?\n/);
    unread = events.pop();
    for (const event of events) {
      const data = /^data: ?(.*)$/m.exec(event)?.[1];
      if (data === undefined) continue;
      if (data === "[DONE]") return;
      const message = JSON.parse(data);
      if (message.error) throw new Refused(0, message.error.message);
      for (const { delta, finish_reason } of message.choices) {
        yield { text: delta.content ?? "", reason: finish_reason };
      }
    }
  }
}

async function request(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  const method = body ? "POST" : "GET";
  let response;
  try {
    response = await fetch(
      path, { method, headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const found = await response.json().catch(() => ({}));
  throw new Refused(
    response.status,
    found.error?.message ?? `The server answered with status ${response.status}.`);
}
