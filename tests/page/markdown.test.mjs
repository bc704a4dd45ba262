// Markdown: the parser against the examples of CommonMark's own specification and against markdown-it for GitHub's tables; what is
// built of it against what must never be built.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { require, startBrowser } from "./browser.mjs";
import { startStub } from "./stub.mjs";

let stub, browser, page;
before(async () => {
    stub = await startStub();
    browser = await startBrowser();
    page = await browser.open(stub.url);
});
after(async () => {
    await browser.close();
    await stub.close();
    assert.deepEqual(browser.problems, []);
});

// The tree of the page's parser, written as the specification writes HTML.
function written(sources) {
    const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
    const words = (nodes) => nodes.map((node) => node.text ?? (node.type === "br" ? "\n" : words(node.children))).join("");
    const inline = (nodes) => nodes.map((node) => {
        const title = node.title ? ` title="${escape(node.title)}"` : "";
        switch (node.type) {
            case "text": return escape(node.text);
            case "br": return "\n";
            case "code": return `<code>${escape(node.text)}</code>`;
            case "link": return `<a href="${escape(encoded(node.target))}"${title}>${inline(node.children)}</a>`;
            case "image": return `<img src="${escape(encoded(node.target))}" alt="${escape(words(node.children))}"${title} />`;
            case "math": return `<math>${escape(node.text)}</math>`;
            case "del": return `<s>${inline(node.children)}</s>`;
            default: return `<${node.type}>${inline(node.children)}</${node.type}>`;
        }
    }).join("");
    // As commonmark.js encodes addresses: what is encoded already stays.
    const encoded = (target) => target.replace(/%(?![0-9a-fA-F]{2})/g, "%25").replace(/[^\w;/?:@&=+$,\-.!~*'()#%]/gu, (sign) => encodeURIComponent(sign));
    const blocks = (list, references, tight) => list.map((block) => {
        const text = (given) => inline(parseInline(given, references));
        switch (block.type) {
            case "heading": return `<h${block.level}>${text(block.text)}</h${block.level}>\n`;
            case "paragraph": return tight ? text(block.text.trimEnd()) + "\n" : `<p>${text(block.text.trimEnd())}</p>\n`;
            case "rule": return "<hr />\n";
            case "quote": return `<blockquote>\n${blocks(block.blocks, references)}</blockquote>\n`;
            case "code": return `<pre><code${block.language ? ` class="language-${escape(block.language)}"` : ""}>${escape(block.text)}${block.text || block.blank ? "\n" : ""}</code></pre>\n`;
            case "list": {
                const tag = block.ordered ? "ol" : "ul";
                const start = block.ordered && block.start !== 1 ? ` start="${block.start}"` : "";
                const items = block.items.map((item) => `<li>${block.loose && item.blocks.length ? "\n" : ""}${blocks(item.blocks, references, !block.loose)}</li>\n`);
                return `<${tag}${start}>\n${items.join("")}</${tag}>\n`;
            }
            case "table": {
                const style = (at) => (block.align[at] ? ` style="text-align:${block.align[at]}"` : "");
                const row = (cells, tag) => `<tr>\n${cells.map((cell, at) => `<${tag}${style(at)}>${text(cell)}</${tag}>\n`).join("")}</tr>\n`;
                const body = block.rows.length ? `<tbody>\n${block.rows.map((cells) => row(cells, "td")).join("")}</tbody>\n` : "";
                return `<table>\n<thead>\n${row(block.header, "th")}</thead>\n${body}</table>\n`;
            }
        }
    }).join("");
    return sources.map((source) => {
        const parsed = parseMarkdown(source);
        return blocks(parsed.blocks, parsed.references);
    });
}
// White space between tags means nothing, and a line break is a line break.
const plain = (html) => html.replace(/<br ?\/?>\n?/g, "\n").replace(/\s*(<\/?(?:p|h\d|ul|ol|li|blockquote|pre|hr|table|thead|tbody|tr|th|td)\b[^>]*>)\s*/g, "$1").replace(/\n+(?=<\/code><\/pre>)/g, "").trim();

// Examples that come out differently on purpose.
const ON_PURPOSE = {
    21: "HTML is text", 25: "entities that no model writes", 31: "HTML is text", 201: "HTML is text", 308: "HTML is text", 309: "HTML is text",
    317: "an invisible definition does not spread a list", 344: "HTML is text", 475: "HTML is text", 476: "HTML is text", 477: "HTML is text",
    491: "HTML is text", 494: "HTML is text", 524: "HTML is text", 536: "HTML is text", 602: "addresses are links", 608: "addresses are links",
    611: "addresses are links", 642: "HTML is text", 643: "HTML is text",
};

test("the examples of CommonMark's specification", async () => {
    const { tests } = require("commonmark-spec");
    const without = ["HTML blocks", "Raw HTML"];
    const examples = tests.map((example) => ({ ...example, markdown: example.markdown.replace(/→/g, "\t"), html: example.html.replace(/→/g, "\t") })).filter((example) => !without.includes(example.section));
    const results = await page.evaluate(`(${written})(${JSON.stringify(examples.map((example) => example.markdown))})`);
    const wrong = examples.filter((example, at) => plain(results[at]) !== plain(example.html)).map((example) => example.number);
    if (process.env.SHOW) {
        examples.forEach((example, at) => {
            if (wrong.includes(example.number) && !(example.number in ON_PURPOSE)) console.log(example.number, example.section, JSON.stringify(example.markdown), "\n  want", JSON.stringify(plain(example.html)), "\n  have", JSON.stringify(plain(results[at])));
        });
    }
    assert.deepEqual(wrong, Object.keys(ON_PURPOSE).map(Number));
});

const TABLES = [
    "| a | b |\n| - | - |\n| 1 | 2 |",
    "a | b\n--|--\n1 | 2\n3 | 4",
    "| left | centre | right |\n|:--|:-:|--:|\n| `x` | **y** | *z* |\n\nafter",
    "| a \\| b | c |\n| --- | --- |\n| 1 \\| 2 | 3 |",
    "| a | b |\n| - | - |\n| too | many | cells |\n| few |",
    "words before\n\n| a |\n| - |\n| 1 |\n> a quote ends it",
    "| a | b |\n| - |\nno table",
    "| a |\n| - |",
    "~~gone~~ and ~~**both**~~",
    "1. one\n   - a\n   - b\n2. two\n\n   more\n10. ten",
    "- a\n  1. b\n     - c\n\n  after\n- d",
    "***both** one*, __two_ three_, a*b*c, snake_case_word, 2 * 3 * 4",
    "# A\n## B #\ntext\nTitle\n=====\nSub\n---\n***\n> # quoted\n> - list\nlazy",
    "```js\nconst a = `<b>`;\n```\n~~~\n```\n~~~\n    indented\n",
    '[a](https://a.example/x_(y)) <https://b.example> ![alt](https://c.example/i.png "t")',
    "Привет, **мир**! 你好**世界**。 😀*x*😀",
];

test("tables and mixed texts as markdown-it reads them", async () => {
    const MarkdownIt = require("markdown-it");
    const reference = new (MarkdownIt.default || MarkdownIt)({ html: false, xhtmlOut: true });
    const results = await page.evaluate(`(${written})(${JSON.stringify(TABLES)})`);
    TABLES.forEach((source, at) => assert.equal(plain(results[at]), plain(reference.render(source)), source));
});

const build = (source, steps = null) => page.evaluate(([text, parts]) => {
    const element = document.createElement("div");
    document.body.append(element);
    const view = new MarkdownView(element);
    for (const part of parts || [text]) view.update(part, part === text);
    const html = element.innerHTML;
    element.remove();
    return html;
}, [source, steps]);

test("HTML of a model is text, whatever it is", async () => {
    const evil = [
        "<script>window.evil = 1</script>", "<img src=x onerror='window.evil = 1'>", "<b>bold</b> <a href='javascript:window.evil=1'>x</a>",
        "<svg onload=window.evil=1>", "[x](javascript:window.evil=1)", "[x](JaVaScRiPt:window.evil=1)", "[x]( java\nscript:window.evil=1)", "[x](data:text/html,<script>1</script>)",
        "[x](vbscript:x) [y](file:///etc/passwd) [z](//evil.example)", "<javascript:window.evil=1>", "[x](&#106;avascript:window.evil=1)", "```<script>\nx\n```",
        "| <script>1</script> |\n| - |\n| <img src=x> |", "![x](https://evil.example/track.png)", '<https://a.example/"onmouseover=window.evil=1>', "# <iframe src=x>",
    ];
    for (const source of evil) {
        const found = await page.evaluate((text) => {
            const element = document.createElement("div");
            document.body.append(element);
            new MarkdownView(element).update(text);
            const all = [...element.querySelectorAll("*")];
            const result = {
                names: all.map((one) => one.localName),
                targets: all.filter((one) => one.hasAttribute("href") && one.localName === "a").map((one) => [one.protocol, one.rel, one.target]),
                listeners: all.flatMap((one) => one.getAttributeNames()).filter((name) => name.startsWith("on") || name === "src" || name === "style"),
            };
            element.remove();
            return result;
        }, source);
        for (const name of ["script", "img", "iframe", "b", "object", "embed"]) assert.ok(!found.names.includes(name), `${name} of ${source}`);
        assert.deepEqual(found.listeners, [], source);
        for (const [protocol, rel, target] of found.targets) assert.ok(/^https?:$/.test(protocol) && rel.includes("noopener") && target === "_blank", source);
    }
    assert.equal(await page.evaluate(() => window.evil), undefined);
});

test("an answer that grows letter by letter ends as one that came whole", async () => {
    const source = "# Title\n\nSome *words* and `code`:\n\n1. one\n   - two\n\n| a | b |\n| - | - |\n| 1 | 2 |\n\n```js\nlet a = 1; // x\n```\n\n> quote\n\n### Deep\n\nend [r]\n\n[r]: https://a.example/\n";
    const steps = Array.from({ length: source.length }, (_, at) => source.slice(0, at + 1));
    assert.equal(await build(source, steps), await build(source));
});

test("what is finished of an answer stays the same element", async () => {
    const kept = await page.evaluate(() => {
        const element = document.createElement("div");
        document.body.append(element);
        const view = new MarkdownView(element);
        const early = view.update("first\n\n```js\nlet a\n```\n\nsec", false);
        const [first, code] = element.children;
        const news = view.update("first\n\n```js\nlet a\n```\n\nsecond\n\nthird", false);
        const same = element.children[0] === first && element.children[1] === code;
        element.remove();
        return { early, same, news };
    });
    assert.deepEqual(kept, { early: "first\nCode: js", same: true, news: "second" });
});

test("headings have no gaps below the turn's own", async () => {
    const html = await build("### a\n\n# b\n\n###### c\n\n- # d\n");
    assert.deepEqual([...html.matchAll(/<(h\d) data-level="(\d)"/g)].map((found) => [found[1], found[2]]), [["h3", "3"], ["h3", "1"], ["h4", "6"], ["h3", "1"]]);
});

test("a code block has its language, its colours and a button that copies it", async () => {
    const html = await build('```python\ndef f(): # hi\n    return "x"\n```');
    for (const part of [">python</span>", 'class="c-word">def<', 'class="c-call">f<', 'class="c-comment"># hi<', 'class="c-string">"x"<', 'aria-label="Copy the code"']) assert.ok(html.includes(part), part);
    const unnamed = await build("```\n<plain>\n```");
    assert.ok(unnamed.includes("&lt;plain&gt;") && unnamed.includes(">text</span>"));
});

test("colours lose no letter of any language", async () => {
    const source = "a = 'it''s' # x\n\"\"\"doc\"\"\" /* c */ // d\n<a href=\"x\">&amp;</a> -- s\n@@ 1 @@\n+x\n-y\n`q ${r}` 0x1F 1.5e-3 {\"k\": null} ; %\n'";
    const lost = await page.evaluate((text) => [...LANGUAGES.keys()].filter((name) => coloured(text, name).map((part) => part.textContent ?? part).join("") !== text), source);
    assert.deepEqual(lost, []);
});

test("texts made to be slow are not", { timeout: 60000 }, async () => {
    const many = (text, count = 20000) => text.repeat(count);
    const slow = [
        many("*"), many("*a "), many("**a*"), many("_a__"), many("*a_ "), many("["), many("[a]("), many("[a](<b"), many("![["), many("`a``"), many("<"), many("<a:"), many("h"),
        "http://" + many(")"), many("> "), many("- "), many("> - "), many("1. a\n"), many("\\("), many("$$"), many("&"), many("~~a"), many("|"),
        "|" + many("a|", 2000) + "\n|" + many("-|", 2000) + "\n" + many("|a", 2000), many("#"), "# " + many(" ") + "x", many("a\n=\n", 5000), many("[a]: b\n"),
        many("    x\n\n", 5000), many("\t"), "```c\n" + many('"') + "\n```", "```html\n" + many("<!--", 5000) + "\n```", "```python\n" + many("'''", 5000),
    ];
    for (const source of slow) {
        const began = performance.now();
        assert.equal(typeof await build(source), "string");
        if (process.env.SHOW) console.log(Math.round(performance.now() - began), JSON.stringify(source.slice(0, 20)));
    }
});
