// Asking for an answer, writing it down as it comes, and what to do where it fails.

const MOST_TRIES = 6;       // after which a person decides whether to wait on
const BETWEEN_SAVES = 500;

async function answer(conversation, question, tries = 0) {
  if (running.has(conversation.id)) return;
  let request;
  try { request = requestFor(conversation.settings, pathOf(conversation, question.id), info); } catch (error) { refuse(conversation, error); return; }
  await run(conversation, request, () => addMessage(conversation, question.id, "assistant", "", { model: conversation.settings.model || info.name }), { question, tries });
}

function regenerate(message) {
  if (running.has(current.id)) { toast("Wait for the answer, or stop it first."); return; }
  const question = messageOf(current, message.parent);
  if (question) answer(current, question);
}

async function goOn(message) {
  const conversation = current;
  if (running.has(conversation.id)) return;
  let request;
  try { request = requestFor(conversation.settings, pathOf(conversation, message.id), info, true); } catch (error) { refuse(conversation, error); return; }
  await run(conversation, request, () => message, { tries: MOST_TRIES });
}

// Settings that cannot be sent.
function refuse(conversation, error) {
  const wrong = markSettings(conversation.settings);
  showUnanswered();
  toast(error.message);
  if (wrong) openSetting([...fields].find(([, entry]) => entry === wrong)[0]);
}

async function run(conversation, request, place, { question = null, tries }) {
  const controller = new AbortController();
  const message = place();
  const before = { text: message.text, generated: message.usage?.completion_tokens || 0, seconds: message.seconds || 0 };
  delete message.end;
  delete message.error;
  problems.delete(conversation.id);
  const asked = performance.now();
  running.set(conversation.id, { controller, conversation, message, asked });
  const shown = () => current.id === conversation.id;
  if (shown()) showConversation(conversation);
  showList();
  keep(conversation).then(showList);
  const waiting = setInterval(() => { if (!message.text && shown()) turns.get(message.id)?.showTools(); }, 1000);
  let first = 0, generated = 0, saved = asked, drawn = true, problem = null;
  const draw = () => {
    drawn = true;
    const turn = shown() && turns.get(message.id);
    if (!turn) return;
    const follow = atEnd();
    const news = turn.showText(false);
    speak(news);
    turn.showTools();
    if (follow) toEnd();
    showJump();
    showUsed();
  };
  $("spoken").replaceChildren();
  try {
    for await (const { text, tokens, end, usage } of answers(request, controller.signal)) {
      const now = performance.now();
      if (text && !first) first = now;
      message.text += text;
      if (tokens.length) (message.tokens ||= []).push(...tokens);
      generated = usage ? usage.completion_tokens : generated + (text ? 1 : 0);
      if (usage) message.usage = { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens };
      else if (first && !message.usage) message.usage = { prompt_tokens: 0, completion_tokens: generated };
      else if (message.usage && text) message.usage.completion_tokens = generated;
      if (first) {
        message.first ??= (first - asked) / 1000;
        message.seconds = before.seconds + (now - first) / 1000;
      }
      if (end) message.end = end;
      if (drawn) { drawn = false; requestAnimationFrame(draw); }
      if (now - saved > BETWEEN_SAVES) { saved = now; keep(conversation); }
    }
  } catch (error) {
    if (error.name === "AbortError") message.end = "stopped";
    else problem = error instanceof Problem ? error : new Problem("This page failed: " + error.message);
  }
  clearInterval(waiting);
  running.delete(conversation.id);
  // What was asked for before a continuation counts with it.
  if (before.generated && message.usage && message.text !== before.text) {
    message.usage.completion_tokens += before.generated;
    message.usage.prompt_tokens = Math.max(0, message.usage.prompt_tokens - before.generated);
  }
  if (problem) {
    message.end = "failed";
    message.error = problem.message;
  }
  conversation.updated = Date.now();
  const nothing = !message.text && question;
  if (nothing && (problem || message.end === "stopped")) {
    // An earlier answer of the question is shown again, unless there is something to say about this one.
    removeMessage(conversation, message);
    if (problem) {
      conversation.leaf = question.id;
      problems.set(conversation.id, Object.assign(problem, { tries }));
    }
  }
  await keep(conversation);
  if (shown()) finishTurn(conversation, message);
  showList();
  if (problem?.status === 401 && !nothing && shown() && await askForKey(sessionKey() ? problem.message : "")) goOn(message);
}

