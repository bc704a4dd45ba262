// The settings of a conversation, and the body of a request that follows from them. A parameter is an entry of the table;
// an empty field is not sent, so that the server's own default holds.

const LENGTH_OF_TEXTS = 256;   // /v1/completions stops after 16 tokens by default, which is little to look at
const PARAMETERS = [
  { name: "temperature", label: "Temperature", kind: "number", min: 0, max: 2, step: 0.05, usual: "the model's own, else 1", neutral: 1, slider: true, help: "Low is predictable, high is varied; 0 always takes the likeliest token." },
  { name: "top_p", label: "Top-p", kind: "number", min: 0.01, max: 1, step: 0.01, usual: "the model's own, else 1", neutral: 1, slider: true, help: "Only the likeliest tokens that together have this probability." },
  { name: "max_tokens", label: "Longest answer", kind: "integer", min: 1, usual: "what the context has room for", usualOfText: String(LENGTH_OF_TEXTS), help: "In tokens." },
  { name: "top_k", label: "Top-k", kind: "integer", min: -1, usual: "the model's own, else off", help: "Only so many of the likeliest tokens; 0 is off.", more: true },
  { name: "min_p", label: "Min-p", kind: "number", min: 0, max: 1, step: 0.01, usual: "0", neutral: 0, slider: true, help: "Only tokens at least this likely, measured by the likeliest.", more: true },
  { name: "repetition_penalty", label: "Repetition penalty", kind: "number", min: 0.01, max: 2, step: 0.01, open: true, usual: "the model's own, else 1", neutral: 1, slider: true, help: "Above 1, tokens of the text so far become less likely.", more: true },
  { name: "presence_penalty", label: "Presence penalty", kind: "number", min: -2, max: 2, step: 0.1, usual: "0", neutral: 0, slider: true, help: "Taken from the score of every token that the answer has.", more: true },
  { name: "frequency_penalty", label: "Frequency penalty", kind: "number", min: -2, max: 2, step: 0.1, usual: "0", neutral: 0, slider: true, help: "The same, for each time that it has it.", more: true },
  { name: "seed", label: "Seed", kind: "integer", usual: "none: another answer each time", help: "The same seed and request give the same text.", more: true },
  { name: "min_tokens", label: "Shortest answer", kind: "integer", min: 0, usual: "0", help: "In tokens: until then it does not end.", more: true },
  { name: "stop", label: "Stop at", kind: "lines", most: 16, usual: "nothing", help: "Texts that end the answer, one a line; \\n is a line break.", more: true },
  { name: "bad_words", label: "Never say", kind: "lines", most: 64, usual: "nothing", help: "Words that the answer may not have, one a line.", more: true },
  { name: "logit_bias", label: "Logit bias", kind: "bias", usual: "none", help: "Token ids with what is added to their scores, −100 to 100: 15043: 5, 29889: −100", more: true },
  { name: "ignore_eos", label: "Go on after the end token", kind: "flag", help: "Write until the longest length is reached.", more: true },
];

const freshSettings = () => ({ model: "", mode: "", system: "", values: {}, schema: "", probabilities: false, extra: "" });

// Settings from a file or an older page, with everything that is unknown or of a wrong type left out.
function checkedSettings(given) {
  const settings = freshSettings();
  for (const [key, usual] of Object.entries(settings)) {
    if (key !== "values" && given && typeof given[key] === typeof usual) settings[key] = given[key];
  }
  if (!["", "chat", "text"].includes(settings.mode)) settings.mode = "";
  for (const { name, kind } of PARAMETERS) {
    const value = given?.values?.[name];
    if (typeof value === (kind === "flag" ? "boolean" : "string")) settings.values[name] = value;
  }
  return settings;
}

const modeOf = (settings, info) => (info.chatTemplate ? settings.mode || "chat" : "text");

// The value of a field as it is sent, undefined where it is empty. Throws an Error that says what is allowed.
function parameterValue(parameter, raw) {
  const { label, kind, min, max } = parameter;
  if (kind === "flag") return raw ? true : undefined;
  const text = (raw ?? "").trim();
  if (!text) return undefined;
  if (kind === "lines") {
    const lines = raw.split("\n").filter((line) => line !== "").map((line) => line.replace(/\\n/g, "\n").replace(/\\t/g, "\t"));
    if (lines.length > parameter.most) throw new Error(label + " has " + lines.length + " lines; at most " + parameter.most + " are allowed.");
    return lines;
  }
  if (kind === "bias") {
    const bias = {};
    for (const part of text.split(/[,\n]/).map((piece) => piece.trim()).filter(Boolean)) {
      const found = /^(\d+)\s*[:=]\s*([-−+]?\d+(?:\.\d+)?)$/.exec(part);
      const value = found ? Number(found[2].replace("−", "-")) : NaN;
      if (!(value >= -100 && value <= 100)) throw new Error(label + ' does not read "' + part.slice(0, 40) + '"; write a token id, a colon and a number from −100 to 100.');
      bias[found[1]] = value;
    }
    return bias;
  }
  const value = Number(text.replace("−", "-").replace(",", "."));
  if (!Number.isFinite(value)) throw new Error(label + " must be a number, not \"" + text.slice(0, 20) + "\".");
  if (kind === "integer" && !Number.isInteger(value)) throw new Error(label + " must be a whole number, not " + text + ".");
  const most = parameter.open ? undefined : max;
  if ((min !== undefined && value < min) || (most !== undefined && value > most)) {
    const range = min !== undefined && most !== undefined ? "between " + min + " and " + most : min !== undefined ? "at least " + min : "at most " + most;
    throw new Error(label + " must be " + range + ", not " + text + ".");
  }
  return value;
}

function parsedObject(label, text) {
  let value;
  try { value = JSON.parse(text); } catch (error) { throw new Error(label + " is not JSON: " + error.message + "."); }
  if (!value || typeof value !== "object" || Array.isArray(value)) throw new Error(label + " must be a JSON object.");
  return value;
}

// The route and body for an answer to `path`, whose last message is continued where `goOn`. Throws on settings that cannot be sent.
function requestFor(settings, path, info, goOn = false) {
  const chat = modeOf(settings, info) === "chat";
  const body = {};
  if (settings.model) body.model = settings.model;
  if (chat) {
    body.messages = path.map((message) => ({ role: message.role, content: wordsOf(message) }));
    if (settings.system.trim()) body.messages.unshift({ role: "system", content: settings.system });
    if (goOn) Object.assign(body, { add_generation_prompt: false, continue_final_message: true });
  } else body.prompt = path.map(wordsOf).join("");
  for (const parameter of PARAMETERS) {
    const value = parameterValue(parameter, settings.values[parameter.name]);
    if (value !== undefined) body[parameter.name] = value;
  }
  if (!chat) body.max_tokens ??= LENGTH_OF_TEXTS;
  if (settings.schema.trim()) {
    body.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema: parsedObject("The JSON schema", settings.schema) } };
  }
  if (settings.probabilities) Object.assign(body, chat ? { logprobs: true, top_logprobs: 5 } : { logprobs: 5 });
  Object.assign(body, { stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } });
  if (settings.extra.trim()) Object.assign(body, parsedObject("Other fields", settings.extra), { stream: true });
  return { route: chat ? "v1/chat/completions" : "v1/completions", body };
}
