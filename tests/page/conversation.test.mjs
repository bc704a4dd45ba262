// Asking, stopping, continuing, branching: what a person does in a conversation.
import { after, before, beforeEach, test } from "node:test";
import assert from "node:assert/strict";
import { answered, say, startBrowser, textsOf, until } from "./browser.mjs";
import { logprobsOf, startStub } from "./stub.mjs";

let stub, browser;
before(async () => { browser = await startBrowser(); });
beforeEach(async (context) => {
    stub = await startStub();
    context.after?.(() => stub.close());
});
after(async () => {
    await browser.close();
    assert.deepEqual(browser.problems, []);
});

const closing = async (page) => { await page.context().close(); await stub.close(); };
const lastRequest = () => stub.requests[stub.requests.length - 1];

test("a conversation goes to /v1/chat/completions with all that was said", async () => {
    const page = await browser.open(stub.url);
    stub.answer = (body) => ({ text: `Answer **${body.messages.length}**` });
    await say(page, "First\nquestion");
    await answered(page);
    await say(page, "  Second  ");
    await answered(page);
    assert.deepEqual(lastRequest().path, "/v1/chat/completions");
    assert.deepEqual(lastRequest().body, {
        messages: [{ role: "user", content: "First\nquestion" }, { role: "assistant", content: "Answer **1**" }, { role: "user", content: "Second" }],
        stream: true,
        stream_options: { include_usage: true, continuous_usage_stats: true },
    });
    assert.deepEqual(await textsOf(page, ".answer strong"), ["1", "3"]);
    assert.equal(await page.inputValue("#text"), "");
    assert.match(await page.title(), /^First · stub-7b · Kaito$/);
    await closing(page);
});

test("Stop ends the request, keeps what came, and the answer can be continued", async () => {
    const page = await browser.open(stub.url);
    stub.answer = () => ({ chunks: Array(500).fill("word "), delay: 20 });
    await say(page, "Write a lot");
    await page.waitForFunction(() => document.querySelector(".answer")?.innerText.includes("word word"));
    assert.equal(await page.getAttribute("#send", "title"), "Stop (Esc)");
    await page.click("#send");
    await answered(page);
    await page.waitForFunction(() => document.querySelector(".note p")?.innerText === "You stopped this answer.");
    while (stub.aborted === 0) await new Promise((resolve) => setTimeout(resolve, 20));
    const kept = await page.evaluate(() => current.messages[1].text);
    assert.match(kept, /^(word )+$/);
    stub.answer = () => ({ text: "and the rest." });
    await page.click("button[aria-label='Continue this answer']");
    await answered(page);
    assert.deepEqual(lastRequest().body.messages.at(-1), { role: "assistant", content: kept });
    assert.equal(lastRequest().body.continue_final_message, true);
    assert.equal(lastRequest().body.add_generation_prompt, false);
    assert.equal(await page.evaluate(() => current.messages[1].text), kept + "and the rest.");
    assert.equal(await page.locator(".note").count(), 0);
    await closing(page);
});

test("a slow first token is waited for with a clock", async () => {
    const page = await browser.open(stub.url);
    stub.answer = async () => { await new Promise((resolve) => setTimeout(resolve, 2500)); return { text: "There." }; };
    await say(page, "Hello?");
    await page.waitForFunction(() => /^waiting for the first token, [12] s$/.test(document.querySelector(".facts")?.innerText));
    await answered(page);
    assert.match(await page.innerText(".facts"), /^1 token · first after [23]\.\d\d s$/);
    await closing(page);
});

test("an answer that was stopped before its first word leaves the question, which can be asked again", async () => {
    const page = await browser.open(stub.url);
    stub.answer = () => new Promise(() => {});
    await say(page, "Hello?");
    await page.waitForSelector(".turn.writing");
    await page.keyboard.press("Escape");
    await answered(page);
    assert.equal(await page.locator(".answer").count(), 0);
    stub.answer = () => ({ text: "Here." });
    await page.click("text=Ask again");
    await answered(page);
    assert.deepEqual(await textsOf(page, ".said"), ["Hello?", "Here."]);
    await closing(page);
});

