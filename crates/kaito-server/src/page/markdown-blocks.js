// Markdown, first half: lines become blocks. CommonMark and GitHub's tables and task lists; HTML is text like any other.
// A block is {type, from, to, ...}: from and to are its lines, the last excluded.

const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)(.*)$/;
const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-+*]|\d{1,9}[.)])( +|$)/;
const UNDERLINE = /^ {0,3}(=+|-+)[ \t]*$/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const DEFINITION = /^\[((?:[^\[\]\\]|\\[\s\S]){1,200})\]:[ \t]*\n?[ \t]*(<[^<>\n]*>|[^\s<]\S*)(?:(?:[ \t]+|[ \t]*\n[ \t]*)("(?:[^"\\]|\\[\s\S])*"|'(?:[^'\\]|\\[\s\S])*'|\((?:[^()\\]|\\[\s\S])*\)))?[ \t]*(?:\n|$)/;
const MOST_NESTED = 24;

const isBlank = (line) => /^[ \t]*$/.test(line);
const indentOf = (line) => line.length - line.trimStart().length;

function fenceOf(line) {
  const fence = FENCE.exec(line);
  return fence && !(fence[2][0] === "`" && fence[3].includes("`")) ? fence : null;
}
const closesFence = (line, fence) => {
  const mark = /^ {0,3}(`+|~+)[ \t]*$/.exec(line);
  return Boolean(mark && mark[1][0] === fence[2][0] && mark[1].length >= fence[2].length);
};

// Whether a line ends the paragraph above it.
function interrupts(line) {
  if (RULE.test(line) || HEADING.test(line) || fenceOf(line) || QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  return Boolean(item && item[0].length < line.length && (!/\d/.test(item[2]) || /^1[.)]$/.test(item[2])));
}

// Whether a line goes on with the paragraph at the end of what a quote or an item has so far.
class Lazy {
  constructor() { this.fence = null; this.open = false; }
  take(line) {
    if (this.fence) {
      if (closesFence(line, this.fence)) this.fence = null;
      this.open = false;
      return;
    }
    const inner = line.replace(/^(?: {0,3}> ?| {0,3}(?:[-+*]|\d{1,9}[.)]) +)+/, "");
    this.fence = fenceOf(inner);
    this.open = !this.fence && !isBlank(inner) && !HEADING.test(inner) && !RULE.test(inner) && (this.open || indentOf(inner) < 4);
  }
  takesLazily(line) { return this.open && !isBlank(line) && (indentOf(line) >= 4 || (!interrupts(line) && !ITEM.test(line))); }
}

// Tabs at the beginning and behind a marker as the spaces that they stand for.
function expandTabs(line) {
  if (!line.includes("\t")) return line;
  const begin = /^(?: {0,3}(?:[-+*>]|\d{1,9}[.)]))?[ \t]+/.exec(line);
  if (!begin) return line;
  let out = "";
  for (const sign of begin[0]) out += sign === "\t" ? " ".repeat(4 - (out.length % 4)) : sign;
  return out + line.slice(begin[0].length);
}

function parseMarkdown(text) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/\0/g, "\ufffd").split("\n");
  const references = new Map();
  const blocks = parseBlocks(lines, references, 0);
  return { blocks, lines, references };
}

function parseBlocks(lines, references, depth) {
  const blocks = [];
  let paragraph = null;
  const endParagraph = () => {
    if (paragraph) closeParagraph(paragraph, references, blocks);
    paragraph = null;
  };
  const add = (block) => { endParagraph(); blocks.push(block); };
  let at = 0;
  while (at < lines.length) {
    const line = expandTabs(lines[at]);
    const from = at;
    if (isBlank(line)) { endParagraph(); at += 1; continue; }
    if (paragraph && UNDERLINE.test(line)) {
      const before = blocks.length;
      const level = line.includes("=") ? 1 : 2;
      closeParagraph(paragraph, references, blocks);
      const last = blocks.length > before ? blocks.pop() : null;
      paragraph = null;
      if (last) { blocks.push({ type: "heading", level, text: last.text.trim(), from: last.from, to: at + 1 }); at += 1; continue; }
    }
    if (indentOf(line) >= 4) {
      if (paragraph) { paragraph.lines.push(line.trimStart()); at += 1; continue; }
      const code = [];
      while (at < lines.length && (isBlank(lines[at]) || indentOf(expandTabs(lines[at])) >= 4)) code.push(expandTabs(lines[at++]).slice(4));
      while (isBlank(code[code.length - 1])) { code.pop(); at -= 1; }
      add({ type: "code", language: "", text: code.join("\n"), closed: true, from, to: at });
      continue;
    }
    const fence = fenceOf(line);
    if (fence) {
      const code = [];
      let closed = false;
      for (at += 1; at < lines.length; at += 1) {
        if (closesFence(lines[at], fence)) { closed = true; at += 1; break; }
        code.push(fence[1] ? lines[at].replace(new RegExp("^ {0," + fence[1].length + "}"), "") : lines[at]);
      }
      const language = unescapeText(fence[3].trim()).split(/\s/)[0];
      add({ type: "code", language, text: code.join("\n"), closed, from, to: at });
      continue;
    }
    const heading = HEADING.exec(line);
    if (heading) {
      let words = heading[2].trim();
      const open = words.replace(/#+$/, "");
      if (!open || /[ \t]$/.test(open)) words = open.trim();
      add({ type: "heading", level: heading[1].length, text: words, from, to: ++at });
      continue;
    }
    if (RULE.test(line)) { add({ type: "rule", from, to: ++at }); continue; }
    if (depth < MOST_NESTED && QUOTE.test(line)) {
      const inner = [], lazy = new Lazy();
      for (; at < lines.length; at += 1) {
        const next = expandTabs(lines[at]);
        if (QUOTE.test(next)) {
          inner.push(next.replace(QUOTE, ""));
          lazy.take(inner[inner.length - 1]);
        } else if (lazy.takesLazily(next)) inner.push(indentOf(next) >= 4 ? next : UNDERLINE.test(next) ? "\\" + next.trim() : next.trimStart());
        else break;
      }
      add({ type: "quote", blocks: parseBlocks(inner, references, depth + 1), from, to: at });
      continue;
    }
    const item = ITEM.exec(line);
    if (depth < MOST_NESTED && item && (!paragraph || interrupts(line))) {
      const list = parseList(lines, at, references, depth);
      at = list.to;
      add(list);
      continue;
    }
    const table = paragraph ? null : parseTable(lines, at);
    if (table) { at = table.to; add(table); continue; }
    if (paragraph) paragraph.lines.push(line.trimStart());
    else paragraph = { lines: [line.trimStart()], from: at };
    at += 1;
    // A table may follow the words that introduce it without an empty line.
    if (at < lines.length && paragraph) {
      const below = parseTable(lines, at);
      if (below) { at = below.to; add(below); }
    }
  }
  endParagraph();
  return blocks;
}

// Definitions of links at its beginning are taken out of a paragraph.
function closeParagraph(paragraph, references, blocks) {
  let text = paragraph.lines.join("\n"), from = paragraph.from;
  const to = from + paragraph.lines.length;
  for (let definition; text[0] === "[" && (definition = definitionAt(text)); ) {
    const name = referenceName(definition.label);
    if (!name) break;
    if (!references.has(name)) references.set(name, definition);
    from += definition.length < text.length ? text.slice(0, definition.length).split("\n").length - 1 : 0;
    text = text.slice(definition.length);
  }
  if (text) blocks.push({ type: "paragraph", text, from, to });
}

function definitionAt(text) {
  let found = DEFINITION.exec(text);
  // A title that is none leaves the definition without one, where the line ends before it.
  if (!found) {
    found = /^\[((?:[^\[\]\\]|\\[\s\S]){1,200})\]:[ \t]*\n?[ \t]*(<[^<>\n]*>|[^\s<]\S*)[ \t]*\n/.exec(text);
    if (!found) return null;
  }
  return { label: found[1], target: unescapeText(found[2].replace(/^<|>$/g, "")), title: unescapeText((found[3] || "").slice(1, -1)), length: found[0].length };
}

const referenceName = (words) => words.trim().replace(/\s+/g, " ").toLowerCase().toUpperCase();

function parseList(lines, from, references, depth) {
  const kindOf = (mark) => mark.slice(-1);
  const first = ITEM.exec(expandTabs(lines[from]));
  const kind = kindOf(first[2]);
  const items = [];
  let at = from, loose = false, to = from;
  while (at < lines.length) {
    const line = expandTabs(lines[at]);
    const mark = ITEM.exec(line);
    if (!mark || kindOf(mark[2]) !== kind || RULE.test(line)) break;
    const empty = isBlank(line.slice(mark[0].length)) && mark[3].length !== 0 || mark[0].length === line.length;
    const spaces = empty || mark[3].length > 4 ? 1 : mark[3].length;
    const offset = mark[1].length + mark[2].length + spaces;
    const inner = [empty ? "" : line.slice(offset)];
    const lazy = new Lazy();
    lazy.take(inner[0]);
    let end = at + 1, blanks = 0;
    for (at += 1; at < lines.length; at += 1) {
      const next = expandTabs(lines[at]);
      if (isBlank(next)) {
        if (empty && inner.length === 1) break;
        inner.push("");
        blanks += 1;
        lazy.open = false;
        continue;
      }
      if (indentOf(next) >= offset) inner.push(next.slice(offset));
      else if (!blanks && lazy.takesLazily(next)) inner.push(indentOf(next) >= 4 ? next : next.trimStart());
      else break;
      lazy.take(inner[inner.length - 1]);
      blanks = 0;
      end = at + 1;
    }
    const blocks = parseBlocks(inner.slice(0, end - (at - inner.length)), references, depth + 1);
    for (let next = 1; next < blocks.length; next += 1) loose ||= inner.slice(blocks[next - 1].to, blocks[next].from).some(isBlank);
    // Blank lines between this item and the next one.
    const following = at < lines.length ? ITEM.exec(expandTabs(lines[at])) : null;
    if (blanks && following && kindOf(following[2]) === kind && !RULE.test(lines[at])) loose = true;
    let done = null;
    const task = blocks[0] && blocks[0].type === "paragraph" ? /^\[([ xX])\][ \t]+/.exec(blocks[0].text) : null;
    if (task) {
      done = task[1] !== " ";
      blocks[0].text = blocks[0].text.slice(task[0].length);
    }
    items.push({ blocks, done });
    to = end;
    if (empty && inner.length === 1 && at < lines.length && isBlank(lines[at])) {
      let next = at;
      while (next < lines.length && isBlank(lines[next])) next += 1;
      const again = next < lines.length ? ITEM.exec(expandTabs(lines[next])) : null;
      if (!again || kindOf(again[2]) !== kind) break;
      loose = true;
      at = next;
    }
  }
  const start = /\d/.test(first[2]) ? parseInt(first[2], 10) : null;
  return { type: "list", ordered: start !== null, start, loose, items, from, to };
}

function cellsOf(line) {
  let row = line.trim();
  if (row.startsWith("|")) row = row.slice(1);
  const cells = [];
  let cell = "", at = 0;
  for (; at < row.length; at += 1) {
    if (row[at] === "\\" && row[at + 1] === "|") { cell += "|"; at += 1; }
    else if (row[at] === "\\" && at + 1 < row.length) { cell += row[at] + row[at + 1]; at += 1; }
    else if (row[at] === "|") { cells.push(cell.trim()); cell = ""; }
    else cell += row[at];
  }
  if (cell.trim() || !row.endsWith("|")) cells.push(cell.trim());
  return cells;
}

function parseTable(lines, from) {
  if (from + 1 >= lines.length || !lines[from].includes("|")) return null;
  const head = expandTabs(lines[from]), rule = expandTabs(lines[from + 1]);
  if (!DELIMITERS.test(rule) || !/[|:]/.test(rule) || indentOf(head) >= 4) return null;
  const header = cellsOf(head), marks = cellsOf(rule);
  if (header.length !== marks.length) return null;
  const align = marks.map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "right") : mark.startsWith(":") ? "left" : ""));
  const rows = [];
  let at = from + 2;
  for (; at < lines.length; at += 1) {
    const line = expandTabs(lines[at]);
    if (isBlank(line) || indentOf(line) >= 4 || interrupts(line)) break;
    const cells = cellsOf(line);
    rows.push(header.map((_, column) => cells[column] || ""));
  }
  return { type: "table", header, align, rows, from, to: at };
}
