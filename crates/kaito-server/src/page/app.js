// The whole page: settings that change, models, keys that work everywhere, and the beginning.

let settingsTimer = 0;
function changeSettings(change, redraw = false) {
  const conversation = current;
  change(conversation.settings);
  markSettings(conversation.settings);
  preference("settings", conversation.settings);
  clearTimeout(settingsTimer);
  if (conversation.messages.length) settingsTimer = setTimeout(() => keep(conversation), 300);
  if (redraw) showConversation(conversation);
}
// The system text stands above the conversation too.
$("fields").addEventListener("change", (event) => {
  if (event.target.id === "set-system" && !running.has(current.id) && !document.querySelector(".turn.editing")) showConversation(current, { scroll: false });
});

// ---- models

function showModels() {
  const list = models.list.length ? models.list : [{ id: info.name }];
  const adapters = list.filter((model) => model.parent);
  const option = (model) => el("option", { value: model.id }, model.id);
  const plain = list.filter((model) => !model.parent).map(option);
  $("model").replaceChildren(...plain, ...(adapters.length ? [el("optgroup", { label: "Adapters" }, ...adapters.map(option))] : []));
  const known = list.some((model) => model.id === current.settings.model);
  if (!known && models.list.length) {
    // The server may serve another model than when this conversation began.
    current.settings.model = "";
  }
  $("model").value = known ? current.settings.model : list[0].id;
  $("model").classList.toggle("single", list.length === 1);
  $("model").disabled = list.length === 1;
}
$("model").addEventListener("change", () => {
  changeSettings((settings) => { settings.model = $("model").value; });
  showUsed();
  if (!current.messages.length) showConversation(current);
});

async function refreshModels() {
  try { await fetchModels(); } catch (error) {
    if (error.status === 401) {
      if (await askForKey(sessionKey() ? error.message : "")) await refreshModels();
      return;
    }
    if (error.status === 404) { models.known = true; return; }
    return;
  }
  showModels();
  showUsed();
}

// ---- while the model loads

async function waitUntilReady() {
  for (;;) {
    const response = await fetch("healthz").catch(() => null);
    if (response && response.ok) { location.reload(); return; }
    const body = response ? await response.json().catch(() => null) : null;
    const words = body?.detail || body?.error?.message || "The server cannot be reached; trying again.";
    const part = /(\d+) %/.exec(words);
    const bar = part ? el("progress", { max: "100", value: part[1], "aria-label": "Loading" }) : null;
    const shown = $("banners").querySelector("[data-name=loading] span");
    if (shown && Boolean(bar) === Boolean(shown.parentElement.querySelector("progress"))) {
      if (shown.textContent !== words) shown.textContent = words;
      if (bar) shown.parentElement.querySelector("progress").value = part[1];
    } else banner("loading", words, bar);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

// ---- keys

function startFresh() {
  if (narrow.matches) panels.list.toggle(false);
  startNew();
  $("text").focus();
}
$("new").addEventListener("click", startFresh);
$("new-small").addEventListener("click", startFresh);

$("request").addEventListener("click", () => {
  // What Enter would send now; for an empty box, what was sent last.
  const words = $("text").value;
  let path = pathOf(current);
  if (words.trim() || attached.length) path = [...path, { role: "user", text: inTextMode() ? words : words.trim(), files: attached }];
  else while (path.length && path[path.length - 1].role === "assistant") path.pop();
  if (!path.length) path = [{ role: "user", text: inTextMode() ? "Once upon a time" : "What is Kaito?" }];
  try { showRequest(requestFor({ ...current.settings, model: current.settings.model || $("model").value }, path, info)); } catch (error) { refuse(current, error); }
});

document.addEventListener("keydown", (event) => {
  const control = event.ctrlKey || event.metaKey;
  const key = event.key.toLowerCase();
  if (event.key === "Escape" && !event.defaultPrevented && !document.querySelector("dialog[open]")) {
    if (stop()) event.preventDefault();
    else if (panels.settings.open && $("settings").contains(document.activeElement)) { panels.settings.toggle(false); $("settings-open").focus(); }
    return;
  }
  if (!control || event.altKey || $("dialog").open) return;
  const act = {
    k: () => { panels.list.toggle(true); $("search").focus(); $("search").select(); },
    b: () => panels.list.toggle(),
    ",": () => { panels.settings.toggle(); (panels.settings.open ? $("settings-close") : $("settings-open")).focus(); },
    "/": showKeys,
  }[key];
  if (event.shiftKey ? key !== "o" : !act) return;
  event.preventDefault();
  if (event.shiftKey) startFresh();
  else act();
});

document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); $("text").focus(); });
addEventListener("popstate", openFromAddress);
addEventListener("pagehide", () => { for (const { conversation } of running.values()) store.write(conversation); });

// A phone's keyboard would cover the page at once.
if (!onTouch.matches) $("text").focus();

async function openFromAddress() {
  const id = /^#c=([\w-]+)$/.exec(location.hash)?.[1];
  if (id && id === current.id) return;
  if (!id || !await openConversation(id)) startNew();
}

(async () => {
  await store.open();
  await openFromAddress();
  showList();
  showAttached();
  if (info.ready) refreshModels();
  else {
    $("send").disabled = true;
    waitUntilReady();
  }
})();