test("an answer that ended by length says so and what to do", async () => {
    const page = await browser.open(stub.url);
    stub.answer = () => ({ text: "half of a", finish: "length" });
    await say(page, "Go");
    await answered(page);
    assert.equal(await page.innerText(".note p"), "The answer reached its longest length, 2 tokens; the settings allow more.");
    stub.answer = () => ({ text: " sentence", finish: "length", prompt: 4080, generated: 16 });
    await page.click("button[aria-label='Continue this answer']");
    await answered(page);
    assert.match(await page.innerText(".note p"), /^The context is full: its 4,096 tokens are used\./);
    assert.equal(await page.innerText("#used"), "4,096 of 4,096 tokens");
    await closing(page);
});

test("another answer and an edited question are branches, and none is lost", async () => {
    const page = await browser.open(stub.url);
    stub.answer = (body, asked) => ({ text: `answer ${asked}` });
    await say(page, "question");
    await answered(page);
    await page.click("button[aria-label='Write another answer']");
    await answered(page);
    assert.deepEqual(await textsOf(page, ".said"), ["question", "answer 2"]);
    assert.equal(await page.innerText(".answer .branches"), "2 / 2");
    await page.click("button[aria-label='Previous version']");
    assert.deepEqual(await textsOf(page, ".said"), ["question", "answer 1"]);
    await say(page, "more");
    await answered(page);
    await page.click(".question >> nth=0 >> button[aria-label='Edit the question']");
    await page.fill(".editing textarea", "another question");
    await page.keyboard.press("Enter");
    await answered(page);
    assert.deepEqual(await textsOf(page, ".said"), ["another question", "answer 4"]);
    assert.deepEqual(lastRequest().body.messages, [{ role: "user", content: "another question" }]);
    await page.click(".question button[aria-label='Previous version']");
    assert.deepEqual(await textsOf(page, ".said"), ["question", "answer 1", "more", "answer 3"]);
    await page.reload();
    await page.waitForSelector(".answer");
    assert.deepEqual(await textsOf(page, ".said"), ["question", "answer 1", "more", "answer 3"]);
    await closing(page);
});

test("an answer that fails beside an earlier one leaves the way back to it", async () => {
    const page = await browser.open(stub.url);
    await say(page, "question");
    await answered(page);
    stub.answer = () => ({ status: 500, error: { message: "The server failed." } });
    await page.click("button[aria-label='Write another answer']");
    await page.waitForSelector(".unanswered");
    await page.click("text=Show the earlier answer");
    assert.deepEqual(await textsOf(page, ".said"), ["question", "Hello."]);
    stub.answer = () => new Promise(() => {});
    await page.click("button[aria-label='Write another answer']");
    await page.waitForSelector(".turn.writing");
    await page.keyboard.press("Escape");
    await page.waitForFunction(() => document.querySelector(".answer .said")?.innerText === "Hello.");
    await closing(page);
});

test("a question is edited while the answer to another comes", async () => {
    const page = await browser.open(stub.url);
    stub.answer = () => ({ chunks: Array(30).fill("word "), delay: 20 });
    await say(page, "question");
    await page.waitForSelector(".turn.writing");
    await page.click("button[aria-label='Edit the question']");
    await answered(page);
    await page.fill(".editing textarea", "better question");
    await page.click(".editing button:has-text('Send')");
    await answered(page);
    assert.equal((await textsOf(page, ".question .said"))[0], "better question");
    await closing(page);
});

test("an edit can be left, and an answer copied", async () => {
    const page = await browser.open(stub.url, { permissions: ["clipboard-read", "clipboard-write"] });
    stub.answer = () => ({ text: "a *starred* answer\n\n```sh\nls -l\n```" });
    await say(page, "question");
    await answered(page);
    await page.click("button[aria-label='Edit the question']");
    await page.keyboard.type(" changed");
    await page.keyboard.press("Escape");
    assert.deepEqual((await textsOf(page, ".question .said")), ["question"]);
    await page.click("button[aria-label='Copy the answer']");
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "a *starred* answer\n\n```sh\nls -l\n```");
    await page.click("button[aria-label='Copy the code']");
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "ls -l");
    // Without TLS and not on localhost a page has no clipboard of its own.
    await page.evaluate(() => { window.clipboard = navigator.clipboard; Object.defineProperty(navigator, "clipboard", { value: undefined }); });
    await page.click("button[aria-label='Copy the question']");
    assert.equal(await page.evaluate(() => window.clipboard.readText()), "question");
    await closing(page);
});

