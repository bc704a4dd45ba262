// The conversation that is shown: a turn for each message of the branch, with what can be done with it.

let current = newConversation(checkedSettings(preference("settings")));
const turns = new Map();      // of each message shown: its Turn
const problems = new Map();   // of conversations whose last question failed: the Problem, until it is asked again

const atEnd = () => $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 80;
function toEnd() { $("scroll").scrollTop = $("scroll").scrollHeight; }
function showJump() { $("to-end").hidden = atEnd(); }
$("scroll").addEventListener("scroll", showJump, { passive: true });
$("to-end").addEventListener("click", () => { toEnd(); $("text").focus(); });

const inTextMode = () => modeOf(current.settings, info) === "text";

class Turn {
  constructor(message) {
    this.message = message;
    this.answer = message.role === "assistant";
    this.said = el("div", { class: "said" });
    this.notes = el("div", { class: "notes" });
    this.tools = el("div", { class: "tools" });
    const who = this.answer ? message.model || "Answer" : "You";
    this.element = el("article", { class: "turn " + (this.answer ? "answer" : "question"), "data-id": message.id, "aria-label": this.answer ? "Answer" : "Question" },
      el("h2", { class: "hidden" }, who), this.said, this.notes, this.tools);
    this.markdown = null;
    this.tokens = false;   // whether its tokens are shown in place of its text
    this.update();
  }

  get busy() { return running.get(current.id)?.message === this.message; }

  update() {
    const { message, busy } = this;
    this.element.classList.toggle("writing", busy);
    this.element.setAttribute("aria-busy", String(busy));
    this.showText(!busy);
    this.showNotes();
    this.showTools();
  }

  // Builds what changed of the text; returns what is finished of it since.
  showText(finished) {
    const { message } = this;
    if (this.tokens) return "";
    if (this.answer && !inTextMode()) {
      if (!this.markdown) {
        this.said.replaceChildren();
        this.said.classList.add("markdown");
        this.markdown = new MarkdownView(this.said);
      }
      return this.markdown.update(message.text.trimStart(), finished);
    }
    const files = (message.files || []).map((file) => el("details", { class: "file" }, el("summary", {}, icon("file"), file.name, el("small", {}, sizeOf(file.text))), el("pre", { tabindex: "0", role: "region", "aria-label": file.name }, file.text)));
    this.said.replaceChildren(...files, ...(message.text || !files.length ? [el("span", { class: "words" }, message.text)] : []));
    return finished ? message.text : "";
  }

  // Why an answer ended before its end, and the button that goes on with it.
  showNotes() {
    const { end, error } = this.message;
    const words = {
      length: lengthHint, stopped: () => "You stopped this answer.", edited: () => "You edited this answer.", failed: () => error || "The answer broke off.",
    }[this.answer && !this.busy ? end : ""];
    const failed = end === "failed";
    this.notes.replaceChildren(...(words ? [el("div", { class: failed ? "note bad" : "note", role: failed ? "alert" : null }, el("p", {}, words(this.message)),
      this.message.text ? el("button", { type: "button", class: "small", "aria-label": "Continue this answer", click: () => goOn(this.message) }, "Continue") : null)] : []));
  }

  showTools() {
    if (this.element.classList.contains("editing")) return;
    const { message, busy, answer } = this;
    const tools = [];
    const siblings = siblingsOf(current, message);
    if (siblings.length > 1) tools.push(branchChoice(message, siblings));
    if (!busy) {
      const copyButton = iconButton("copy", answer ? "Copy the answer" : "Copy the question", () => copy(inTextMode() ? pathOf(current).map(wordsOf).join("") : message.text, copyButton));
      if (inTextMode() && answer) copyButton.title = "Copy the text";
      tools.push(copyButton);
      tools.push(iconButton("edit", inTextMode() ? "Edit the text" : answer ? "Edit the answer" : "Edit the question", () => this.edit()));
      if (answer) {
        tools.push(iconButton("again", "Write another answer", () => regenerate(message)));
        if (message.tokens?.length) tools.push(iconButton("tokens", "Token probabilities", () => this.toggleTokens(), { "aria-pressed": String(this.tokens) }));
      }
      if (!inTextMode()) tools.push(iconButton("delete", answer ? "Delete the answer" : "Delete the question", () => deleteTurn(message)));
    }
    const waited = busy && !message.text ? (performance.now() - running.get(current.id).asked) / 1000 : 0;
    const facts = waited >= 1 ? "waiting for the first token, " + waited.toFixed(0) + " s" : answer ? factsOf(message) : "";
    this.tools.replaceChildren(...tools, ...(facts ? [el("span", { class: "facts" }, facts)] : []));
  }

