// Writes one line a check into $CLIENTS_RESULTS, and every failure beside it and to the terminal.
import { appendFileSync } from 'node:fs'
import { inspect } from 'node:util'

export default async function* report(events) {
  let passed = 0
  let failed = 0
  for await (const { type, data } of events) {
    if (type !== 'test:pass' && type !== 'test:fail') continue
    if (!/^(clients|real)\//.test(data.name)) {
      // A file that cannot be loaded is a failure without a check.
      if (type === 'test:fail' && data.details.error?.failureType !== 'subtestsFailed') {
        failed += 1
        yield `${data.name}\n${inspect(data.details.error.cause ?? data.details.error)}\n`
      }
      continue
    }
    const result = type === 'test:pass' ? 'ok' : 'FAILED'
    const results = process.env.CLIENTS_RESULTS
    if (type === 'test:pass') passed += 1
    else {
      failed += 1
      const failure = `${data.name}\n${inspect(data.details.error.cause ?? data.details.error)}\n\n`
      if (results) appendFileSync(`${results}.failures`, failure)
      yield failure
    }
    const seconds = (data.details.duration_ms / 1000).toFixed(2)
    if (results) appendFileSync(results, `${data.name}\t${result}\t${seconds}\n`)
  }
  yield `${passed} passed, ${failed} failed\n`
}