test("an answer is edited and continued; turns are deleted with what follows", async () => {
    const page = await browser.open(stub.url);
    stub.answer = (body, asked) => ({ text: `answer ${asked}` });
    await say(page, "question");
    await answered(page);
    await page.click("button[aria-label='Edit the answer']");
    await page.fill(".editing textarea", "Sure: first,");
    await page.click(".editing button.main");
    assert.equal(await page.innerText(".answer .branches"), "2 / 2");
    stub.answer = () => ({ text: " second." });
    await page.click("button[aria-label='Continue this answer']");
    await answered(page);
    assert.deepEqual(lastRequest().body.messages, [{ role: "user", content: "question" }, { role: "assistant", content: "Sure: first," }]);
    assert.equal(await page.innerText(".answer .said"), "Sure: first, second.");
    await page.click("button[aria-label='Delete the answer']");
    await page.click("#dialog button.danger");
    await page.waitForFunction(() => document.querySelector(".answer .said").innerText === "answer 1");
    await page.click("button[aria-label='Delete the question']");
    assert.equal(await page.innerText("#dialog p"), "What follows it goes with it: 1 message, on all branches.");
    await page.click("#dialog button.danger");
    await page.waitForFunction(() => !document.querySelector(".turn") && !document.querySelector("#conversations a"));
    await closing(page);
});

test("an answer goes on while another conversation is read, and the back button leads back", async () => {
    const page = await browser.open(stub.url);
    stub.answer = () => ({ chunks: ["slow ", "and ", "steady"], delay: 250 });
    await say(page, "tortoise");
    await page.waitForSelector(".turn.writing");
    await page.click("#new");
    stub.answer = () => ({ text: "fast" });
    await say(page, "hare");
    await answered(page);
    assert.deepEqual(await textsOf(page, ".said"), ["hare", "fast"]);
    await page.waitForFunction(() => running.size === 0);
    await page.click("#conversations a:has-text('tortoise')");
    await page.waitForFunction(() => document.querySelector(".said").innerText === "tortoise");
    assert.deepEqual(await textsOf(page, ".said"), ["tortoise", "slow and steady"]);
    await page.goBack();
    await page.waitForFunction(() => document.querySelector(".said").innerText === "hare");
    await closing(page);
});

test("a reload in the middle of an answer keeps what had come", async () => {
    const page = await browser.open(stub.url);
    stub.answer = () => ({ chunks: ["one ", ...Array(200).fill("more ")], delay: 30 });
    await say(page, "count");
    await until(page, async () => (await store.read(current.id))?.messages[1]?.text.includes("one more"));
    await page.reload();
    await page.waitForSelector(".said");
    assert.equal((await textsOf(page, ".question .said"))[0], "count");
    assert.match((await textsOf(page, ".answer .said"))[0], /^one more/);
    assert.equal(await page.innerText(".note p"), "The page was closed while this answer was written.");
    await closing(page);
});

test("a model without a chat template goes on with a text by /v1/completions", async () => {
    stub.info = { ...stub.info, chatTemplate: false };
    const page = await browser.open(stub.url);
    stub.answer = (body, asked) => ({ text: [" upon a time", ", there was", "!"][asked - 1], finish: "length" });
    await say(page, "Once");
    await answered(page);
    assert.equal(lastRequest().path, "/v1/completions");
    assert.deepEqual(lastRequest().body, { prompt: "Once", max_tokens: 256, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } });
    await page.press("#text", "Enter");
    await answered(page);
    assert.equal(lastRequest().body.prompt, "Once upon a time");
    await page.click(".last button[aria-label='Edit the text']");
    assert.equal(await page.inputValue(".editing textarea"), "Once upon a time, there was");
    await page.fill(".editing textarea", "Twice upon");
    await page.click("text=Go on from here");
    await answered(page);
    assert.equal(lastRequest().body.prompt, "Twice upon");
    assert.equal(await page.evaluate(() => [...document.querySelectorAll(".said")].map((one) => one.innerText).join("")), "Twice upon!");
    await closing(page);
});

