// Colours for code: comments, strings, numbers, words of the language. One scanner for all; a language is an entry of a table.

const C_WORDS = "break case catch class const continue default do else enum export extends false finally for from function if implements import in instanceof interface let new null of package private protected public return static struct super switch this throw true try typeof type union var void volatile while with yield async await";
const FAMILIES = {
  c: {
    names: "c h cpp c++ cc hpp cxx cs csharp java js javascript jsx mjs ts typescript tsx go golang swift kotlin kt scala dart php zig proto protobuf groovy objc",
    words: C_WORDS + " abstract auto bool byte char chan constexpr defer delete double final float fn foreach fun func go goto guard inline int internal long map namespace nil nullptr operator override range readonly ref register short signed sizeof string template undefined unsigned using val virtual when where",
    line: "//", block: ["/*", "*/"], quotes: "\"'`",
  },
  rust: {
    names: "rust rs",
    words: "as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut pub ref return self Self static struct super trait true type unsafe use where while",
    line: "//", block: ["/*", "*/"], quotes: "\"", character: true,
  },
  python: {
    names: "python py python3 starlark",
    words: "and as assert async await break class continue def del elif else except False finally for from global if import in is lambda match case None nonlocal not or pass raise return self True try while with yield",
    line: "#", quotes: "\"'", triple: true,
  },
  shell: {
    names: "bash sh shell zsh console shell-session fish powershell ps1 dockerfile docker makefile make cmake",
    words: "case do done elif else esac export fi for function if in local return set then until while source FROM RUN COPY ENV ARG CMD ENTRYPOINT WORKDIR EXPOSE",
    line: "#", quotes: "\"'",
  },
  ruby: {
    names: "ruby rb elixir ex perl pl r julia jl nim crystal",
    words: "alias and begin break case class def defmodule do else elsif end ensure false for function fn if in module my next nil not or print puts redo require rescue return self sub then true undef unless until use when while yield",
    line: "#", quotes: "\"'`",
  },
  config: { names: "yaml yml toml ini conf properties env nix hcl terraform tf", words: "true false null yes no on off", line: "#", quotes: "\"'", keys: true },
  json: { names: "json json5 jsonc", words: "true false null", line: "//", quotes: "\"", keys: true },
  sql: {
    names: "sql postgres postgresql mysql sqlite plsql lua haskell hs ada",
    words: "add all alter and as asc begin between by case check column commit constraint create cross database default delete desc distinct drop else end exists false foreign from full function group having if in index inner insert into is join key left like limit local nil not null offset on or order outer over partition primary references repeat return rollback right select set table then true union unique update values view when where while with",
    line: "--", block: ["/*", "*/"], quotes: "\"'", anyCase: true,
  },
  css: { names: "css scss less", words: "important inherit initial none auto", line: "", block: ["/*", "*/"], quotes: "\"'", keys: true },
  markup: { names: "html xml svg xhtml vue svelte markup", markup: true },
  diff: { names: "diff patch", diff: true },
  lisp: { names: "lisp clojure clj scheme elisp asm nasm", words: "def defn defun let lambda fn if cond do quote nil true false", line: ";", quotes: "\"" },
  tex: { names: "tex latex matlab octave erlang prolog", words: "function end if else for while return", line: "%", quotes: "\"" },
};
const LANGUAGES = new Map();
for (const family of Object.values(FAMILIES)) for (const name of family.names.split(" ")) LANGUAGES.set(name, family);
const MOST_COLOURED = 60000;

const literally = (text) => text.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&");

function scanner(family) {
  if (family.scanner) return family.scanner;
  const kinds = [];
  if (family.markup) {
    kinds.push(["comment", "<!--[\\s\\S]*?(?:-->|$)"], ["word", "<\\/?[A-Za-z][\\w:.-]*|\\/?>"], ["string", "\"[^\"<]*\"|'[^'<]*'"], ["key", "[A-Za-z_:@][\\w:.-]*(?==)"], ["number", "&[#\\w]+;"]);
  } else if (family.diff) {
    kinds.push(["word", "^@@.*$"], ["added", "^\\+.*$"], ["removed", "^-.*$"], ["comment", "^(?:diff|index) .*$"]);
  } else {
    if (family.block) kinds.push(["comment", literally(family.block[0]) + "[\\s\\S]*?(?:" + literally(family.block[1]) + "|$(?![\\s\\S]))"]);
    // In a shell "#" also counts words, as in ${#name}.
    if (family.line) kinds.push(["comment", (family.line === "#" ? "(?<![\\w$&{\\\\])" : "") + literally(family.line) + ".*"]);
    if (family.triple) kinds.push(["string", "\"\"\"[\\s\\S]*?(?:\"\"\"|$(?![\\s\\S]))|'''[\\s\\S]*?(?:'''|$(?![\\s\\S]))"]);
    const strings = [...family.quotes].map((quote) => quote + "(?:[^" + quote + "\\\\" + (quote === "`" ? "" : "\\n") + "]|\\\\[\\s\\S])*" + quote + "?").join("|");
    if (family.keys) kinds.push(["key", "\"(?:[^\"\\\\\\n]|\\\\.)*\"(?=\\s*:)|[A-Za-z_][\\w.-]*(?=\\s*[:=])"]);
    kinds.push(["string", strings + (family.character ? "|'(?:[^'\\\\\\n]|\\\\.[^'\\n]{0,8})'" : "")]);
    kinds.push(["number", "\\b(?:0[xXbBoO][\\da-fA-F_]+|\\d[\\d_]*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?)\\w{0,4}\\b"]);
    kinds.push(["name", "[A-Za-z_$][\\w$]*"]);
  }
  family.list = new Set((family.words || "").split(" "));
  family.scanner = { pattern: new RegExp(kinds.map(([, source]) => "(" + source + ")").join("|"), "gm"), kinds: kinds.map(([kind]) => kind) };
  return family.scanner;
}

function coloured(text, language) {
  const family = LANGUAGES.get(language.toLowerCase());
  if (!family || text.length > MOST_COLOURED) return [text];
  const { pattern, kinds } = scanner(family);
  const nodes = [];
  let from = 0;
  for (const found of text.matchAll(pattern)) {
    const words = found[0];
    let kind = kinds[found.slice(1).findIndex((group) => group !== undefined)];
    if (kind === "name") {
      if (family.list.has(family.anyCase ? words.toLowerCase() : words)) kind = "word";
      else if (text[found.index + words.length] === "(") kind = "call";
      else continue;
    }
    if (!words) continue;
    if (found.index > from) nodes.push(text.slice(from, found.index));
    nodes.push(el("span", { class: "c-" + kind }, words));
    from = found.index + words.length;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}
