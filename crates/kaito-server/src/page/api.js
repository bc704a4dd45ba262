// Talking to the server: the list of models, and answers as they are written.

const info = JSON.parse($("info").textContent);
const models = { list: [], known: false };

// What went wrong, for a person: {message, status, code, wait} with wait in seconds where the server names it.
class Problem extends Error {
  constructor(message, { status = 0, code = null, param = null, wait = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, wait });
  }
}

function headers() {
  const key = sessionKey();
  return { "Content-Type": "application/json", ...(key ? { Authorization: "Bearer " + key } : {}) };
}

async function problemOf(response) {
  const body = await response.json().catch(() => null);
  const error = body && typeof body.error === "object" && body.error ? body.error : {};
  const message = error.message || (body && body.detail) || "The server answered with status " + response.status + ".";
  const wait = Number(response.headers.get("retry-after"));
  return new Problem(String(message), { status: response.status, code: error.code || null, param: error.param || null, wait: wait > 0 ? wait : null });
}

async function send(route, options) {
  let response;
  try { response = await fetch(route, options); } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached.");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function fetchModels() {
  const response = await send("v1/models", { headers: headers() });
  const body = await response.json().catch(() => null);
  const list = body && Array.isArray(body.data) ? body.data : [];
  models.list = list.filter((model) => model && typeof model.id === "string");
  models.known = true;
  return models.list;
}

const contextOf = (id) => models.list.find((model) => model.id === id)?.max_model_len ?? models.list[0]?.max_model_len ?? info.maxSeqLen ?? null;

// The data of each server-sent event.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "", data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const lines = buffer.split(/\r\n|\n|\r(?!$)/);
    buffer = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

// Yields {text, tokens, end, usage} as they come. Throws a Problem, also where the stream ends before the answer does.
async function* answers({ route, body }, signal) {
  const response = await send(route, { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
  if (!(response.headers.get("content-type") || "").includes("text/event-stream")) {
    throw new Problem("The server did not stream its answer. Something between this page and the server may have changed it.");
  }
  let ended = false;
  const stream = events(response);
  for (;;) {
    let next;
    try { next = await stream.next(); } catch (error) {
      if (error.name === "AbortError" || signal.aborted) throw new DOMException("stopped", "AbortError");
      break;
    }
    if (next.done || next.value === "[DONE]") break;
    let chunk;
    try { chunk = JSON.parse(next.value); } catch { throw new Problem("The server sent something that is no JSON: " + next.value.slice(0, 80)); }
    if (chunk.error) throw new Problem(String(chunk.error.message || "The server failed on this request."), { code: chunk.error.code || null });
    const choice = Array.isArray(chunk.choices) ? chunk.choices.find((one) => one.index === 0) : null;
    if (choice && choice.finish_reason) ended = true;
    yield {
      text: choice ? (choice.delta ? choice.delta.content || "" : choice.text || "") : "",
      tokens: choice ? tokensOf(choice.logprobs) : [],
      end: choice ? choice.finish_reason || null : null,
      usage: chunk.usage || null,
    };
  }
  if (!ended) throw new Problem("The connection broke off before the answer was complete.");
}

// The probabilities of either route as one shape: [{text, logprob, top: [[text, logprob]]}].
function tokensOf(logprobs) {
  if (!logprobs) return [];
  if (Array.isArray(logprobs.content)) {
    return logprobs.content.map((one) => ({ text: one.token, logprob: one.logprob, top: (one.top_logprobs || []).map((other) => [other.token, other.logprob]) }));
  }
  return (logprobs.tokens || []).map((text, at) => ({ text, logprob: logprobs.token_logprobs?.[at] ?? null, top: Object.entries(logprobs.top_logprobs?.[at] || {}).sort((one, other) => other[1] - one[1]) }));
}
