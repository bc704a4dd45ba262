// The examples in docs/clients.md: each block of JavaScript prints what stands below it.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { url } from './serving.mjs'

const only = new RegExp(process.env.CLIENTS_ONLY ?? '')
const blocks = readFileSync(process.env.CLIENTS_DOCUMENT, 'utf8').split('```').filter((_, place) => place % 2 === 1)
const example = /^js\n/
let number = 0
for (const [place, block] of blocks.entries()) {
  if (!example.test(block)) continue
  const name = `clients/docs-clients/javascript_${(number += 1)}`
  if (!only.test(name)) continue
  test(name, { timeout: 120_000 }, async context => {
    const folder = mkdtempSync(join(import.meta.dirname, 'example-'))
    context.after(() => rmSync(folder, { recursive: true }))
    const code = block.replace(example, '').replaceAll('http://localhost:5000', url)
    assert.notEqual(code, block.replace(example, ''))
    writeFileSync(join(folder, 'example.mjs'), code)
    const { stdout } = await promisify(execFile)(process.execPath, [join(folder, 'example.mjs')])
    assert.equal(stdout.trim(), blocks[place + 1].replace(/^text\n/, '').trim())
  })
}
