// The panels beside the conversation. On a wide window they stand in the page; on a narrow one they are dialogs: the list a drawer,
// the settings a sheet, so that neither takes room from the message box.

const narrow = matchMedia("(max-width: 60rem)");

class Panel {
  constructor({ content, place, dialog, button, key, shownAtFirst }) {
    Object.assign(this, { content, place, dialog, button, key });
    this.shown = preference(key) ?? shownAtFirst;   // on a wide window; a narrow one begins with the conversation alone
    this.dialog.addEventListener("close", () => this.update());
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
    narrow.addEventListener("change", () => this.arrange());
    this.arrange();
  }

  arrange() {
    if (this.dialog.open) this.dialog.close();
    (narrow.matches ? this.dialog : this.place).append(this.content);
    this.update();
  }

  get open() { return narrow.matches ? this.dialog.open : this.shown; }

  update() {
    this.place.hidden = narrow.matches || !this.shown;
    this.button.setAttribute("aria-expanded", String(this.open));
    document.body.classList.toggle("no-" + this.key, !this.open);
  }

  toggle(open = !this.open) {
    if (narrow.matches) {
      if (open && !this.dialog.open) this.dialog.showModal();
      if (!open && this.dialog.open) this.dialog.close();
    } else {
      this.shown = open;
      preference(this.key, open);
    }
    this.update();
  }
}

const panels = {
  list: new Panel({ content: $("list"), place: $("list-place"), dialog: $("drawer"), button: $("list-open"), key: "list", shownAtFirst: true }),
  settings: new Panel({ content: $("settings"), place: $("settings-place"), dialog: $("sheet"), button: $("settings-open"), key: "settings", shownAtFirst: false }),
};
$("list-open").addEventListener("click", () => { panels.list.toggle(true); if (!narrow.matches) $("list-close").focus(); });
$("list-close").addEventListener("click", () => { panels.list.toggle(false); $("list-open").focus(); });
$("settings-open").addEventListener("click", () => panels.settings.toggle());
$("settings-close").addEventListener("click", () => { panels.settings.toggle(false); $("settings-open").focus(); });

// ---- colours

function applyTheme(choice) {
  if (choice) document.documentElement.dataset.theme = choice;
  else delete document.documentElement.dataset.theme;
  for (const input of $("theme").querySelectorAll("input")) input.checked = input.value === choice;
}
applyTheme(["light", "dark"].includes(preference("theme")) ? preference("theme") : "");
$("theme").addEventListener("change", (event) => applyTheme(preference("theme", event.target.value)));

// ---- banners: what holds for the whole page, each named by its subject

function banner(name, words, button = null) {
  $("banners").querySelector("[data-name=" + name + "]")?.remove();
  if (!words) return;
  $("banners").append(el("div", { class: "banner", "data-name": name, role: name === "loading" ? "status" : "alert" }, el("span", {}, words), button));
}

// ---- the API key

async function askForKey(reason) {
  const input = el("input", { type: "password", id: "key", autocomplete: "off", required: true, "aria-describedby": "key-help" });
  const answer = await ask("This server asks for an API key", [
    reason ? el("p", {}, reason) : null,
    el("label", { class: "field" }, el("span", {}, "API key"), input),
    el("p", { class: "help", id: "key-help" }, "It stays in this tab until you close it."),
  ].filter(Boolean), [{ label: "Cancel", value: "" }, { label: "Use this key", value: "yes", kind: "main" }]);
  if (answer !== "yes" || !input.value.trim()) return false;
  sessionKey(input.value.trim());
  return true;
}

