// What the browser keeps: preferences (localStorage), the API key and a draft (for the session), conversations (IndexedDB).
// All of these may be forbidden, full or gone; the page then works from memory and says so.

const remembered = new Map();
function preference(key, value) {
  if (value === undefined) {
    try { return JSON.parse(localStorage.getItem("kaito." + key)) ?? remembered.get(key) ?? null; } catch { return remembered.get(key) ?? null; }
  }
  remembered.set(key, value);
  try { localStorage.setItem("kaito." + key, JSON.stringify(value)); } catch { /* kept in memory */ }
  return value;
}

// Kept until the tab is closed.
function ofSession(key, value) {
  if (value === undefined) {
    try { return sessionStorage.getItem("kaito." + key) ?? remembered.get(key) ?? ""; } catch { return remembered.get(key) ?? ""; }
  }
  remembered.set(key, value);
  try { sessionStorage.setItem("kaito." + key, value); } catch { /* kept in memory */ }
  return value;
}
const sessionKey = (value) => ofSession("key", value);

const settled = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

// Two stores: the heads (id, title, updated), which the list needs, and the bodies, which only an open conversation needs.
class Store {
  constructor() {
    this.database = null;
    this.heads = new Map();
    this.bodies = new Map();   // those that the database does not hold
    this.onproblem = () => {};
  }

  async open() {
    try {
      const request = indexedDB.open("kaito", 1);
      request.onupgradeneeded = () => {
        request.result.createObjectStore("heads", { keyPath: "id" });
        request.result.createObjectStore("bodies", { keyPath: "id" });
      };
      this.database = await settled(request);
      // Another tab with a newer page may want to change the stores.
      this.database.onversionchange = () => this.database.close();
      await this.refresh();
    } catch (error) {
      this.database = null;
      this.onproblem("absent", error);
    }
  }

  async refresh() {
    if (!this.database) return;
    const heads = await settled(this.database.transaction("heads").objectStore("heads").getAll());
    const unsaved = [...this.heads.values()].filter((head) => this.bodies.has(head.id));
    this.heads = new Map([...heads, ...unsaved].map((head) => [head.id, head]));
  }

  async read(id) {
    if (this.bodies.has(id)) return structuredClone(this.bodies.get(id));
    if (!this.database) return null;
    return (await settled(this.database.transaction("bodies").objectStore("bodies").get(id))) ?? null;
  }

  // Returns whether the browser has kept it.
  async write(conversation) {
    const head = { id: conversation.id, title: conversation.title, created: conversation.created, updated: conversation.updated };
    this.heads.set(head.id, head);
    const body = structuredClone(conversation);
    if (this.database) {
      try {
        const transaction = this.database.transaction(["heads", "bodies"], "readwrite");
        const done = new Promise((resolve, reject) => {
          transaction.oncomplete = resolve;
          transaction.onabort = () => reject(transaction.error || new Error("The transaction was aborted."));
        });
        done.catch(() => {});   // also where the next lines throw
        transaction.objectStore("heads").put(head);
        transaction.objectStore("bodies").put(body);
        await done;
        this.bodies.delete(body.id);
        this.onproblem(null);
        return true;
      } catch (error) {
        this.onproblem(error && error.name === "QuotaExceededError" ? "full" : "failed", error);
      }
    }
    this.bodies.set(body.id, body);
    return false;
  }

  async remove(ids) {
    for (const id of ids) { this.heads.delete(id); this.bodies.delete(id); }
    if (!this.database) return;
    const transaction = this.database.transaction(["heads", "bodies"], "readwrite");
    for (const id of ids) for (const name of ["heads", "bodies"]) transaction.objectStore(name).delete(id);
    await new Promise((resolve) => { transaction.oncomplete = transaction.onerror = transaction.onabort = resolve; });
    this.onproblem(null);
  }

  // Newest first.
  list() { return [...this.heads.values()].sort((one, other) => other.updated - one.updated); }

  // The ids of conversations that have the words in their title or text.
  async search(words, wanted = () => true) {
    const found = new Set();
    const needle = words.toLowerCase();
    for (const head of this.list()) {
      if (!wanted()) return found;
      if (head.title.toLowerCase().includes(needle)) { found.add(head.id); continue; }
      const body = await this.read(head.id).catch(() => null);
      if (body && body.messages.some((message) => message.text.toLowerCase().includes(needle))) found.add(head.id);
    }
    return found;
  }
}
