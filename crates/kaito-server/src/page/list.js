// The list of conversations: search, rename, delete, files.

const store = new Store();
const running = new Map();   // of conversations whose answer is being written: {controller, conversation}
let searchFound = null;      // ids that match, null where nothing is searched for

store.onproblem = (kind) => banner("storage", {
  absent: "This browser keeps nothing for this page, so conversations are gone when it is closed. Export what you want to keep.",
  full: "The browser's storage is full: the latest changes are kept in this tab only. Export them, or delete old conversations.",
  failed: "The browser could not keep the conversation; it is in this tab only. Export what you want to keep.",
}[kind]);

// Tabs tell each other what they changed.
const tabs = "BroadcastChannel" in window ? new BroadcastChannel("kaito") : null;
async function keep(conversation) {
  if (conversation.deleted) return false;
  const kept = await store.write(conversation);
  if (kept) tabs?.postMessage({ id: conversation.id });
  return kept;
}
if (tabs) {
  tabs.onmessage = async ({ data }) => {
    await store.refresh();
    showList();
    if (data.id === "*" && current.messages.length) { startNew(); return; }
    if (data.id === current.id && !running.has(current.id) && !document.querySelector(".turn.editing")) {
      const body = await store.read(current.id);
      if (body) showConversation(body);
      else startNew();
    }
  };
}

function ageOf(time) {
  const day = (when) => new Date(when).setHours(0, 0, 0, 0);
  const days = Math.round((day(Date.now()) - day(time)) / 86400000);
  return days <= 0 ? "Today" : days === 1 ? "Yesterday" : days < 7 ? "This week" : days < 31 ? "This month" : "Earlier";
}

function showList() {
  if ($("conversations").querySelector("input")) return;   // somebody is renaming
  const heads = store.list().filter((head) => !searchFound || searchFound.has(head.id));
  const parts = [];
  let group = "", list = null;
  for (const head of heads) {
    const age = ageOf(head.updated);
    if (age !== group) {
      group = age;
      list = el("ul", {});
      parts.push(el("h2", {}, age), list);
    }
    list.append(listEntry(head));
  }
  if (!heads.length) parts.push(el("p", { class: "help" }, searchFound ? "No conversation has these words." : "Conversations are kept in this browser, and nowhere else."));
  const kept = document.activeElement?.closest?.("#conversations [data-id]")?.dataset.id;
  $("conversations").replaceChildren(...parts);
  if (kept) ($("conversations").querySelector('[data-id="' + CSS.escape(kept) + '"] a') || $("conversations")).focus();
  $("export").disabled = $("delete-all").disabled = !store.heads.size;
}

function listEntry(head) {
  const link = el("a", { href: "#c=" + head.id, "aria-current": head.id === current.id ? "page" : null, click: () => { if (narrow.matches) panels.list.toggle(false); } }, head.title);
  const entry = el("li", { "data-id": head.id, class: running.has(head.id) ? "running" : "" }, link,
    iconButton("edit", "Rename: " + head.title, () => renameEntry(entry, head)),
    iconButton("delete", "Delete: " + head.title, () => deleteConversation(head)));
  return entry;
}

function renameEntry(entry, head) {
  const input = el("input", { "aria-label": "Title", maxlength: "200", value: head.title });
  let done = false;
  const finish = async (save) => {
    if (done) return;
    done = true;
    entry.replaceChildren();
    const title = input.value.trim();
    if (save && title && title !== head.title) {
      const conversation = head.id === current.id ? current : running.get(head.id)?.conversation || await store.read(head.id);
      if (conversation) {
        Object.assign(conversation, { title, named: true });
        await keep(conversation);
      }
    }
    showList();
    showTitle();
    $("conversations").querySelector('[data-id="' + head.id + '"] a')?.focus();
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) { event.preventDefault(); finish(true); }
    if (event.key === "Escape") { event.preventDefault(); event.stopPropagation(); finish(false); }
  });
  input.addEventListener("blur", () => finish(true));
  entry.replaceChildren(input);
  input.select();
}

