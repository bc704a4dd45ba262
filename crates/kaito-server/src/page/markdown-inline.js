// Markdown, second half: the text of a block becomes a tree of {type, ...}, by CommonMark's stack of delimiters.
// Every step goes forward, so the time grows with the text alone.

const ENTITIES = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®", trade: "™", hellip: "…", mdash: "—",
  ndash: "–", lsquo: "‘", rsquo: "’", ldquo: "“", rdquo: "”", laquo: "«", raquo: "»", bull: "•", middot: "·", times: "×",
  divide: "÷", plusmn: "±", deg: "°", euro: "€", pound: "£", yen: "¥", sect: "§", para: "¶", larr: "←", rarr: "→", uarr: "↑",
  darr: "↓", harr: "↔", le: "≤", ge: "≥", ne: "≠", asymp: "≈", infin: "∞", sum: "∑", radic: "√", alpha: "α", beta: "β",
  gamma: "γ", delta: "δ", lambda: "λ", mu: "μ", pi: "π", sigma: "σ", omega: "ω", check: "✓", ouml: "ö", auml: "ä", uuml: "ü",
};
const ENTITY = /&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|([A-Za-z]{2,10}));/y;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const SPACE = /[\s\u00a0]/u;

function entityAt(text, at) {
  ENTITY.lastIndex = at;
  const found = ENTITY.exec(text);
  if (!found) return null;
  if (found[3]) return Object.hasOwn(ENTITIES, found[3]) ? { text: ENTITIES[found[3]], length: found[0].length } : null;
  const code = found[1] ? parseInt(found[1], 10) : parseInt(found[2], 16);
  const valid = code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff);
  return { text: valid ? String.fromCodePoint(code) : "\ufffd", length: found[0].length };
}

function unescapeText(text) {
  if (!/[\\&]/.test(text)) return text;
  let out = "";
  for (let at = 0; at < text.length; at += 1) {
    const entity = text[at] === "&" ? entityAt(text, at) : null;
    if (entity) { out += entity.text; at += entity.length - 1; }
    else if (text[at] === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] || "")) { at += 1; out += text[at]; }
    else out += text[at];
  }
  return out;
}

// Only what a person would open: no script, no data, no file.
function safeTarget(target) {
  if (!/^(?:https?:|mailto:)/i.test(target)) return null;
  try { return new URL(target).href; } catch { return null; }
}

