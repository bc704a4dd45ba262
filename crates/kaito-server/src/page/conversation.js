// A conversation is a tree: editing a question or asking again adds a branch, and nothing is lost. `leaf` says which branch is shown.
// {id, title, named, created, updated, settings, leaf, chosen, messages: [{id, parent, role, text, files?, ...facts of an answer}]}
// `chosen` says for a message with several branches below it which of them was shown last.

const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

function newConversation(settings) {
  const now = Date.now();
  return { id: newId(), title: "New conversation", named: false, created: now, updated: now, settings: structuredClone(settings), leaf: null, chosen: {}, messages: [] };
}

const messageOf = (conversation, id) => conversation.messages.find((message) => message.id === id) || null;

// From the first message to the leaf.
function pathOf(conversation, leaf = conversation.leaf) {
  const byId = new Map(conversation.messages.map((message) => [message.id, message]));
  const path = [];
  for (let message = byId.get(leaf); message && path.length <= conversation.messages.length; message = byId.get(message.parent)) path.unshift(message);
  return path;
}

const siblingsOf = (conversation, message) => conversation.messages.filter((other) => other.parent === message.parent);

// Shows the branch of a message, down to the end that was shown last.
function showBranch(conversation, message) {
  for (const { id, parent } of pathOf(conversation)) conversation.chosen[parent] = id;
  let last = message;
  for (;;) {
    const next = conversation.messages.filter((other) => other.parent === last.id);
    if (!next.length) break;
    last = next.find((other) => other.id === conversation.chosen[last.id]) || next[next.length - 1];
  }
  conversation.leaf = last.id;
}

// An answer whose page was closed while it was written.
function closeBrokenAnswer(conversation) {
  const last = messageOf(conversation, conversation.leaf);
  if (!last || last.role !== "assistant" || last.end) return;
  if (last.text) Object.assign(last, { end: "failed", error: "The page was closed while this answer was written." });
  else removeMessage(conversation, last);
}

function addMessage(conversation, parent, role, text, more = {}) {
  for (const { id, parent: above } of pathOf(conversation)) conversation.chosen[above] = id;
  const message = { id: newId(), parent, role, text, created: Date.now(), ...more };
  conversation.messages.push(message);
  conversation.leaf = message.id;
  conversation.updated = message.created;
  if (role === "user" && !conversation.named && parent === null) conversation.title = titleFrom(text || more.files?.[0]?.name || "");
  return message;
}

// A message and all that follows it.
function removeMessage(conversation, message) {
  const gone = new Set([message.id]);
  for (const other of conversation.messages) if (gone.has(other.parent)) gone.add(other.id);
  conversation.messages = conversation.messages.filter((other) => !gone.has(other.id));
  const beside = conversation.messages.filter((other) => other.parent === message.parent).pop();
  if (beside) showBranch(conversation, beside);
  else conversation.leaf = message.parent;
}

function titleFrom(text) {
  const line = text.trim().split("\n")[0].replace(/\s+/g, " ");
  if (!line) return "New conversation";
  return line.length <= 60 ? line : line.slice(0, 60).replace(/\s+\S*$/, "") + "…";
}

// What the model reads of a message: its files before its words.
function wordsOf(message) {
  const files = (message.files || []).map(({ name, text }) => {
    const longest = Math.max(2, ...(text.match(/`+/g) || []).map((ticks) => ticks.length));
    const fence = "`".repeat(longest + 1);
    return name + ":\n" + fence + "\n" + text.replace(/\n$/, "") + "\n" + fence + "\n\n";
  });
  return files.join("") + message.text;
}

// ---- files of conversations

const FORMAT = "kaito-conversations";
const exported = (conversations) => JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 2) + "\n";

// Reads an exported file. Throws an Error that says what is wrong with it.
function importedFrom(text) {
  let file;
  try { file = JSON.parse(text); } catch { throw new Error("The file is not JSON."); }
  if (!file || file.format !== FORMAT || !Array.isArray(file.conversations)) {
    throw new Error('The file is not an export of this page: "format" must be "' + FORMAT + '".');
  }
  if (file.version !== 1) throw new Error("The file has version " + String(file.version).slice(0, 20) + "; this page reads version 1.");
  return file.conversations.map((given, at) => {
    const where = "conversations[" + at + "]";
    const need = (holds, what) => { if (!holds) throw new Error(where + ": " + what); };
    const isText = (value) => typeof value === "string";
    need(given && isText(given.id) && /^[\w-]{1,64}$/.test(given.id), '"id" must be 1 to 64 letters and digits.');
    need(isText(given.title), '"title" must be a text.');
    need(Array.isArray(given.messages), '"messages" must be a list.');
    const known = new Set();
    const messages = given.messages.map((message, place) => {
      const there = "messages[" + place + "]";
      need(message && isText(message.id) && !known.has(message.id), there + ' must have an "id" of its own.');
      need(message.parent === null || known.has(message.parent), there + '.parent must be null or the id of an earlier message.');
      need(["user", "assistant"].includes(message.role), there + '.role must be "user" or "assistant".');
      need(isText(message.text), there + ".text must be a text.");
      const files = message.files || [];
      need(Array.isArray(files) && files.every((one) => one && isText(one.name) && isText(one.text)), there + ".files must be a list of {name, text}.");
      need(message.tokens === undefined || isTokens(message.tokens), there + ".tokens must be a list of {text, logprob, top}.");
      known.add(message.id);
      return Object.fromEntries(Object.entries(message).filter(([key]) => MESSAGE_FIELDS.includes(key)));
    });
    const number = (value) => (Number.isFinite(value) ? value : Date.now());
    return {
      id: given.id, title: given.title.slice(0, 200), named: given.named === true, created: number(given.created), updated: number(given.updated),
      settings: checkedSettings(given.settings), leaf: known.has(given.leaf) ? given.leaf : messages[messages.length - 1]?.id ?? null, chosen: {}, messages,
    };
  });
}
const MESSAGE_FIELDS = ["id", "parent", "role", "text", "files", "created", "model", "end", "tokens", "usage", "seconds", "first", "error"];
const isTokens = (tokens) => Array.isArray(tokens) && tokens.every((token) => token && typeof token.text === "string" &&
  (token.logprob === null || Number.isFinite(token.logprob)) && Array.isArray(token.top) &&
  token.top.every((one) => Array.isArray(one) && typeof one[0] === "string" && Number.isFinite(one[1])));