// What still runs for a conversation ends, and does not bring it back.
function forget(id) {
  const run = running.get(id);
  if (id === current.id) current.deleted = true;
  if (!run) return;
  run.conversation.deleted = true;
  run.controller.abort();
}

async function deleteConversation(head) {
  if (!await confirmed("Delete this conversation?", "“" + head.title + "” and all its branches are deleted from this browser.", "Delete")) return;
  forget(head.id);
  const heads = store.list(), at = heads.findIndex((one) => one.id === head.id);
  await store.remove([head.id]);
  tabs?.postMessage({ id: head.id });
  if (head.id === current.id) startNew();
  showList();
  const next = heads[at + 1] || heads[at - 1];
  ($("conversations").querySelector('[data-id="' + next?.id + '"] a') || $("new")).focus();
  toast("The conversation is deleted.");
}

$("delete-all").addEventListener("click", async () => {
  const count = store.heads.size;
  if (!await confirmed("Delete all conversations?", plural(count, "conversation") + (count === 1 ? " is" : " are") + " deleted from this browser. There is no way back but an export.", "Delete all")) return;
  for (const id of store.heads.keys()) forget(id);
  await store.remove([...store.heads.keys()]);
  tabs?.postMessage({ id: "*" });
  startNew();
  showList();
  $("new").focus();
});

// ---- search

let searches = 0;
async function search() {
  const mine = ++searches;
  const words = $("search").value.trim();
  searchFound = words ? await store.search(words, () => mine === searches) : null;
  if (mine !== searches) return;
  showList();
  $("found").textContent = searchFound ? plural(searchFound.size, "conversation") + " found" : "";
}
$("search").addEventListener("input", search);
$("search").addEventListener("keydown", (event) => {
  const links = () => [...$("conversations").querySelectorAll("a")];
  if (event.key === "ArrowDown" && links().length) { event.preventDefault(); links()[0].focus(); }
  if (event.key === "Enter" && links().length) { event.preventDefault(); links()[0].click(); $("text").focus(); }
  if (event.key === "Escape" && $("search").value) { event.preventDefault(); event.stopPropagation(); $("search").value = ""; search(); }
});
$("conversations").addEventListener("keydown", (event) => {
  if (!["ArrowDown", "ArrowUp"].includes(event.key) || !event.target.matches("a")) return;
  event.preventDefault();
  const links = [...$("conversations").querySelectorAll("a")];
  const next = links[links.indexOf(event.target) + (event.key === "ArrowDown" ? 1 : -1)];
  (next || (event.key === "ArrowUp" ? $("search") : event.target)).focus();
});

// ---- files

$("export").addEventListener("click", async () => {
  const all = [];
  for (const head of store.list()) {
    const body = head.id === current.id ? current : await store.read(head.id);
    if (body) all.push(body);
  }
  download("kaito-conversations-" + new Date().toISOString().slice(0, 10) + ".json", exported(all));
  toast(plural(all.length, "conversation") + " exported.");
});
$("import").addEventListener("click", () => $("import-file").click());
$("import-file").addEventListener("change", async () => {
  const [file] = $("import-file").files;
  $("import-file").value = "";
  if (file) await importFile(file);
});

async function importFile(file) {
  let conversations;
  try { conversations = importedFrom(await file.text()); } catch (error) {
    await ask("This file cannot be imported", [el("p", {}, error.message)], [{ label: "Close", value: "" }]);
    return;
  }
  let added = 0;
  for (const conversation of conversations) {
    const own = store.heads.get(conversation.id);
    if (own && own.updated === conversation.updated) continue;
    // One that went on here since keeps its place; the file's comes beside it.
    if (own) conversation.id = newId();
    added += 1;
    if (!await keep(conversation) && store.database) break;
  }
  showList();
  toast(added ? plural(added, "conversation") + " imported." : "All of these conversations are here already.");
}
