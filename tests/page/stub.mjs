// A server that speaks the shapes of /v1 and answers as a test tells it to: slowly, wrongly, or not at all. The page itself comes
// from its sources, joined as crates/kaito-server/src/page/mod.rs joins them.
import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { randomBytes } from "node:crypto";
import { fileURLToPath } from "node:url";

const parts = fileURLToPath(new URL("../../crates/kaito-server/src/page/", import.meta.url));

export function pageText(nonce, info) {
    const frame = readFileSync(parts + "index.html", "utf8");
    const joined = frame.replace(/\{\{([\w-]+\.(?:css|js))\}\}/g, (_, name) => readFileSync(parts + name, "utf8"));
    return joined.replaceAll("{{nonce}}", () => nonce).replace("{{info}}", () => JSON.stringify(info).replaceAll("<", "\\u003c"));
}

/**
 * Starts a stub. `behaviour` may be changed at any time:
 * - info, models, health: what the page is filled with, what /v1/models lists, what /healthz answers
 * - answer(body, asked): {text | chunks, finish, delay, usage, tokens, error, errorInStream, breakOff, until, headers, status}; until() is waited for
 *   before the connection breaks off: what came before may be lost with it
 */
export async function startStub(behaviour = {}) {
    const stub = {
        info: { name: "stub-7b", ready: true, chatTemplate: true, maxSeqLen: 4096 },
        models: [{ id: "stub-7b", max_model_len: 4096 }],
        health: () => ({ status: 200, body: { status: "Healthy" } }),
        answer: () => ({ text: "Hello." }),
        key: null,
        requests: [],
        aborted: 0,
        ...behaviour,
    };
    const server = createServer((request, response) => serve(stub, request, response).catch((error) => response.destroy(error)));
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    stub.url = `http://127.0.0.1:${server.address().port}/`;
    stub.close = () => new Promise((resolve) => { server.close(resolve); server.closeAllConnections(); });
    return stub;
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function serve(stub, request, response) {
    const path = new URL(request.url, "http://stub").pathname;
    const json = (status, body, headers = {}) => {
        response.writeHead(status, { "content-type": "application/json", ...headers });
        response.end(JSON.stringify(body));
    };
    if (path === "/") {
        const nonce = randomBytes(16).toString("hex");
        response.writeHead(200, {
            "content-type": "text/html; charset=utf-8",
            "content-security-policy": `default-src 'none'; script-src 'nonce-${nonce}'; style-src 'nonce-${nonce}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'`,
        });
        response.end(pageText(nonce, stub.info));
        return;
    }
    if (path === "/healthz") {
        const { status, body } = stub.health();
        json(status, body);
        return;
    }
    if (stub.key && request.headers.authorization !== `Bearer ${stub.key}`) {
        json(401, { error: { message: "The API key is wrong.", type: "authentication_error", param: null, code: "invalid_api_key" } });
        return;
    }
    if (path === "/v1/models") {
        json(200, { object: "list", data: stub.models.map((model) => ({ object: "model", created: 1, owned_by: "kaito", parent: null, ...model })) });
        return;
    }
    if (path !== "/v1/chat/completions" && path !== "/v1/completions") {
        json(404, { error: { message: `There is no route ${path}.`, type: "invalid_request_error", param: null, code: null } });
        return;
    }
    let text = "";
    for await (const part of request) text += part;
    const body = JSON.parse(text);
    stub.requests.push({ path, body, headers: request.headers });
    const reply = await stub.answer(body, stub.requests.length);
    if (reply.drop) { response.destroy(); return; }
    if (reply.error) {
        json(reply.status || 400, { error: { type: "invalid_request_error", param: null, code: null, ...reply.error } }, reply.headers);
        return;
    }
    let open = true;
    response.on("close", () => { if (!response.writableFinished) { open = false; stub.aborted += 1; } });
    response.writeHead(200, { "content-type": "text/event-stream" });
    const chat = path.endsWith("chat/completions");
    const head = { id: "chatcmpl-1", object: chat ? "chat.completion.chunk" : "text_completion", created: 1, model: body.model || "stub-7b" };
    const event = (value) => response.write(`data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`);
    const chunk = (content, finish = null, logprobs = null, usage = null) => event({
        ...head,
        choices: [chat ? { index: 0, delta: content === null ? {} : { content }, logprobs, finish_reason: finish } : { index: 0, text: content || "", logprobs, finish_reason: finish }],
        usage,
    });
    if (chat) event({ ...head, choices: [{ index: 0, delta: { role: "assistant", content: "" }, logprobs: null, finish_reason: null }], usage: null });
    const chunks = reply.chunks || reply.text.match(/[\s\S]{1,7}/g) || [];
    const prompt = reply.prompt ?? Math.ceil(JSON.stringify(body.messages || body.prompt).length / 4);
    let count = 0;
    response.write(": keep-alive\n\n");
    for (const piece of chunks) {
        if (!open) return;
        if (reply.delay) await sleep(reply.delay);
        count += 1;
        chunk(piece, null, reply.logprobs ? reply.logprobs(piece, chat) : null, { prompt_tokens: prompt, completion_tokens: count, total_tokens: prompt + count });
        if (reply.breakOff === count) { await reply.until(); response.destroy(); return; }
        if (reply.errorInStream === count) {
            event({ error: { message: "The engine has stopped; restart the server.", type: "server_error", param: null, code: null } });
            event("[DONE]");
            response.end();
            return;
        }
    }
    chunk(null, reply.finish || "stop");
    const generated = reply.generated ?? count;
    event({ ...head, choices: [], usage: { prompt_tokens: prompt, completion_tokens: generated, total_tokens: prompt + generated } });
    event("[DONE]");
    response.end();
}

/** Log-probabilities for a piece in the shape of either route. */
export function logprobsOf(piece, chat) {
    const chosen = Math.log(0.62), other = Math.log(0.21);
    return chat
        ? { content: [{ token: piece, logprob: chosen, bytes: [...Buffer.from(piece)], top_logprobs: [{ token: piece, logprob: chosen, bytes: [] }, { token: " other", logprob: other, bytes: [] }] }], refusal: null }
        : { tokens: [piece], token_logprobs: [chosen], top_logprobs: [{ [piece]: chosen, " other": other }], text_offset: [0] };
}