const sticky = (pattern, text, at) => { pattern.lastIndex = at; return pattern.exec(text); };
const TARGET = /[ \n]*(?:<((?:[^<>\\\n]|\\.)*)>)?/y;
const TITLE = /[ \n]+("(?:[^"\\]|\\[\s\S])*"|'(?:[^'\\]|\\[\s\S])*'|\((?:[^()\\]|\\[\s\S])*\))/y;
const ANGLE_LINK = /<([A-Za-z][A-Za-z0-9+.-]{1,31}:[^\s<>]*)>/y;
const ANGLE_MAIL = /<([A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)>/y;
const BARE_LINK = /https?:\/\/[^\s<>"`]+/iy;
const MATH = /^\s*(?:[\p{L}\p{N}({|+-]|\\[A-Za-z])/u;
const LINE_BREAK = /<br[ \t]*\/?>/iy;
const PLAIN = /[^\\`*_~!\[\]<&\n$hH]+/y;

// The target and title after "](", or null.
function linkAfter(text, at) {
  const target = sticky(TARGET, text, at);
  let end = at + target[0].length, words = target[1];
  if (words === undefined) {
    words = "";
    if (text[end] === "<") return null;
    for (let depth = 0; end < text.length && !/[ \t\n]/.test(text[end]); end += 1) {
      if (text[end] === "\\" && end + 1 < text.length && /[!-/:-@[-`{-~]/.test(text[end + 1])) { words += text[end]; end += 1; }
      else if (text[end] === "(") { if (++depth > 32) return null; }
      else if (text[end] === ")" && depth-- === 0) break;
      words += text[end];
    }
  }
  let title = "";
  const found = sticky(TITLE, text, end);
  if (found) { title = unescapeText(found[1].slice(1, -1)); end += found[0].length; }
  while (/[ \n]/.test(text[end] || "")) end += 1;
  return text[end] === ")" ? { target: unescapeText(words), title, end: end + 1 } : null;
}

// A run of delimiters, its kind by what stands on both sides.
function delimiterRun(text, at) {
  const mark = text[at];
  let end = at;
  while (text[end] === mark) end += 1;
  const before = at ? String.fromCodePoint(text.codePointAt(at - (/[\udc00-\udfff]/.test(text[at - 1]) && at > 1 ? 2 : 1))) : "\n";
  const after = end < text.length ? String.fromCodePoint(text.codePointAt(end)) : "\n";
  const left = !SPACE.test(after) && (!PUNCTUATION.test(after) || SPACE.test(before) || PUNCTUATION.test(before));
  const right = !SPACE.test(before) && (!PUNCTUATION.test(before) || SPACE.test(after) || PUNCTUATION.test(after));
  const opens = mark === "_" ? left && (!right || PUNCTUATION.test(before)) : left;
  const closes = mark === "_" ? right && (!left || PUNCTUATION.test(after)) : right;
  return { type: "run", mark, length: end - at, count: end - at, can: { open: opens, close: closes }, opens: [], closes: [] };
}

// Pairs runs from the given one on; each keeps which elements it opens and closes.
function pairRuns(runs, from) {
  const nothingBelow = new Map();
  let closer = from;
  while (closer < runs.length) {
    const close = runs[closer];
    if (!close.can.close || !close.count) { closer += 1; continue; }
    const key = close.mark + close.can.open + (close.length % 3);
    const bottom = Math.max(from, nothingBelow.get(key) ?? from);
    let opener = closer - 1;
    for (; opener >= bottom; opener -= 1) {
      const open = runs[opener];
      if (open.mark !== close.mark || !open.can.open || !open.count) continue;
      if (close.mark === "~") { if (open.count === close.count && close.count <= 2) break; continue; }
      const odd = (open.can.close || close.can.open) && (open.length + close.length) % 3 === 0 && (open.length % 3 || close.length % 3);
      if (!odd) break;
    }
    if (opener < bottom) { nothingBelow.set(key, closer); closer += 1; continue; }
    const open = runs[opener];
    const used = close.mark === "~" ? close.count : open.count >= 2 && close.count >= 2 ? 2 : 1;
    const type = close.mark === "~" ? "del" : used === 2 ? "strong" : "em";
    open.opens.unshift({ type });
    close.closes.push(type);
    open.count -= used;
    close.count -= used;
    // What stands between the two can pair with nothing outside any more.
    runs.splice(opener + 1, closer - opener - 1);
    closer = opener + 1;
    if (!open.count) { runs.splice(opener, 1); closer -= 1; }
    for (const [kind, place] of nothingBelow) nothingBelow.set(kind, Math.min(place, closer));
    if (!close.count) runs.splice(closer, 1);
  }
  runs.length = from;
}

function parseInline(text, references) {
  const items = [], runs = [], brackets = [];
  const missing = new Set();   // ends that do not come any more
  let at = 0;
  const plain = (words) => {
    const last = items[items.length - 1];
    if (last && last.type === "text") last.text += words;
    else items.push({ type: "text", text: words });
  };
  while (at < text.length) {
    const run = sticky(PLAIN, text, at);
    if (run) { plain(run[0]); at += run[0].length; continue; }
    const sign = text[at];
    if (sign === "\n") {
      // People and models write line breaks where they want them.
      const last = items[items.length - 1];
      if (last && last.type === "text") last.text = last.text.replace(/ +$/, "");
      items.push({ type: "br" });
      at += 1;
      while (text[at] === " ") at += 1;
    } else if (sign === "\\" || (sign === "$" && text[at + 1] === "$")) {
      const next = text[at + 1] || "";
      const end = next === "(" ? "\\)" : next === "[" ? "\\]" : next === "$" && sign === "$" ? "$$" : "";
      const stop = end && !missing.has(end) ? text.indexOf(end, at + 2) : -1;
      if (stop < 0) missing.add(end);
      if (stop > at + 2 && MATH.test(text.slice(at + 2, stop))) {
        items.push({ type: "math", text: text.slice(at + 2, stop), display: next !== "(" });
        at = stop + 2;
      } else if (sign === "\\" && next === "\n") { items.push({ type: "br" }); at += 2; }
      else if (sign === "\\" && /[!-/:-@[-`{-~]/.test(next)) { plain(next); at += 2; }
      else { plain(sign); at += 1; }
    } else if (sign === "`") {
      let end = at;
      while (text[end] === "`") end += 1;
      const ticks = end - at;
      let close = -1;
      if (!missing.has(ticks)) {
        for (let next = text.indexOf("`", end); next >= 0; ) {
          let after = next;
          while (text[after] === "`") after += 1;
          if (after - next === ticks) { close = next; break; }
          next = text.indexOf("`", after);
        }
        if (close < 0) missing.add(ticks);
      }
      if (close < 0) { plain("`".repeat(ticks)); at = end; continue; }
      let code = text.slice(end, close).replace(/\n/g, " ");
      if (code.startsWith(" ") && code.endsWith(" ") && code.trim()) code = code.slice(1, -1);
      items.push({ type: "code", text: code });
      at = close + ticks;
    } else if (sign === "*" || sign === "_" || sign === "~") {
      const found = delimiterRun(text, at);
      items.push(found);
      runs.push(found);
      at += found.length;
    } else if (sign === "[" || (sign === "!" && text[at + 1] === "[")) {
      const bracket = { type: "bracket", image: sign === "!", text: sign === "!" ? "![" : "[", runs: runs.length, active: true, inner: at + (sign === "!" ? 2 : 1) };
      items.push(bracket);
      brackets.push(bracket);
      at = bracket.inner;
    } else if (sign === "]") {
      at = closeBracket(text, at, { items, runs, brackets, references, plain });
    } else if (sign === "<") {
      const link = sticky(ANGLE_LINK, text, at), mail = link ? null : sticky(ANGLE_MAIL, text, at), broken = sticky(LINE_BREAK, text, at);
      if (link || mail) items.push({ type: "link", target: link ? link[1] : "mailto:" + mail[1], title: "", children: [{ type: "text", text: (link || mail)[1] }] });
      else if (broken) items.push({ type: "br" });
      else plain("<");
      at += link || mail || broken ? (link || mail || broken)[0].length : 1;
    } else if (sign === "&") {
      const entity = entityAt(text, at);
      plain(entity ? entity.text : "&");
      at += entity ? entity.length : 1;
    } else if ((sign === "h" || sign === "H") && !/[\p{L}\p{N}_]/u.test(text[at - 1] || " ")) {
      const found = sticky(BARE_LINK, text, at);
      const link = found ? trimLink(found[0]) : "";
      if (link) items.push({ type: "link", target: link, title: "", children: [{ type: "text", text: link }], bare: true });
      else plain(sign);
      at += link ? link.length : 1;
    } else { plain(sign); at += 1; }
  }
  pairRuns(runs, 0);
  return nest(items);
}

// A sentence's end is no part of a link, and neither are marks around it.
function trimLink(link) {
  let end = link.length, unopened = link.split(")").length - link.split("(").length;
  for (;;) {
    const last = link[end - 1];
    if (last === ")" && unopened > 0) unopened -= 1;
    else if (!/[?!.,:;*_~'\]]/.test(last)) break;
    end -= 1;
  }
  link = link.slice(0, end);
  return /^https?:\/\/[^/?#]/i.test(link) ? link : "";
}

function closeBracket(text, at, { items, runs, brackets, references, plain }) {
  const bracket = brackets.pop();
  if (!bracket) { plain("]"); return at + 1; }
  if (!bracket.active) { plain("]"); return at + 1; }
  let link = text[at + 1] === "(" ? linkAfter(text, at + 2) : null;
  let end = link ? link.end : at + 1;
  if (!link && references.size) {
    let name = text.slice(bracket.inner, at);
    const label = /\[((?:[^\[\]\\]|\\.){0,200})\]/y;
    const given = sticky(label, text, at + 1);
    if (given) { end += given[0].length; name = given[1] || name; }
    link = name.length <= 200 ? references.get(referenceName(name)) : null;
  }
  if (!link) { plain("]"); return at + 1; }
  pairRuns(runs, bracket.runs);
  bracket.text = "";
  bracket.opens = [{ type: bracket.image ? "image" : "link", target: link.target, title: link.title }];
  items.push({ type: "end", closes: [bracket.opens[0].type] });
  if (!bracket.image) for (const outer of brackets) if (!outer.image) outer.active = false;
  return end;
}

const MOST_OPEN = 60;   // deeper ones are not worth an element, and browsers end in them

// The list of items with its openings and closings as a tree.
function nest(items) {
  const root = [], open = [root];
  const top = () => open[open.length - 1];
  const text = (words) => { if (words) top().push({ type: "text", text: words }); };
  const opening = (parts) => {
    for (const part of parts || []) {
      if (open.length > MOST_OPEN) { open.push(top()); continue; }
      const node = { ...part, children: [] };
      top().push(node);
      open.push(node.children);
    }
  };
  for (const item of items) {
    if (item.type === "run" || item.type === "bracket" || item.type === "end") {
      for (let count = (item.closes || []).length; count > 0; count -= 1) if (open.length > 1) open.pop();
      text(item.type === "run" ? item.mark.repeat(item.count) : item.text || "");
      opening(item.opens);
    } else top().push(item);
  }
  return root;
}