  toggleTokens() {
    this.tokens = !this.tokens;
    this.markdown = null;
    this.said.classList.remove("markdown");
    if (this.tokens) this.said.replaceChildren(tokenView(this.message.tokens));
    else this.showText(true);
    this.showTools();
    this.tools.querySelector("[aria-pressed]").focus();
  }

  edit() {
    const { message } = this;
    const whole = inTextMode() && this.answer, own = this.answer && !whole;
    const area = el("textarea", { "aria-label": whole ? "The text" : own ? "The answer" : "Your question", rows: "3" });
    area.value = whole ? pathOf(current, message.id).map(wordsOf).join("") : message.text;
    const close = () => {
      this.element.classList.remove("editing");
      this.markdown = null;
      this.said.classList.remove("markdown");
      this.update();
      this.tools.querySelector("use[href='#i-edit']")?.closest("button").focus();
    };
    const submit = () => {
      if (!area.value.trim() && !(message.files || []).length) return;
      if (running.has(current.id)) { toast("Wait for the answer, or stop it first."); return; }
      if (own && area.value === message.text) { close(); return; }
      const more = own ? { model: message.model, end: "edited" } : !whole && message.files ? { files: message.files } : {};
      const added = addMessage(current, whole ? null : message.parent, own ? "assistant" : "user", area.value, more);
      showConversation(current, { scroll: !own });
      if (own) keep(current);
      else answer(current, added);
      $("text").focus();
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !this.answer && !onTouch.matches) { event.preventDefault(); submit(); }
      if (event.key === "Escape") { event.preventDefault(); event.stopPropagation(); close(); }
    });
    this.element.classList.add("editing");
    this.said.classList.remove("markdown");
    this.said.replaceChildren(area);
    this.tools.replaceChildren(
      el("button", { type: "button", class: "main", click: submit }, whole ? "Go on from here" : own ? "Keep" : "Send"),
      el("button", { type: "button", click: close }, "Cancel"));
    fit(area);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}

async function deleteTurn(message) {
  if (running.has(current.id)) { toast("Wait for the answer, or stop it first."); return; }
  const count = current.messages.filter((other) => pathOf(current, other.id).includes(message)).length - 1;
  if (!await confirmed("Delete this " + (message.role === "user" ? "question" : "answer") + "?", count ? "What follows it goes with it: " + plural(count, "message") + ", on all branches." : "There is no way back.", "Delete")) return;
  removeMessage(current, message);
  if (current.messages.length) await keep(current);
  else {
    await store.remove([current.id]);
    startNew();
  }
  showConversation(current, { scroll: false });
  showList();
  $("text").focus();
}

function branchChoice(message, siblings) {
  const at = siblings.indexOf(message);
  const step = (by, label, name) => iconButton(name, label, () => {
    showBranch(current, siblings[at + by]);
    keep(current);
    showConversation(current, { scroll: false });
    const tools = turns.get(siblings[at + by].id)?.tools;
    (tools?.querySelector("[data-step='" + by + "']:not(:disabled)") || tools?.querySelector("[data-step]:not(:disabled)"))?.focus();
  }, { "data-step": String(by), disabled: !siblings[at + by] || running.has(current.id) });
  return el("span", { class: "branches", role: "group", "aria-label": "Version " + (at + 1) + " of " + siblings.length },
    step(-1, "Previous version", "left"), el("span", {}, at + 1 + " / " + siblings.length), step(1, "Next version", "right"));
}

function sizeOf(text) {
  const bytes = new Blob([text]).size;
  return bytes < 1024 ? bytes + " B" : (bytes / 1024).toFixed(bytes < 10240 ? 1 : 0) + " KiB";
}

