// The message box and the files that go with a message.

const MOST_OF_A_FILE = 1 << 20;
// Where Enter is the only way to a new line, it is no way to send.
const onTouch = matchMedia("(pointer: coarse) and (hover: none)");
if (onTouch.matches) $("text").enterKeyHint = "enter";
let attached = [];   // {name, text}

$("text").value = ofSession("draft");
$("text").addEventListener("input", () => ofSession("draft", $("text").value));

function setCompose(words) {
  $("text").value = ofSession("draft", words);
  fit($("text"));
  $("text").focus();
  $("text").setSelectionRange(words.length, words.length);
  showSending();
}

// Browsers that do not size a text box by its text yet.
function fit(area) {
  if (CSS.supports("field-sizing", "content")) return;
  area.style.height = "auto";
  area.style.height = area.scrollHeight + 2 + "px";
}
document.addEventListener("input", (event) => { if (event.target.matches("textarea")) fit(event.target); });

// Send, or Stop while an answer is written.
function showSending() {
  const busy = running.has(current.id);
  const button = $("send");
  const label = busy ? "Stop" : "Send";
  if (button.getAttribute("aria-label") !== label) {
    button.setAttribute("aria-label", label);
    button.querySelector("use").setAttribute("href", busy ? "#i-stop" : "#i-send");
  }
  button.title = busy ? "Stop (Esc)" : "Send (Enter)";
  button.classList.toggle("stops", busy);
  $("text").placeholder = inTextMode() ? (current.messages.length ? "Add to the text, or send nothing to go on" : "Write the beginning of a text") : current.messages.length ? "Write a message" : "Ask something";
  $("hint").textContent = busy ? "Esc stops" : "Enter sends, Shift+Enter begins a new line";
  $("attach").disabled = false;
}

function showAttached() {
  $("attached").hidden = !attached.length;
  $("attached").replaceChildren(...attached.map((file) => el("li", {}, icon("file"), el("span", {}, file.name), el("small", {}, sizeOf(file.text)),
    iconButton("close", "Remove " + file.name, () => { attached = attached.filter((one) => one !== file); showAttached(); $("text").focus(); }))));
}

async function attach(files) {
  const refused = [];
  for (const file of files) {
    if (file.size > MOST_OF_A_FILE) { refused.push(file.name + " has " + (file.size / 1048576).toFixed(1) + " MiB; at most 1 MiB is allowed"); continue; }
    const bytes = new Uint8Array(await file.arrayBuffer());
    let text = null;
    try { text = new TextDecoder("utf-8", { fatal: true }).decode(bytes); } catch { /* no text */ }
    if (text === null || text.includes("\0")) refused.push(file.name + " is not a text file in UTF-8");
    else if (!text.trim()) refused.push(file.name + " is empty");
    else attached.push({ name: file.name.slice(0, 200), text });
  }
  showAttached();
  if (refused.length) await ask("Not added", refused.map((words) => el("p", {}, words + ".")), [{ label: "Close", value: "" }]);
  $("text").focus();
}

function submit() {
  if (running.has(current.id)) { stop(); return; }
  const words = $("text").value;
  const last = messageOf(current, current.leaf);
  if (!words.trim() && !attached.length) {
    // In a text, an empty message goes on with it.
    if (inTextMode() && last) { if (last.role === "user") answer(current, last); else answer(current, addMessage(current, last.id, "user", "")); }
    return;
  }
  const wrong = markSettings(current.settings);
  if (wrong) { toast(wrong.error.textContent); openSetting([...fields].find(([, entry]) => entry === wrong)[0]); return; }
  // A question without an answer gives way to the next one, since turns alternate.
  const parent = last && last.role === "user" && !inTextMode() ? last.parent : current.leaf;
  const question = addMessage(current, parent, "user", inTextMode() ? words : words.trim(), attached.length ? { files: attached } : {});
  attached = [];
  showAttached();
  $("text").value = "";
  ofSession("draft", "");
  fit($("text"));
  if (onTouch.matches) $("text").blur();   // its keyboard would cover the answer
  answer(current, question);
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("text").addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey && !onTouch.matches) {
    event.preventDefault();
    if (!running.has(current.id)) submit();
  }
  if (event.key === "ArrowUp" && !$("text").value && !event.shiftKey) {
    const last = [...turns.values()].reverse().find((turn) => !turn.answer);
    if (last && !inTextMode() && !running.has(current.id)) { event.preventDefault(); last.edit(); }
  }
});

$("attach").addEventListener("click", () => $("attach-file").click());
$("attach-file").addEventListener("change", async () => {
  const files = [...$("attach-file").files];
  $("attach-file").value = "";
  await attach(files);
});
let dragged = 0;
const hasFiles = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
addEventListener("dragenter", (event) => { if (hasFiles(event)) { dragged += 1; $("drop").hidden = false; } });
addEventListener("dragleave", (event) => { if (hasFiles(event) && --dragged <= 0) { dragged = 0; $("drop").hidden = true; } });
addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  dragged = 0;
  $("drop").hidden = true;
  attach([...event.dataTransfer.files]);
});
$("text").addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files || [])];
  if (files.length) { event.preventDefault(); attach(files); }
});