const KEYS = [
  ["Enter", "send the message"],
  ["Shift+Enter", "a new line"],
  ["Esc", "stop the answer; leave an edit or a panel"],
  ["↑ in an empty box", "edit the last question"],
  ["Ctrl+K", "search the conversations"],
  ["Ctrl+Shift+O", "a new conversation"],
  ["Ctrl+B", "show or hide the conversations"],
  ["Ctrl+,", "show or hide the settings"],
  ["Ctrl+/", "these shortcuts"],
  ["← → on tokens", "walk through the tokens of an answer"],
];
const ON_A_MAC = /Mac|iP/.test(navigator.platform);
if (ON_A_MAC) document.querySelector(".search kbd").textContent = "⌘ K";
function showKeys() {
  const rows = KEYS.flatMap(([keys, what]) => [el("dt", {}, ...(ON_A_MAC ? keys.replace("Ctrl", "Cmd") : keys).split(/(?<=\w)\+/).flatMap((key, at) => [at ? "+" : null, el("kbd", {}, key)])), el("dd", {}, what)]);
  ask("Keyboard", [el("dl", { class: "keys" }, ...rows)], [{ label: "Close", value: "" }]);
}
$("show-keys").addEventListener("click", showKeys);

// ---- the form of the settings

const fields = new Map();   // of each setting: what shows its value

function settingField(key, label, help, control, more = {}) {
  const id = "set-" + key, helpId = id + "-help", error = el("p", { class: "problem", id: id + "-problem", hidden: true });
  control.id = id;
  control.setAttribute("aria-describedby", helpId + " " + id + "-problem");
  const clear = el("button", { type: "button", class: "plain small", "aria-label": "Reset: " + label, click: () => { more.set(""); control.focus(); } }, "reset");
  const head = el("div", { class: "label" }, el("label", { for: id }, label), clear);
  const field = el("div", { class: "field", "data-setting": key }, head, more.slider || null, control, el("p", { class: "help", id: helpId }, help), error);
  fields.set(key, { field, control, clear, error, ...more });
  return field;
}

function textSetting(key, label, help, attributes) {
  const area = el("textarea", { rows: "3", spellcheck: "false", ...attributes, input: () => changeSettings((settings) => { settings[key] = area.value; }) });
  return settingField(key, label, help, area, { show: (settings) => { area.value = settings[key]; }, set: (value) => { area.value = value; area.dispatchEvent(new Event("input")); }, changed: (settings) => Boolean(settings[key].trim()) });
}

function parameterField(parameter) {
  const { name, label, kind, min, max, step, neutral } = parameter;
  const change = (value) => changeSettings((settings) => { if (value === "" || value === false) delete settings.values[name]; else settings.values[name] = value; });
  if (kind === "flag") {
    const box = el("input", { type: "checkbox", change: () => change(box.checked) });
    return settingField(name, label, parameter.help, box, { show: (settings) => { box.checked = settings.values[name] === true; }, set: () => { box.checked = false; change(false); }, changed: (settings) => settings.values[name] === true });
  }
  const area = kind === "lines" || kind === "bias";
  const control = el(area ? "textarea" : "input", { ...(area ? { rows: "2" } : { type: "text", inputmode: kind === "integer" ? "numeric" : "decimal" }), autocomplete: "off", spellcheck: "false" });
  const slider = parameter.slider ? el("input", { type: "range", min, max, step, "aria-label": label + ", slider", tabindex: "-1" }) : null;
  const place = (value) => { if (slider) slider.value = value === "" || Number.isNaN(Number(value)) ? neutral : value; };
  control.addEventListener("input", () => { place(control.value); change(control.value); });
  if (slider) slider.addEventListener("input", () => { control.value = slider.value; change(slider.value); });
  const show = (settings) => {
    control.value = settings.values[name] ?? "";
    control.placeholder = modeOf(settings, info) === "text" && parameter.usualOfText ? parameter.usualOfText : parameter.usual;
    place(control.value);
  };
  const set = (value) => { control.value = value; control.dispatchEvent(new Event("input")); };
  return settingField(name, label, parameter.help, control, { slider, show, set, changed: (settings) => (settings.values[name] ?? "").trim() !== "", check: (settings) => parameterValue(parameter, settings.values[name]) });
}

