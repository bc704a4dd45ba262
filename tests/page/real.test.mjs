// The page as the binary serves it, with the demo model behind it.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { answered, say, startBrowser, textsOf, until } from "./browser.mjs";

const KEY = "key-of-the-page";
let server, url, browser, page;
before(async () => {
    // Slow enough to be stopped: with every core the answer may end before the browser draws its first words.
    server = spawn(process.env.KAITO_BINARY || "target/debug/kaito", ["serve", "--port", "0", "--speculate", "false", "--threads", "1", "--dtype", "f32"], { env: { ...process.env, KAITO_API_KEY: KEY }, stdio: ["ignore", "pipe", "pipe"] });
    url = await new Promise((resolve, reject) => {
        let log = "";
        const listen = (part) => {
            log += part;
            const found = /http:\/\/[\w.:[\]-]*:\d+/.exec(log);
            if (found) resolve(found[0] + "/");
        };
        server.stdout.on("data", listen);
        server.stderr.on("data", listen);
        server.on("exit", (code) => reject(new Error(`kaito serve ended with ${code}: ${log}`)));
    });
    for (let healthy = false; !healthy;) {
        healthy = await fetch(url + "healthz").then((response) => response.ok, () => false);
        if (!healthy) await new Promise((resolve) => setTimeout(resolve, 200));
    }
    browser = await startBrowser();
    page = await browser.open(url, { permissions: ["clipboard-read", "clipboard-write"] });
});
after(async () => {
    await browser?.close();
    server.removeAllListeners("exit");
    server.kill("SIGTERM");
    await new Promise((resolve) => server.on("exit", resolve));
    assert.deepEqual(browser.problems, []);
});

const openFolds = () => page.evaluate(() => { for (const fold of document.querySelectorAll("#fields details")) fold.open = true; });
const post = async (route, body) => (await fetch(url + route, { method: "POST", headers: { "content-type": "application/json", authorization: `Bearer ${KEY}` }, body: JSON.stringify(body) })).json();

test("the page is one answer of at most 150 KiB, under a policy that lets nothing else in", async () => {
    const response = await fetch(url, { headers: { accept: "text/html" } });
    const policy = response.headers.get("content-security-policy");
    assert.match(policy, /^default-src 'none'; script-src 'nonce-[0-9a-f]{32}'; style-src 'nonce-[0-9a-f]{32}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'$/);
    assert.ok((await response.arrayBuffer()).byteLength <= 150 * 1024);
    const loaded = await page.evaluate(() => performance.getEntriesByType("resource").map((entry) => new URL(entry.name).pathname));
    assert.deepEqual([...new Set(loaded)], ["/v1/models"]);
});

test("the key is asked for, and the model is named", async () => {
    await page.waitForSelector("#dialog[open] #key");
    await page.fill("#key", KEY);
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => models.list.length > 0);
    const { data } = await (await fetch(url + "v1/models", { headers: { authorization: `Bearer ${KEY}` } })).json();
    assert.deepEqual(await page.locator("#model option").evaluateAll((all) => all.map((one) => one.value)), data.map((model) => model.id));
});

test("a greedy answer is the one that /chat gives", async () => {
    await page.click("#settings-open");
    await page.fill("#set-temperature", "0");
    await page.fill("#set-max_tokens", "60");
    await say(page, "What is a workspace?");
    await answered(page);
    const { Result: expected } = await post("chat", { messages: [{ role: "user", content: "What is a workspace?" }], do_sample: false, max_new_tokens: 60, return_full_text: false });
    assert.equal((await page.evaluate(() => current.messages[1].text)).trim(), expected.trim());
    assert.match(await page.innerText(".facts"), /^\d+ tokens · [\d.]+ tokens\/s · first after [\d.]+ s$/);
    assert.match(await page.innerText("#used"), /^\d+ of 2,048 tokens$/);
});

