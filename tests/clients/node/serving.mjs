// The server that the run started, and what the Kaito dialects answer on it, which is the reference for texts.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'

export const url = process.env.KAITO_URL
export const v1 = `${url}/v1`
export const workspace = [{ role: 'user', content: 'What is a workspace?' }]
export const weather = {
  type: 'object',
  properties: {
    city: { type: 'string', enum: ['Berlin', 'Oslo', 'Quito'] },
    unit: { type: 'string', enum: ['celsius', 'fahrenheit'] },
  },
  required: ['city', 'unit'],
  additionalProperties: false,
}

const only = new RegExp(process.env.CLIENTS_ONLY ?? '')

/** Declares checks named `clients/CLIENT-VERSION/SCENARIO`; those that `CLIENTS_ONLY` does not find are not declared. */
export function checks(shown, distribution, scenarios) {
  const lock = JSON.parse(readFileSync(new URL('package-lock.json', import.meta.url)))
  const [major, minor] = lock.packages[`node_modules/${distribution}`].version.split('.')
  for (const [scenario, check] of Object.entries(scenarios)) {
    const name = `clients/${shown}-${major}.${minor}/${scenario}`
    if (only.test(name)) test(name, { timeout: 180_000 }, check)
  }
}

/** What `/chat` answers greedily. */
export async function chatText(messages, maxNewTokens) {
  const body = { messages, do_sample: false, max_new_tokens: maxNewTokens, return_full_text: false }
  const answer = await fetch(`${url}/chat`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  })
  assert.equal(answer.status, 200)
  return (await answer.json()).Result
}

/** Starts another server, for as long as the test runs. */
export async function serve(context, ...flags) {
  const server = spawn(process.env.KAITO_BINARY, ['serve', ...flags, '--host', '127.0.0.1', '--port', '0'])
  context.after(() => server.kill())
  let printed = ''
  const address = await new Promise((resolve, reject) => {
    const read = data => {
      printed += data
      const found = /(http:\/\/127\.0\.0\.1:\d+)/.exec(printed)
      if (found && printed.includes('the model is loaded')) resolve(found[1])
    }
    server.stdout.on('data', read)
    server.stderr.on('data', read)
    server.on('exit', status => reject(new Error(`kaito serve ${flags.join(' ')} ended with ${status}:\n${printed}`)))
  })
  while (!(await fetch(`${address}/healthz`)).ok) await new Promise(resume => setTimeout(resume, 50))
  return address
}

/** The folder of an installed package. */
export const folder = name => join(import.meta.dirname, 'node_modules', name, '/')
