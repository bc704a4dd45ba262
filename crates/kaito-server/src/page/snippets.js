// The request as code: what a person pastes into a terminal or a program.

const shellQuoted = (text) => "'" + text.replace(/'/g, "'\\''") + "'";
const baseAddress = () => new URL("v1", location.href).href;

function curlOf({ route, body }, withKey) {
  const lines = ["curl " + (body.stream ? "-N " : "") + new URL(route, location.href).href.replace(/#.*/, ""), "  -H 'Content-Type: application/json'"];
  if (withKey) lines.push('  -H "Authorization: Bearer $KAITO_API_KEY"');
  lines.push("  -d " + shellQuoted(JSON.stringify(body, null, 2)));
  return lines.join(" \\\n");
}

function pythonValue(value, indent) {
  const inner = indent + "    ";
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return value.length ? "[\n" + value.map((one) => inner + pythonValue(one, inner) + ",\n").join("") + indent + "]" : "[]";
  if (typeof value === "object") {
    return "{" + (Object.keys(value).length ? "\n" : "") + Object.entries(value).map(([key, one]) => inner + JSON.stringify(key) + ": " + pythonValue(one, inner) + ",\n").join("") + (Object.keys(value).length ? indent : "") + "}";
  }
  return JSON.stringify(value);
}

// What the openai package takes by name; the rest goes into extra_body.
const OPENAI_FIELDS = ["model", "messages", "prompt", "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "n", "stop", "logprobs", "top_logprobs", "response_format", "stream", "stream_options", "tools", "tool_choice"];

function pythonOf({ route, body }, withKey) {
  const chat = route.endsWith("chat/completions");
  const given = { model: "default", ...body }, extra = {};
  for (const key of Object.keys(given)) if (!OPENAI_FIELDS.includes(key)) { extra[key] = given[key]; delete given[key]; }
  if (given.stream_options) delete given.stream_options;
  if (Object.keys(extra).length) given.extra_body = extra;
  return [
    ...(withKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    "client = OpenAI(base_url=" + JSON.stringify(baseAddress()) + ", api_key=" + (withKey ? 'os.environ["KAITO_API_KEY"]' : '"none"') + ")",
    "stream = client." + (chat ? "chat.completions" : "completions") + ".create(",
    ...Object.entries(given).map(([key, value]) => "    " + key + "=" + pythonValue(value, "    ") + ","),
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    "        print(chunk.choices[0]." + (chat ? "delta.content" : "text") + ' or "", end="", flush=True)',
    "",
  ].join("\n");
}

async function showRequest(request) {
  const withKey = Boolean(sessionKey());
  const kinds = [["curl", curlOf(request, withKey), "bash"], ["Python", pythonOf(request, withKey), "python"], ["JSON", JSON.stringify(request.body, null, 2), "json"]];
  const code = el("div", { class: "answer" });
  const show = (at) => code.replaceChildren(codeElement(kinds[at][1], kinds[at][2]));
  const choice = el("fieldset", { class: "segments" }, el("legend", { class: "hidden" }, "Language"),
    ...kinds.map(([label], at) => el("label", {}, el("input", { type: "radio", name: "language", value: label, checked: at === 0, change: () => show(at) }), el("span", {}, label))));
  show(0);
  await ask("This request as code", [choice, code], [{ label: "Close", value: "" }]);
}