test("the conversation goes on, branches, and survives a reload", async () => {
    await say(page, "Which presets are there?");
    await answered(page);
    await page.click(".last button[aria-label='Write another answer']");
    await answered(page);
    assert.equal(await page.innerText(".last .branches"), "2 / 2");
    const before = await textsOf(page, ".said");
    await until(page, async () => (await store.read(current.id)).messages.length === 5 && running.size === 0);
    await page.reload();
    await page.waitForSelector(".answer");
    assert.deepEqual(await textsOf(page, ".said"), before);
});

test("an answer that is cut is continued as if it had not been", async () => {
    await page.click("#new");
    await page.fill("#set-max_tokens", "12");
    await say(page, "What is a workspace?");
    await answered(page);
    assert.match(await page.innerText(".note p"), /^The answer reached its longest length, 12 tokens;/);
    await page.fill("#set-max_tokens", "48");
    await page.click("button[aria-label='Continue this answer']");
    await answered(page);
    const { Result: expected } = await post("chat", { messages: [{ role: "user", content: "What is a workspace?" }], do_sample: false, max_new_tokens: 60, return_full_text: false });
    assert.equal((await page.evaluate(() => current.messages[1].text)).trim(), expected.trim());
});

test("an answer that is stopped frees what it held", async () => {
    await page.click("#new");
    await page.fill("#set-max_tokens", "1900");
    await openFolds();
    await page.fill("#set-extra", '{"ignore_eos": true}');
    await say(page, "Tell me everything.");
    // From within the page: a fast machine ends the answer while this test is told of its beginning.
    await page.evaluate(() => new Promise((stopped) => {
        const stop = () => {
            if ((document.querySelector(".answer .said")?.innerText.length || 0) <= 40) return requestAnimationFrame(stop);
            document.querySelector("#send").click();
            stopped();
        };
        stop();
    }));
    await answered(page);
    assert.equal(await page.innerText(".note p"), "You stopped this answer.");
    for (let free = false; !free;) free = /^kaito_kv_cache_pages_used 0$/m.test(await (await fetch(url + "metrics")).text());
});

test("a text goes on by /v1/completions, with probabilities of its tokens", async () => {
    await page.click("#new");
    await page.click("#reset");
    await page.click("#mode label:has-text('Text')");
    await page.fill("#set-temperature", "0");
    await page.fill("#set-max_tokens", "16");
    await openFolds();
    await page.check("#set-probabilities");
    await say(page, "A workspace is");
    await answered(page);
    const { choices: [choice] } = await post("v1/completions", { prompt: "A workspace is", temperature: 0, max_tokens: 16, logprobs: 5 });
    assert.equal(await page.evaluate(() => current.messages[1].text), choice.text);
    assert.deepEqual(await page.evaluate(() => current.messages[1].tokens.map((token) => token.text)), choice.logprobs.tokens);
    await page.click("button[aria-label='Token probabilities']");
    assert.equal(await page.locator(".token").count(), choice.logprobs.tokens.length);
});

test("a JSON schema holds", async () => {
    await page.click("#new");
    await page.click("#reset");
    await page.click("#mode label:has-text('Chat')");
    await page.fill("#set-max_tokens", "200");
    await openFolds();
    await page.fill("#set-schema", '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "size": {"type": "integer"}}, "required": ["name", "size"], "additionalProperties": false}');
    await say(page, "Describe a workspace.");
    await answered(page);
    const answer = JSON.parse(await page.evaluate(() => current.messages[1].text));
    assert.deepEqual([Object.keys(answer), typeof answer.name, Number.isInteger(answer.size)], [["name", "size"], "string", true]);
});

test("what the server refuses is shown in its words", async () => {
    await page.click("#reset");
    await page.click("#new");
    await openFolds();
    await page.fill("#set-extra", '{"top_p": 7}');
    await say(page, "q");
    await page.waitForSelector(".unanswered");
    assert.match(await page.innerText(".unanswered p"), /top_p/);
});