function lengthHint(message) {
  const context = contextOf(message.model || current.settings.model);
  const total = message.usage ? message.usage.prompt_tokens + message.usage.completion_tokens : 0;
  if (context && total >= context) return "The context is full: its " + context.toLocaleString("en") + " tokens are used. Start a new conversation, or edit an earlier question.";
  return "The answer reached its longest length" + (message.usage ? ", " + plural(message.usage.completion_tokens, "token") : "") + "; the settings allow more.";
}

function factsOf(message) {
  const facts = [];
  const count = message.usage?.completion_tokens;
  if (count) {
    facts.push(plural(count, "token"));
    if (count > 1 && message.seconds > 0) facts.push(((count - 1) / message.seconds).toFixed(1) + " tokens/s");
  }
  if (message.first > 0) facts.push("first after " + (message.first < 10 ? message.first.toFixed(2) : message.first.toFixed(0)) + " s");
  return facts.join(" · ");
}

// ---- tokens and what else was likely

function tokenView(tokens) {
  const view = el("div", { class: "tokens", role: "group", "aria-label": "Tokens of the answer" });
  const tip = el("div", { class: "tip", hidden: true });
  const percent = (logprob) => (logprob === null ? "–" : (Math.exp(logprob) * 100).toFixed(1) + " %");
  const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣") || "∅";
  const show = (token, chip) => {
    const rows = token.top.some(([text]) => text === token.text) ? token.top : [[token.text, token.logprob], ...token.top];
    tip.replaceChildren(...rows.map(([text, logprob]) => {
      const bar = el("span", { class: "bar" });
      bar.style.width = Math.exp(logprob ?? -99) * 100 + "%";
      return el("div", { class: text === token.text ? "row chosen" : "row" }, el("code", {}, visible(text)), el("span", { class: "track" }, bar), el("span", {}, percent(logprob)));
    }));
    tip.hidden = false;
    const box = view.getBoundingClientRect(), at = chip.getBoundingClientRect();
    tip.style.left = Math.max(0, Math.min(at.left - box.left, box.width - tip.offsetWidth)) + "px";
    tip.style.top = at.bottom - box.top + 4 + "px";
  };
  const chips = tokens.map((token, at) => {
    const chance = token.logprob === null ? 1 : Math.exp(token.logprob);
    const level = chance > 0.9 ? 4 : chance > 0.6 ? 3 : chance > 0.3 ? 2 : chance > 0.1 ? 1 : 0;
    const others = token.top.filter(([text]) => text !== token.text).slice(0, 4).map(([text, logprob]) => visible(text) + " " + percent(logprob));
    return el("span", {
      class: "token p" + level, role: "button", tabindex: at ? "-1" : "0", "aria-label": visible(token.text) + ", " + percent(token.logprob) + (others.length ? "; else " + others.join(", ") : ""),
      mouseenter: (event) => show(token, event.currentTarget), focus: (event) => show(token, event.currentTarget),
      mouseleave: () => { tip.hidden = true; }, blur: () => { tip.hidden = true; },
    }, token.text.replace(/\n/g, "↵\n") || "∅");
  });
  view.append(...chips, tip);
  view.addEventListener("keydown", (event) => {
    const at = chips.indexOf(document.activeElement);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: chips.length - 1 }[event.key];
    if (at < 0 || !chips[next]) return;
    event.preventDefault();
    chips[at].tabIndex = -1;
    chips[next].tabIndex = 0;
    chips[next].focus();
  });
  return view;
}

// ---- the whole of it

const SUGGESTIONS = {
  demo: ["What is a workspace?", "Which presets are there?", "What does the temperature do?", "Why does my pod stay pending?"],
  chat: ["Explain how a transformer writes text, in five sentences.", "Write a Python function that merges two sorted lists.", "Compare TCP and UDP in a table.", "Help me word a friendly reminder."],
  text: ["Once upon a time", "The three laws of thermodynamics are:\n1.", "def fibonacci(n):\n"],
};