function buildSettings() {
  const mode = el("fieldset", { class: "segments", id: "mode" }, el("legend", {}, "Kind"),
    ...[["chat", "Chat"], ["text", "Text"]].map(([value, label]) => el("label", {},
      el("input", { type: "radio", name: "mode", value, disabled: value === "chat" && !info.chatTemplate, change: () => changeSettings((settings) => { settings.mode = value; }, true) }), el("span", {}, label))));
  const kindHelp = el("p", { class: "help" }, info.chatTemplate
    ? "Chat: questions and answers. Text: the model goes on with what you write, without a chat template."
    : "This model comes without a chat template, so it goes on with what you write.");
  const probabilities = el("input", { type: "checkbox", change: () => changeSettings((settings) => { settings.probabilities = probabilities.checked; }) });
  const check = (key, label) => (settings) => { if (settings[key].trim()) parsedObject(label, settings[key]); };
  const schema = textSetting("schema", "JSON schema of answers", "The answer is JSON that follows it, by a grammar. Empty: free text.", { rows: "4", class: "mono", placeholder: '{"type": "object", …}' });
  const extra = textSetting("extra", "Other fields of the request", "A JSON object that is merged into the body.", { class: "mono", placeholder: '{"n": 1}' });
  fields.get("schema").check = check("schema", "The JSON schema");
  fields.get("extra").check = check("extra", "Other fields");
  $("fields").replaceChildren(
    el("div", { class: "group" }, mode, kindHelp),
    el("div", { class: "group" }, textSetting("system", "System text", "What the model should know or be; it stands before the conversation.", { rows: "4", spellcheck: "true", placeholder: "You are a helpful assistant…" })),
    el("div", { class: "group" }, ...PARAMETERS.filter((one) => !one.more).map(parameterField)),
    el("details", { class: "group" }, el("summary", {}, "More sampling parameters"), ...PARAMETERS.filter((one) => one.more).map(parameterField)),
    el("details", { class: "group" }, el("summary", {}, "Format and probabilities"), schema,
      settingField("probabilities", "Token probabilities", "Answers get a view of their tokens, with what else was likely.", probabilities, { show: (settings) => { probabilities.checked = settings.probabilities; }, set: () => { probabilities.checked = false; probabilities.dispatchEvent(new Event("change")); }, changed: (settings) => settings.probabilities }), extra),
    el("p", { class: "help" }, "Settings belong to the conversation; a new one begins with the last ones. An empty field leaves the choice to the server."));
}

function showSettings(settings) {
  for (const input of $("mode").querySelectorAll("input")) input.checked = input.value === modeOf(settings, info);
  for (const { show } of fields.values()) show(settings);
  markSettings(settings);
}

// Marks what differs from the defaults and what cannot be sent. Returns the first field that cannot, or null.
function markSettings(settings) {
  let wrong = null, differs = false;
  for (const entry of fields.values()) {
    const changed = entry.changed(settings);
    differs ||= changed;
    entry.field.classList.toggle("changed", changed);
    entry.clear.hidden = !changed;
    let problem = "";
    try { if (entry.check) entry.check(settings); } catch (error) { problem = error.message; }
    entry.error.textContent = problem;
    entry.error.hidden = !problem;
    entry.control.toggleAttribute("aria-invalid", false);
    if (problem) { entry.control.setAttribute("aria-invalid", "true"); wrong ||= entry; }
  }
  const chat = modeOf(settings, info) === "chat";
  fields.get("system").field.hidden = !chat;
  $("settings-open").querySelector(".dot").hidden = !differs;
  $("settings-open").title = differs ? "Settings (some differ from the defaults)" : "Settings (Ctrl+,)";
  $("reset").disabled = !differs;
  return wrong;
}

// Opens the settings at a field.
function openSetting(key) {
  const entry = fields.get(key);
  if (!panels.settings.open) panels.settings.toggle(true);
  const fold = entry.field.closest("details");
  if (fold) fold.open = true;
  entry.control.focus();
  entry.field.scrollIntoView({ block: "nearest" });
}

buildSettings();
$("reset").addEventListener("click", () => {
  changeSettings((settings) => Object.assign(settings, { ...freshSettings(), model: settings.model, mode: settings.mode }));
  showSettings(current.settings);
  toast("All settings have their defaults again.");
});