// To screen readers, each part once.
function speak(news) {
  for (const line of news.split("\n")) if (line.trim()) $("spoken").append(el("p", {}, line));
}

function finishTurn(conversation, message) {
  const turn = turns.get(message.id);
  if (!turn || !messageOf(conversation, message.id)) {
    const focused = document.activeElement === document.body || document.activeElement === $("send");
    showConversation(conversation);
    if (focused && !onTouch.matches) $("text").focus();
    return;
  }
  const follow = atEnd();
  turn.tokens = false;
  const news = turn.showText(true);
  speak(news);
  turn.update();
  for (const other of turns.values()) other.showTools();
  showSending();
  showUsed();
  if (follow) toEnd();
  showJump();
}

function stop() {
  const run = running.get(current.id);
  if (run) run.controller.abort();
  return Boolean(run);
}

// ---- what to do about a problem

function problemCard(problem, conversation, question) {
  const again = () => answer(conversation, question);
  const buttons = [], hints = [];
  const button = (label, click, kind = "") => buttons.push(el("button", { type: "button", class: kind, click }, label));
  const { status, code, param } = problem;
  const field = (param || "").split(/[.[]/)[0];
  const setting = { response_format: "schema", logprobs: "probabilities", top_logprobs: "probabilities" }[field] || field;
  let waits = false;
  if (status === 401) {
    button("Enter the key", async () => { if (await askForKey(sessionKey() ? problem.message : "")) { refreshModels(); again(); } }, "main");
  } else if (code === "context_length_exceeded") {
    hints.push("Start a new conversation, shorten the question, or take files out of it.");
    button("New conversation", startFresh, "main");
  } else if (code === "model_not_found") {
    hints.push("Choose another model.");
    button("Choose a model", async () => { await refreshModels(); $("model").focus(); }, "main");
  } else if (code === "invalid_json_schema") {
    button("Open the schema", () => openSetting("schema"), "main");
  } else if (fields.has(setting)) {
    button("Open this setting", () => openSetting(setting), "main");
  } else if (status === 400 && /chat template/.test(problem.message) && !inTextMode()) {
    hints.push("Such a model goes on with a text.");
    button("Switch to Text", () => { changeSettings((settings) => { settings.mode = "text"; }, true); again(); }, "main");
  } else if (status === 429 || status === 503) {
    hints.push(status === 429 ? "Others are being answered first." : "");
    waits = problem.tries < MOST_TRIES;
  } else if (status === 0 && !code) hints.push("Check that the server runs and that this device reaches it.");
  if (status !== 401) button(waits ? "Try now" : "Try again", again);
  const words = el("p", {}, problem.message + (hints.filter(Boolean).length ? " " + hints.join(" ") : ""));
  const card = el("div", { class: "unanswered bad", role: "alert" }, words, el("div", { class: "buttons" }, ...buttons));
  if (waits) countDown(card, problem, conversation, question);
  return card;
}

function countDown(card, problem, conversation, question) {
  let left = Math.ceil(problem.wait || 2);
  const words = el("span", { class: "wait" }, "Trying again in " + left + " s.");
  const leave = el("button", { type: "button", class: "plain", click: () => { problem.tries = MOST_TRIES; showUnanswered(); } }, "Do not wait");
  card.querySelector(".buttons").append(leave, words);
  const tick = () => {
    // The card may be gone, or another conversation shown.
    if (!card.isConnected) return;
    words.textContent = left > 0 ? "Trying again in " + left + " s." : "Trying again.";
    if (left-- <= 0) { answer(conversation, question, problem.tries + 1); return; }
    setTimeout(tick, 1000);
  };
  queueMicrotask(tick);
}