function emptyView() {
  const kind = inTextMode() ? "text" : /(^|[/-])demo\b/i.test(info.name) ? "demo" : "chat";
  const context = contextOf(current.settings.model);
  return el("div", { class: "empty" },
    el("h2", {}, kind === "text" ? "Begin a text" : "What would you like to know?"),
    el("p", {}, kind === "text" ? info.name + " goes on with what you write." : info.name + " answers" + (context ? "; it reads up to " + context.toLocaleString("en") + " tokens at a time" : "") + ". What you write goes to this server alone."),
    el("div", { class: "suggestions" }, ...SUGGESTIONS[kind].map((words) => el("button", { type: "button", click: () => { setCompose(words); } }, words))));
}

function showTitle() {
  $("title").textContent = current.title;
  document.title = (current.messages.length ? current.title + " · " : "") + info.name + " · Kaito";
}

function showConversation(conversation, { scroll = true } = {}) {
  current = conversation;
  turns.clear();
  const path = pathOf(current);
  $("log").classList.toggle("text", inTextMode());
  const parts = [];
  if (!inTextMode() && current.settings.system.trim()) {
    parts.push(el("button", { type: "button", class: "system", title: "Edit the system text", click: () => openSetting("system") }, el("strong", {}, "System "), current.settings.system.trim().slice(0, 300)));
  }
  for (const message of path) {
    const turn = new Turn(message);
    turns.set(message.id, turn);
    parts.push(turn.element);
  }
  if (!path.length) parts.push(emptyView());
  $("log").replaceChildren(...parts);
  for (const part of $("log").querySelectorAll(".last")) part.classList.remove("last");
  if (path.length) turns.get(path[path.length - 1].id).element.classList.add("last");
  showUnanswered();
  showTitle();
  showSettings(current.settings);
  showModels();
  showSending();
  showUsed();
  const hash = current.messages.length ? "#c=" + current.id : "#";
  if (location.hash !== hash && !(hash === "#" && !location.hash)) history.pushState(null, "", current.messages.length ? hash : location.pathname + location.search);
  for (const link of $("conversations").querySelectorAll("a")) {
    if (link.getAttribute("href") === hash) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!path.length) $("scroll").scrollTop = 0;
  else if (scroll) toEnd();
  showJump();
}

function startNew() {
  showConversation(newConversation(checkedSettings(preference("settings"))));
}

async function openConversation(id) {
  const known = running.get(id)?.conversation || (id === current.id ? current : await store.read(id).catch(() => null));
  if (!known) return false;
  known.settings = checkedSettings(known.settings);
  if (!running.has(id)) closeBrokenAnswer(known);
  showConversation(known);
  return true;
}

// A card below a question that has no answer: what went wrong and what to do, or just the offer to ask again.
function showUnanswered() {
  $("log").querySelector(".unanswered")?.remove();
  const last = messageOf(current, current.leaf);
  if (!last || last.role !== "user" || running.has(current.id)) return;
  const problem = problems.get(current.id);
  const earlier = current.messages.filter((message) => message.parent === last.id).pop();
  const card = problem ? problemCard(problem, current, last) : el("div", { class: "unanswered" }, el("p", {}, "This question has no answer yet."),
    el("div", { class: "buttons" }, el("button", { type: "button", click: () => answer(current, last) }, "Ask again")));
  if (earlier) {
    card.querySelector(".buttons").append(el("button", { type: "button", class: "plain", click: () => {
      problems.delete(current.id);
      showBranch(current, earlier);
      showConversation(current);
    } }, "Show the earlier answer"));
  }
  const follow = atEnd();
  $("log").append(card);
  if (follow) toEnd();
}

// How much of the context the branch has used.
function showUsed() {
  const last = pathOf(current).reverse().find((message) => message.usage);
  const context = contextOf(current.settings.model);
  const used = last ? last.usage.prompt_tokens + last.usage.completion_tokens : 0;
  $("used").textContent = used && context ? used.toLocaleString("en") + " of " + context.toLocaleString("en") + " tokens" : used ? plural(used, "token") : "";
  $("used").classList.toggle("near", Boolean(context) && used > context * 0.85);
  $("used").title = used && context ? Math.round(used / context * 100) + " % of the context is used" : "";
}