test("the tokens of an answer show how likely they were and what else was", async () => {
    const page = await browser.open(stub.url);
    stub.answer = () => ({ chunks: ["The", " cat", "\n", "sat"], logprobs: logprobsOf });
    await page.click("#settings-open");
    await page.click("summary:has-text('Format')");
    await page.check("#set-probabilities");
    await say(page, "Write");
    await answered(page);
    assert.equal(lastRequest().body.logprobs, true);
    assert.equal(lastRequest().body.top_logprobs, 5);
    await page.click("button[aria-label='Token probabilities']");
    assert.deepEqual(await page.locator(".token").evaluateAll((all) => all.map((one) => one.getAttribute("aria-label"))), [
        "The, 62.0 %; else ␣other 21.0 %", "␣cat, 62.0 %; else ␣other 21.0 %", "↵, 62.0 %; else ␣other 21.0 %", "sat, 62.0 %; else ␣other 21.0 %",
    ]);
    await page.hover(".token >> nth=1");
    assert.deepEqual(await textsOf(page, ".tip code"), ["␣cat", "␣other"]);
    await page.focus(".token >> nth=0");
    await page.keyboard.press("ArrowRight");
    await page.keyboard.press("ArrowRight");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "↵\n");
    await page.click("button[aria-label='Token probabilities']");
    assert.equal(await page.innerText(".answer .said"), "The cat\nsat");
    await closing(page);
});

test("text files go with a question; what is no text is refused by name", async () => {
    const page = await browser.open(stub.url);
    await page.setInputFiles("#attach-file", [{ name: "notes.md", mimeType: "text/markdown", buffer: Buffer.from("# Notes\n```\nx\n```\n") }, { name: "cat.png", mimeType: "image/png", buffer: Buffer.from([137, 80, 78, 71, 0, 255]) }]);
    await page.waitForSelector("#dialog[open]");
    assert.equal(await page.innerText("#dialog p"), "cat.png is not a text file in UTF-8.");
    await page.keyboard.press("Escape");
    await say(page, "Summarise");
    await answered(page);
    assert.equal(lastRequest().body.messages[0].content, "notes.md:\n````\n# Notes\n```\nx\n```\n````\n\nSummarise");
    assert.equal(await page.innerText(".question summary"), "notes.md\n18 B");
    await page.reload();
    await page.waitForSelector(".question summary");
    // Dropped files come the same way.
    const data = await page.evaluateHandle(() => { const files = new DataTransfer(); files.items.add(new File(["dropped text"], "drop.txt")); return files; });
    await page.dispatchEvent("body", "dragenter", { dataTransfer: data });
    assert.ok(await page.isVisible("#drop"));
    await page.dispatchEvent("body", "drop", { dataTransfer: data });
    await page.waitForSelector("#attached li");
    assert.ok(!await page.isVisible("#drop"));
    await closing(page);
});

test("screen readers hear an answer by its parts, each once", async () => {
    const page = await browser.open(stub.url);
    stub.answer = () => ({ chunks: ["First ", "part.\n", "\nSecond ", "part.\n\n```js\nlet", " a\n```\n\nLast."], delay: 40 });
    await say(page, "Tell");
    await answered(page);
    const heard = await textsOf(page, "#spoken p");
    assert.deepEqual(heard, ["First part.", "Second part.", "Code: js", "Last."]);
    assert.equal(await page.getAttribute("#spoken", "aria-live"), "polite");
    await closing(page);
});

test("a long answer is followed unless the reader has scrolled up", async () => {
    const page = await browser.open(stub.url, { height: 500 });
    stub.answer = () => ({ chunks: Array(60).fill("A line of text that is written.\n\n"), delay: 15 });
    await say(page, "Long");
    await page.waitForFunction(() => document.querySelectorAll(".answer p").length > 20);
    assert.ok(await page.evaluate(() => atEnd()));
    await page.evaluate(() => { document.querySelector("#scroll").scrollTop = 0; });
    await page.waitForFunction(() => document.querySelectorAll(".answer p").length > 30);
    assert.equal(await page.evaluate(() => document.querySelector("#scroll").scrollTop), 0);
    await page.click("#to-end");
    await answered(page);
    assert.ok(await page.evaluate(() => atEnd()));
    await closing(page);
});
