// Blocks of Markdown as elements. While an answer grows, only the blocks that changed are built anew.

class MarkdownView {
  constructor(element) {
    this.element = element;
    this.parts = [];   // of each block at the top: what it was built from, and its element
  }

  // Returns the plain text of blocks that are finished now and were not before.
  update(text, finished = true) {
    const { blocks, lines, references } = parseMarkdown(text);
    levelHeadings(blocks, { level: 2 });
    const definitions = references.size ? JSON.stringify([...references]) : "";
    const keys = blocks.map((block) => JSON.stringify([block.type, block.loose, definitions, tagsIn(block)]) + lines.slice(block.from, block.to).join("\n"));
    let same = 0;
    while (same < keys.length && same < this.parts.length && this.parts[same].key === keys[same]) same += 1;
    for (const part of this.parts.splice(same)) part.element.remove();
    for (let at = same; at < blocks.length; at += 1) {
      const element = blockElement(blocks[at], references);
      this.element.append(element);
      this.parts.push({ key: keys[at], element, spoken: false });
    }
    let news = "";
    for (const part of finished ? this.parts : this.parts.slice(0, -1)) {
      if (!part.spoken) news += spokenText(part.element) + "\n";
      part.spoken = true;
    }
    return news.trim();
  }
}

// A code block is not read out letter by letter.
function spokenText(element) {
  if (!element.matches("figure.code")) return element.innerText || element.textContent;
  return "Code: " + element.querySelector("figcaption span").textContent;
}

// Headings follow each other without gaps below the turn's own, whatever levels the model wrote.
function levelHeadings(blocks, state) {
  for (const block of blocks) {
    if (block.type === "heading") {
      block.tag = "h" + Math.min(block.level + 2, state.level + 1, 6);
      state.level = Number(block.tag[1]);
    }
    if (block.blocks) levelHeadings(block.blocks, state);
    if (block.items) for (const item of block.items) levelHeadings(item.blocks, state);
  }
}
const tagsIn = (block) => block.tag || [...(block.blocks || []), ...(block.items || []).flatMap((item) => item.blocks)].map(tagsIn).flat().filter(Boolean).join();

function blockElement(block, references) {
  const words = (text) => inlineNodes(parseInline(text, references));
  const inside = (blocks) => blocks.map((inner) => blockElement(inner, references));
  switch (block.type) {
    case "heading": return el(block.tag, { "data-level": String(block.level) }, words(block.text));
    case "paragraph": return el("p", {}, words(block.text.trimEnd()));
    case "rule": return el("hr");
    case "quote": return el("blockquote", {}, inside(block.blocks));
    case "code": return codeElement(block.text, block.language);
    case "list": return listElement(block, words, references);
    case "table": return tableElement(block, words);
    default: return el("p", {}, block.text || "");
  }
}

function listElement(block, words, references) {
  const list = el(block.ordered ? "ol" : "ul", block.ordered && block.start !== 1 ? { start: String(block.start) } : {});
  for (const { blocks, done } of block.items) {
    const item = el("li", done === null ? {} : { class: "task" });
    if (done !== null) item.append(el("span", { role: "img", class: done ? "box done" : "box", "aria-label": done ? "done" : "to do" }));
    for (const inner of blocks) {
      if (inner.type === "paragraph" && !block.loose) for (const node of words(inner.text.trimEnd())) item.append(node);
      else item.append(blockElement(inner, references));
    }
    list.append(item);
  }
  return list;
}

function tableElement(block, words) {
  const cell = (name, text, column) => el(name, { class: block.align[column] || null, scope: name === "th" ? "col" : null }, words(text));
  const head = el("thead", {}, el("tr", {}, block.header.map((text, column) => cell(text ? "th" : "td", text, column))));
  const body = block.rows.map((row) => el("tr", {}, row.map((text, column) => cell("td", text, column))));
  return el("div", { class: "table", role: "region", "aria-label": "Table", tabindex: "0" }, el("table", {}, head, el("tbody", {}, body)));
}

function codeElement(text, language) {
  const name = language.slice(0, 40) || "text";
  const button = el("button", { type: "button", class: "plain small", click: () => copy(text, button) }, icon("copy"), "Copy");
  button.setAttribute("aria-label", "Copy the code");
  return el("figure", { class: "code" },
    el("figcaption", {}, el("span", {}, name), button),
    el("pre", { tabindex: "0", role: "region", "aria-label": "Code, " + name }, el("code", {}, coloured(text, language))));
}

function inlineNodes(tree) {
  return tree.map((node) => {
    switch (node.type) {
      case "text": return document.createTextNode(node.text);
      case "br": return el("br");
      case "code": return el("code", {}, node.text);
      case "math": return el("span", { class: node.display ? "math display" : "math" }, node.text.trim());
      case "link": case "image": return linkElement(node);
      default: return el(node.type, {}, inlineNodes(node.children));
    }
  });
}

// Pictures are not fetched, since a model could tell their servers what was said: they become links that a person may follow.
function linkElement(node) {
  const target = safeTarget(node.target);
  const words = inlineNodes(node.children);
  if (node.type === "image" && !node.children.length) words.push(node.target);
  if (!target) return el("span", { title: node.target ? "This link is not opened: " + node.target.slice(0, 200) : null }, ...words);
  return el("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow", title: node.title || null }, ...words);
}
