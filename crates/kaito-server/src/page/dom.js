"use strict";
// Elements of the document. Nothing here or elsewhere reads text as HTML: text becomes text nodes.

const $ = (id) => document.getElementById(id);

// el("button", {class: "plain", click: act}, "Copy"): functions listen, strings are attributes, true is a bare attribute. A child may
// be a list of children: an answer can have more of them than a call takes arguments.
function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  for (const child of children.flat()) if (child != null) element.append(child);
  return element;
}

function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  picture.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", "#i-" + name);
  picture.append(use);
  return picture;
}

function iconButton(name, label, click, attributes = {}) {
  return el("button", { type: "button", class: "plain icon", "aria-label": label, title: label, click, ...attributes }, icon(name));
}

const plural = (count, word) => count.toLocaleString("en") + " " + word + (count === 1 ? "" : "s");

// ---- short messages

let toastTimer = 0;
function toast(words) {
  clearTimeout(toastTimer);
  $("toast").textContent = words;
  $("toast").classList.add("shown");
  toastTimer = setTimeout(() => $("toast").classList.remove("shown"), 4000);
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages without TLS have no clipboard but on localhost; a selection can be copied everywhere.
    const area = el("textarea", { class: "hidden", "aria-hidden": "true", readonly: true });
    area.value = text;
    const host = button.closest("dialog") || document.body;
    host.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    button.focus();
    if (!copied) { toast("The browser does not let this page copy. Select the text and press Ctrl+C."); return; }
  }
  toast("Copied.");
  const use = button.querySelector("use");
  if (!use) return;
  use.setAttribute("href", "#i-done");
  setTimeout(() => use.setAttribute("href", "#i-copy"), 1500);
}

function download(name, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- the dialog: one at a time; resolves to what was chosen, or null

let dialogDone = null;
async function ask(title, body, buttons) {
  const dialog = $("dialog");
  if (dialog.open) await new Promise((closed) => { dialog.addEventListener("close", closed, { once: true }); dialog.close(); });
  const row = el("div", { class: "buttons" }, ...buttons.map(({ label, value, kind }) => (value
    ? el("button", { value, class: kind || "" }, label)
    : el("button", { type: "button", click: () => dialog.close() }, label))));
  $("dialog-form").replaceChildren(el("h2", { id: "dialog-title" }, title), ...body, row);
  return new Promise((resolve) => {
    dialogDone = resolve;
    dialog.returnValue = "";
    dialog.showModal();
  });
}
$("dialog").addEventListener("close", () => {
  const done = dialogDone;
  dialogDone = null;
  if (done) done($("dialog").returnValue || null);
});
$("dialog").addEventListener("cancel", () => { $("dialog").returnValue = ""; });

const confirmed = (title, words, label) => ask(title, [el("p", {}, words)], [
  { label: "Cancel", value: "" },
  { label, value: "yes", kind: "danger" },
]);
